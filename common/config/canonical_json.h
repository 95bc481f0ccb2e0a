// JSON in its one canonical form (RFC 8785), so that equal documents have equal bytes and one hash.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "common/base/result.h"

namespace skerry {

/// A number as ECMAScript prints it: the shortest digits that read back the same. `value` must be finite.
std::string canonical_number(double value);

/// The RFC 8785 form: members sorted by UTF-16 code units, no white space, numbers as canonical_number, shortest
/// escapes.
///
/// INVALID_ARGUMENT for a NaN or infinity, an integer beyond ±(2^53 − 1), text that is not UTF-8, or nesting deeper
/// than 64.
Result<std::string> canonical_json(const nlohmann::json& document);

}  // namespace skerry
