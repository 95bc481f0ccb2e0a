// What the sources of common/crypto share about OpenSSL. Not for other directories.
#pragma once

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>
#include <string_view>

namespace skerry::openssl {

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};

using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using MdContext = std::unique_ptr<EVP_MD_CTX, Deleter<EVP_MD_CTX_free>>;

/// OpenSSL's first reason for the last failure on this thread; the queue is empty afterwards.
inline std::string last_reason() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "no further reason";
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : "error " + std::to_string(code);
}

inline Bio read_bio(std::string_view text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

inline std::string bio_text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return size > 0 ? std::string(data, static_cast<std::size_t>(size)) : std::string();
}

/// Runs an i2d function on `object`: its DER bytes, empty on failure.
template <typename Function, typename T>
std::string to_der(Function i2d, T* object) {
  unsigned char* data = nullptr;
  const int size = i2d(object, &data);
  std::string der = size > 0 ? std::string(reinterpret_cast<char*>(data), static_cast<std::size_t>(size)) : std::string();
  OPENSSL_free(data);
  return der;
}

}  // namespace skerry::openssl
