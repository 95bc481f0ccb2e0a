// Checks an update's bytes before the coordinator accepts it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "server/aggregate/engine.h"
#include "strategies/aggregation/rule.h"

namespace skerry::server {

struct UpdateStatistics {
  double norm = 0;  ///< L2 norm of the decoded Δ
};

/// Decodes an update once, from the front to the end, and measures it. `maximum_norm` 0 means no limit; `tensors` (may be
/// empty) let errors name the tensor. The norm's bits do not depend on the machine.
///
/// INVALID_ARGUMENT: unknown encoding; a size that does not fit `elements`; the first value that is not finite, by element
/// and tensor; a norm above `maximum_norm` (both numbers are told).
/// DATA_LOSS, NOT_FOUND, …: the file could not be read.
Result<UpdateStatistics> validate_update(std::string_view encoding, const Payload& payload, std::uint64_t elements,
                                         double maximum_norm = 0, std::span<const strategies::TensorRange> tensors = {});

}  // namespace skerry::server
