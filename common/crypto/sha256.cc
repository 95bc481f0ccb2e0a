#include "common/crypto/sha256.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>

#include <cstdlib>

#include "common/base/encoding_text.h"
#include "common/crypto/openssl_internal.h"

namespace skerry {
namespace {

// Fetched once: a look-up by name costs more than hashing a small message.
const EVP_MD* algorithm() {
  static EVP_MD* const md = EVP_MD_fetch(nullptr, "SHA2-256", nullptr);
  return md;
}

// OpenSSL hashes can fail only for want of memory or of the algorithm itself; nothing can go on then.
void require(bool succeeded) {
  if (!succeeded) std::abort();
}

}  // namespace

struct Sha256::State {
  openssl::MdContext context{EVP_MD_CTX_new()};
  void start() { require(context && EVP_DigestInit_ex2(context.get(), algorithm(), nullptr) == 1); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) { state_->start(); }
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(std::span<const std::byte> piece) {
  require(EVP_DigestUpdate(state_->context.get(), piece.data(), piece.size()) == 1);
}

void Sha256::update(std::string_view piece) { update(bytes_of(piece)); }

Sha256Digest Sha256::finish() {
  Sha256Digest digest;
  require(EVP_DigestFinal_ex(state_->context.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr) == 1);
  state_->start();
  return digest;
}

Sha256Digest sha256(std::span<const std::byte> data) {
  Sha256Digest digest;
  require(EVP_Digest(data.data(), data.size(), reinterpret_cast<unsigned char*>(digest.data()), nullptr, algorithm(),
                     nullptr) == 1);
  return digest;
}

Sha256Digest sha256(std::string_view data) { return sha256(bytes_of(data)); }
std::string sha256_hex(std::span<const std::byte> data) { return to_hex(sha256(data)); }
std::string sha256_hex(std::string_view data) { return to_hex(sha256(data)); }

Sha256Digest hmac_sha256(std::string_view key, std::string_view message) {
  Sha256Digest code;
  unsigned int size = 0;
  require(HMAC(algorithm(), key.data(), static_cast<int>(key.size()),
               reinterpret_cast<const unsigned char*>(message.data()), message.size(),
               reinterpret_cast<unsigned char*>(code.data()), &size) != nullptr &&
          size == code.size());
  return code;
}

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace skerry
