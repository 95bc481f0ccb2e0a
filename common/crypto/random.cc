#include "common/crypto/random.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include "common/crypto/openssl_internal.h"

namespace skerry {

Result<std::string> random_secret(std::size_t count) {
  std::string secret(count, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(secret.data()), static_cast<int>(count)) != 1)
    return internal_error("cannot draw " + std::to_string(count) + " random bytes: " + openssl::last_reason());
  return secret;
}

void cleanse(std::string& secret) {
  OPENSSL_cleanse(secret.data(), secret.size());
  secret.clear();
}

}  // namespace skerry
