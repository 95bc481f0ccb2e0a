// ECDSA keys on the curve P-256: made, kept in files of mode 0600, and used to sign.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "common/base/result.h"

struct evp_pkey_st;  // OpenSSL's EVP_PKEY

namespace skerry {

/// A P-256 public key. Copies share one immutable OpenSSL object. Safe to use from several threads.
class PublicKey {
 public:
  /// From DER (SubjectPublicKeyInfo). INVALID_ARGUMENT: damaged, or a key of another kind (named).
  static Result<PublicKey> from_der(std::string_view der);

  /// Whether `signature` (DER, as PrivateKey::sign makes it) is this key's over SHA-256 of `message`.
  /// UNAUTHENTICATED if it is not, whatever the reason.
  Result<void> verify(std::string_view message, std::string_view signature) const;

  /// DER (SubjectPublicKeyInfo).
  std::string der() const;
  /// Hex SHA-256 of der().
  std::string fingerprint() const;
  bool operator==(const PublicKey& other) const;

  /// For the parts of common/crypto that speak OpenSSL.
  evp_pkey_st* handle() const { return key_.get(); }
  static PublicKey adopt(std::shared_ptr<evp_pkey_st> key) { return PublicKey(std::move(key)); }

 private:
  explicit PublicKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}
  // Shared because OpenSSL's keys are immutable and reference counted: a copy costs a counter.
  std::shared_ptr<evp_pkey_st> key_;
};

/// A P-256 private key; OpenSSL cleanses its memory when the last copy goes. Safe to use from several threads.
class PrivateKey {
 public:
  static Result<PrivateKey> generate();

  /// From a PEM file (PKCS#8 or SEC 1, not encrypted). NOT_FOUND, PERMISSION_DENIED (also: the file may be read by others
  /// than its owner), INVALID_ARGUMENT (no PEM key, another kind of key); messages name the path and never quote the file.
  static Result<PrivateKey> load(const std::string& path);
  static Result<PrivateKey> from_pem(std::string_view pem);

  /// Writes PKCS#8 PEM, mode 0600, whole or not at all (temporary file, fsync, rename).
  Result<void> save(const std::string& path) const;
  /// PKCS#8 PEM; cleanse() it after use.
  Result<std::string> pem() const;

  /// ECDSA over SHA-256 of `message`, in DER (70 to 72 bytes).
  Result<std::string> sign(std::string_view message) const;
  PublicKey public_key() const { return PublicKey::adopt(key_); }

  evp_pkey_st* handle() const { return key_.get(); }

 private:
  explicit PrivateKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}
  std::shared_ptr<evp_pkey_st> key_;  // shared as in PublicKey
};

}  // namespace skerry
