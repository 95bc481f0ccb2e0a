// `skerry strategy`, as an operator without a coordinator sees it.
#include <string>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/config/run_spec.h"
#include "strategies/catalogue.h"
#include "strategies/combination.h"
#include "strategies/presets.h"
#include "tests/integration/ctl/printed.h"

using namespace skerry;
using nlohmann::json;

TEST_CASE("strategy list has a line for every preset") {
  const auto printed = skerry_prints("strategy list");
  CHECK(printed.code == 0);
  for (const auto& preset : strategies::presets()) CHECK(contains(printed.text, "\n" + preset.name + "  "));
}

TEST_CASE("strategy show prints the parts, their parameters, the source and a run spec to start from") {
  const auto printed = skerry_prints("strategy show diloco");
  CHECK(printed.code == 0);
  for (const char* part : {"arXiv 2311.08105", "Language models on a few strong islands", "Participation", "Exchange",
                           "Aggregation: weighted_mean", "Outer optimizer: nesterov", "Evaluation", "* outer.momentum",
                           "number ≥ 0, < 1", "strategy = \"diloco\""})
    CHECK(contains(printed.text, part));
}

TEST_CASE("the run spec that strategy show --json gives for every preset can be submitted") {
  for (const auto& preset : strategies::presets()) {
    const auto printed = skerry_prints("strategy show " + preset.name + " --json");
    REQUIRE(printed.code == 0);
    const json shown = json::parse(printed.text);
    CHECK(shown.at("rule") == preset.aggregation.name);
    const auto spec = parse_run_spec(shown.at("run_spec").get<std::string>(), strategies::spec_catalogue());
    if (!spec.ok()) FAIL(spec.error().message);
    CHECK(strategies::check_combination(*spec).ok());
  }
}

TEST_CASE("every parameter in JSON has its type, range, default and value") {
  const json shown = json::parse(skerry_prints("--json strategy show fedadam").text);
  bool found = false;
  for (const json& parameter : shown.at("parameters")) {
    if (parameter.at("path") != "outer.beta2") continue;
    found = true;
    CHECK(parameter.at("type") == "number");
    CHECK(parameter.at("value") == 0.99);
    CHECK(parameter.at("set") == true);
    CHECK(parameter.at("minimum") == 0);
    CHECK(parameter.at("maximum") == 1);
    CHECK(parameter.at("below_maximum") == true);
  }
  CHECK(found);
}

TEST_CASE("rules and optimizers are listed and shown by name") {
  const auto rules = skerry_prints("strategy rules");
  CHECK(rules.code == 0);
  CHECK(contains(rules.text, "\ngeometric_median "));
  CHECK(contains(rules.text, "n >= 4f + 3 with f = 1"));
  const auto optimizers = skerry_prints("strategy optimizers");
  CHECK(contains(optimizers.text, "\nyogi "));
  CHECK(contains(skerry_prints("strategy show trimmed_mean").text, "aggregation.trim"));
  CHECK(contains(skerry_prints("strategy show delayed_nesterov").text, "optimizer = \"delayed_nesterov\""));
}

TEST_CASE("a name that is nothing is an error with its own exit code") {
  const auto printed = skerry_prints("strategy show fedsgd");
  CHECK(printed.code == 5);
  CHECK(contains(printed.text, "there is no strategy, rule or optimizer 'fedsgd'"));
}

TEST_CASE("shell completion knows the strategy commands") {
  const auto printed = skerry_prints("completion");
  CHECK(contains(printed.text, "\"skerry strategy\") words=\"list rules optimizers show "));
}
