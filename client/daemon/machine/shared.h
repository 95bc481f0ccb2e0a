// What the files of the client machine share.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "common/base/result.h"

namespace skerry::client {

inline constexpr std::uint64_t kGreetingMs = 30'000;  // until the welcome

inline Error error_of(Code code, std::string message, bool retryable = false) { return {code, std::move(message), retryable}; }

}  // namespace skerry::client
