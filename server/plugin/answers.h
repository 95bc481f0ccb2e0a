// What a plug-in's helper answers, read as what it is: text from a stranger. Everything is bounded, named and finite, or it is
// an INVALID_ARGUMENT that says what was wrong.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/result.h"
#include "server/plugin/plugin.h"

namespace skerry::server {

/// The answer to `describe`.
Result<PluginDescription> parse_description(std::string_view text);

/// The answer to `make`.
struct MadeRule {
  strategies::Needs needs;
  std::vector<std::string> state_vectors;
};
Result<MadeRule> parse_made_rule(std::string_view text);

/// The answer to `next`, where `rows` are the vectors a linear output combines (updates and state vectors) and `tensors`
/// those of the fragment, 0 where the rule does not need them.
struct TableShape {
  std::size_t rows = 0;
  std::size_t columns = 0;
};
struct ValuePass {};
using PassAnswer = std::variant<TableShape, strategies::LinearOutput, ValuePass>;
Result<PassAnswer> parse_pass(std::string_view text, std::span<const double> numbers, std::size_t rows, std::size_t tensors);

}  // namespace skerry::server
