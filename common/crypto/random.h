// Random bytes for keys, secrets and serial numbers, from OpenSSL's generator.
#pragma once

#include <cstddef>
#include <string>

#include "common/base/result.h"

namespace skerry {

/// `count` unpredictable bytes. INTERNAL where the operating system has no randomness to give.
Result<std::string> random_secret(std::size_t count);

/// Overwrites the characters of `secret` so that the compiler cannot leave it out, and empties it.
void cleanse(std::string& secret);

}  // namespace skerry
