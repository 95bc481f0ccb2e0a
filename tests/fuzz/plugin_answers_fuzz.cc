// What a plug-in's helper answers: whatever it says, it is either refused with a sentence or within its bounds.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "server/plugin/answers.h"
#include "server/plugin/wire.h"

namespace {

using namespace skerry;
using namespace skerry::server;

void require(bool kept) {
  if (!kept) std::abort();
}

template <typename T>
bool read(const Result<T>& result) {
  if (!result.ok()) require(!result.error().message.empty() && result.error().message.size() < 1000);
  return result.ok();
}

void try_pass(std::string_view text, std::size_t rows, std::size_t tensors) {
  std::vector<double> numbers(text.size() / sizeof(double));
  if (!numbers.empty()) std::memcpy(numbers.data(), text.data(), numbers.size() * sizeof(double));
  for (const std::string_view json : {text, std::string_view(R"({"pass": "linear"})")}) {
    const auto pass = parse_pass(json, numbers, rows, tensors);
    if (!read(pass)) continue;
    if (const auto* shape = std::get_if<TableShape>(&*pass))
      require(shape->rows > 0 && shape->columns > 0 && shape->rows * shape->columns <= plugin_wire::kSumBytes / sizeof(double));
    if (const auto* linear = std::get_if<strategies::LinearOutput>(&*pass)) {
      require(linear->coefficients.size() == rows || linear->coefficients.size() == rows * tensors);
      for (const double value : linear->coefficients) require(std::isfinite(value));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto description = parse_description(text);
  if (read(description)) {
    require(!description->name.empty() && !description->rules.empty());
    for (const strategies::PartInfo& rule : description->rules)
      require(strategies::resolve({rule.name, {}}, "aggregation", description->rules).ok());
  }
  const auto made = parse_made_rule(text);
  if (read(made)) require(made->needs.minimum_updates >= 1 && made->needs.maximum_updates >= made->needs.minimum_updates);
  try_pass(text, size % 7 + 1, size % 3);
  return 0;
}
