// Any bytes as a holder's policy: refused with the line, or a policy whose numbers are within their bounds.
#include "client/daemon/policy/policy.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto policy = skerry::client::parse_policy({reinterpret_cast<const char*>(data), size}, "policy.toml");
  if (!policy.ok()) {
    if (policy.error().message.empty() || policy.error().message.size() > 5000) std::abort();
    return 0;
  }
  if (policy->threads == 0 || policy->trainers == 0) std::abort();
  if (!std::isfinite(policy->maximum_update_norm) || policy->maximum_update_norm < 0) std::abort();
  return 0;
}
