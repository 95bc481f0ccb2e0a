#include "common/crypto/keys.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;

namespace {

bool has(const Error& error, const char* part) { return error.message.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a signature holds for its message and key only") {
  const PrivateKey key = *PrivateKey::generate();
  const std::string signature = *key.sign("an update");
  CHECK(key.public_key().verify("an update", signature).ok());
  CHECK(key.public_key().verify("an updatf", signature).error().code == Code::kUnauthenticated);
  CHECK_FALSE(PrivateKey::generate()->public_key().verify("an update", signature).ok());
  CHECK_FALSE(key.public_key().verify("an update", "").ok());
  CHECK_FALSE(key.public_key().verify("an update", signature.substr(1)).ok());
}

TEST_CASE("a key file has mode 0600 and gives the same key back") {
  const test::TempDir directory;
  const std::string path = directory / "key.pem";
  const PrivateKey key = *PrivateKey::generate();
  REQUIRE(key.save(path).ok());
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  CHECK(PrivateKey::load(path)->public_key() == key.public_key());
}

TEST_CASE("a key file that others may read is refused, with the command that mends it") {
  const test::TempDir directory;
  const std::string path = directory / "key.pem";
  REQUIRE(PrivateKey::generate()->save(path).ok());
  REQUIRE(::chmod(path.c_str(), 0640) == 0);
  const auto key = PrivateKey::load(path);
  REQUIRE_FALSE(key.ok());
  CHECK(key.error().code == Code::kPermissionDenied);
  CHECK(has(key.error(), "chmod 600"));
}

TEST_CASE("a missing and a damaged key file name the path, and quote nothing of it") {
  const test::TempDir directory;
  CHECK(PrivateKey::load(directory / "none.pem").error().code == Code::kNotFound);
  REQUIRE(write_file_atomic(directory / "bad.pem", "very secret text", 0600).ok());
  const auto key = PrivateKey::load(directory / "bad.pem");
  REQUIRE_FALSE(key.ok());
  CHECK(has(key.error(), "bad.pem"));
  CHECK_FALSE(has(key.error(), "very secret"));
}

TEST_CASE("keys of another kind are refused by name") {
  EVP_PKEY* rsa = EVP_RSA_gen(2048);
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(rsa, &der);
  const auto key = PublicKey::from_der({reinterpret_cast<char*>(der), static_cast<std::size_t>(size)});
  OPENSSL_free(der);
  EVP_PKEY_free(rsa);
  REQUIRE_FALSE(key.ok());
  CHECK(has(key.error(), "RSA"));

  EVP_PKEY* other = EVP_EC_gen("P-384");
  der = nullptr;
  const int other_size = i2d_PUBKEY(other, &der);
  const auto curve = PublicKey::from_der({reinterpret_cast<char*>(der), static_cast<std::size_t>(other_size)});
  OPENSSL_free(der);
  EVP_PKEY_free(other);
  REQUIRE_FALSE(curve.ok());
  CHECK(has(curve.error(), "secp384r1"));
}

TEST_CASE("a public key survives its DER form") {
  const PublicKey key = PrivateKey::generate()->public_key();
  CHECK(*PublicKey::from_der(key.der()) == key);
  CHECK(key.fingerprint().size() == 64);
  CHECK_FALSE(PublicKey::from_der("nonsense").ok());
}
