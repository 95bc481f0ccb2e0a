#include "common/crypto/keys.h"

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <sys/stat.h>

#include "common/base/encoding_text.h"
#include "common/crypto/openssl_internal.h"
#include "common/crypto/random.h"
#include "common/crypto/sha256.h"
#include "common/os/files.h"

namespace skerry {
namespace {

constexpr std::uint64_t kMaxKeyFile = 16 * 1024;

std::shared_ptr<EVP_PKEY> own(EVP_PKEY* key) { return {key, EVP_PKEY_free}; }

const EVP_MD* digest() {
  static EVP_MD* const md = EVP_MD_fetch(nullptr, "SHA2-256", nullptr);
  return md;
}

Result<void> require_p256(EVP_PKEY* key) {
  char group[64] = "";
  if (EVP_PKEY_is_a(key, "EC") == 1) {
    EVP_PKEY_get_group_name(key, group, sizeof group, nullptr);
    if (std::string_view(group) == "prime256v1") return {};
    return invalid_argument("the key is on the curve " + std::string(group) + ", Skerry takes only ECDSA P-256 keys");
  }
  const char* kind = EVP_PKEY_get0_type_name(key);
  return invalid_argument("the key is of kind " + std::string(kind != nullptr ? kind : "unknown") +
                          ", Skerry takes only ECDSA P-256 keys");
}

}  // namespace

Result<PublicKey> PublicKey::from_der(std::string_view der) {
  const auto* data = reinterpret_cast<const unsigned char*>(der.data());
  auto key = own(d2i_PUBKEY(nullptr, &data, static_cast<long>(der.size())));
  if (!key) return invalid_argument("damaged public key: " + openssl::last_reason());
  SKERRY_TRY(require_p256(key.get()));
  return PublicKey(std::move(key));
}

Result<void> PublicKey::verify(std::string_view message, std::string_view signature) const {
  const openssl::MdContext context(EVP_MD_CTX_new());
  const bool holds =
      context && EVP_DigestVerifyInit(context.get(), nullptr, digest(), nullptr, key_.get()) == 1 &&
      EVP_DigestVerify(context.get(), reinterpret_cast<const unsigned char*>(signature.data()), signature.size(),
                       reinterpret_cast<const unsigned char*>(message.data()), message.size()) == 1;
  if (holds) return {};
  ERR_clear_error();
  return unauthenticated("the signature does not fit the message and the key " + fingerprint().substr(0, 16) + "…");
}

std::string PublicKey::der() const { return openssl::to_der(i2d_PUBKEY, key_.get()); }
std::string PublicKey::fingerprint() const { return sha256_hex(der()); }
bool PublicKey::operator==(const PublicKey& other) const { return EVP_PKEY_eq(key_.get(), other.key_.get()) == 1; }

Result<PrivateKey> PrivateKey::generate() {
  auto key = own(EVP_EC_gen("P-256"));
  if (!key) return internal_error("cannot make a P-256 key: " + openssl::last_reason());
  return PrivateKey(std::move(key));
}

Result<PrivateKey> PrivateKey::from_pem(std::string_view pem) {
  const openssl::Bio bio = openssl::read_bio(pem);
  // The callback refuses encrypted keys instead of asking for a pass phrase on the terminal.
  const auto no_phrase = [](char*, int, int, void*) { return -1; };
  auto key = own(bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, no_phrase, nullptr) : nullptr);
  if (!key) {
    ERR_clear_error();
    return invalid_argument("there is no PEM private key in it, or it is encrypted or damaged");
  }
  SKERRY_TRY(require_p256(key.get()));
  // The file holds the public half too: where one of the two was damaged, nothing it signs would be believed.
  const std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)> context(EVP_PKEY_CTX_new(key.get(), nullptr), EVP_PKEY_CTX_free);
  if (!context || EVP_PKEY_pairwise_check(context.get()) != 1) {
    ERR_clear_error();
    return data_loss("its private and public halves do not belong together: it is damaged, put it back from a backup");
  }
  return PrivateKey(std::move(key));
}

Result<PrivateKey> PrivateKey::load(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && (status.st_mode & 077) != 0)
    return permission_denied("the key file " + path + " can be used by others than its owner; run: chmod 600 " + path);
  SKERRY_ASSIGN(std::string pem, read_file(path, kMaxKeyFile));
  auto key = from_pem(pem);
  cleanse(pem);
  if (!key.ok()) return with_context(std::move(key).error(), "key file " + path);
  return key;
}

Result<std::string> PrivateKey::pem() const {
  const openssl::Bio bio(BIO_new(BIO_s_secmem()));
  if (!bio || PEM_write_bio_PKCS8PrivateKey(bio.get(), key_.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return internal_error("cannot write a private key as PEM: " + openssl::last_reason());
  return openssl::bio_text(bio.get());
}

Result<void> PrivateKey::save(const std::string& path) const {
  SKERRY_ASSIGN(std::string text, pem());
  auto written = write_file_atomic(path, text, 0600);
  cleanse(text);
  return written;
}

Result<std::string> PrivateKey::sign(std::string_view message) const {
  const openssl::MdContext context(EVP_MD_CTX_new());
  std::size_t size = static_cast<std::size_t>(EVP_PKEY_get_size(key_.get()));
  std::string signature(size, '\0');
  if (!context || EVP_DigestSignInit(context.get(), nullptr, digest(), nullptr, key_.get()) != 1 ||
      EVP_DigestSign(context.get(), reinterpret_cast<unsigned char*>(signature.data()), &size,
                     reinterpret_cast<const unsigned char*>(message.data()), message.size()) != 1)
    return internal_error("cannot sign: " + openssl::last_reason());
  signature.resize(size);
  return signature;
}

}  // namespace skerry
