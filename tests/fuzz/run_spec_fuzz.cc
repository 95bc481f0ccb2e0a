// Any bytes as a run spec: an operator's TOML file, or the resolved document that a daemon receives. What is accepted has
// one canonical form, which reads again as itself, and a policy can judge it.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include <nlohmann/json.hpp>

#include "client/daemon/policy/judge.h"
#include "common/config/run_spec.h"
#include "common/model/layout.h"
#include "strategies/catalogue.h"
#include "strategies/combination.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

template <typename T>
bool read(const skerry::Result<T>& result) {
  if (!result.ok()) require(!result.error().message.empty() && result.error().message.size() < 5000);
  return result.ok();
}

void try_spec(const skerry::RunSpec& spec) {
  require(spec.hash.size() == 64);
  const auto again = skerry::parse_resolved_spec(spec.canonical_json);
  require(again.ok() && again->hash == spec.hash && again->canonical_json == spec.canonical_json);
  const auto model = nlohmann::json::parse(spec.model_json);
  const auto layout = skerry::build_layout(model);
  require(layout.ok());
  std::uint64_t elements = 0;
  for (const auto& tensor : layout->tensors) elements += tensor.elements;
  require(elements == layout->parameters);
  read(skerry::strategies::check_combination(spec));
  (void)skerry::strategies::combination_notes(spec);
  require(!skerry::client::judge(skerry::client::Policy{}, spec, {}, "").allowed());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto written = skerry::parse_run_spec(text, skerry::strategies::spec_catalogue());
  if (read(written)) try_spec(*written);
  const auto resolved = skerry::parse_resolved_spec(text);
  if (read(resolved)) try_spec(*resolved);
  return 0;
}
