#include "client/daemon/policy/policy.h"

#include <catch2/catch.hpp>

#include <algorithm>

#include "client/daemon/policy/judge.h"

using namespace skerry;
using namespace skerry::client;

namespace {

Policy generous() {
  auto policy = parse_policy(R"(
coordinators = ["c0ffee"]
[allow]
purposes = ["language-*"]
architectures = ["linear"]
max_parameters = 1000
metrics = ["loss"]
encodings = ["f32"]
[[data]]
set = "table"
purposes = ["language-model"]
[privacy]
minimum_examples = 100
)",
                             "policy.toml");
  REQUIRE(policy.ok());
  return *policy;
}

RunSpec spec() {
  RunSpec spec;
  spec.purpose = "language-model";
  spec.model_json = R"({"architecture":"linear","inputs":4,"outputs":2})";
  spec.data.kind = "csv";
  spec.data.schema_json = R"({"classes":2,"features":["a","b","c","d"],"label":"y"})";
  spec.data.train_split = "train";
  spec.exchange.up = "f32";
  return spec;
}

DataSet table() {
  DataSet set;
  set.name = "table";
  set.kind = "csv";
  set.schema_json = spec().data.schema_json;
  set.total = 1000;
  return set;
}

bool refused_by(const Verdict& verdict, const std::string& rule) {
  return std::any_of(verdict.rules.begin(), verdict.rules.end(), [&](const auto& one) { return one.rule == rule && !one.allowed; });
}

Verdict judged(const Policy& policy, const RunSpec& run, const DataSet& set) { return judge(policy, run, std::vector{set}, "c0ffee"); }

}  // namespace

TEST_CASE("an empty policy allows nothing") {
  const auto policy = parse_policy("", "policy.toml");
  REQUIRE(policy.ok());
  const auto verdict = judged(*policy, spec(), table());
  CHECK_FALSE(verdict.allowed());
  for (const char* rule : {"coordinators", "allow.purposes", "allow.architectures", "allow.max_parameters", "allow.encodings", "data"})
    CHECK(refused_by(verdict, rule));
}

TEST_CASE("the template that join writes is a valid policy and allows nothing but the coordinator") {
  const auto policy = parse_policy(policy_template("c0ffee"), "policy.toml");
  REQUIRE(policy.ok());
  const auto verdict = judged(*policy, spec(), table());
  CHECK_FALSE(verdict.allowed());
  CHECK_FALSE(refused_by(verdict, "coordinators"));
  CHECK(refused_by(verdict, "allow.purposes"));
}

TEST_CASE("a run within every rule is allowed and matched with its data set") {
  const auto verdict = judged(generous(), spec(), table());
  for (const auto& rule : verdict.rules) INFO(rule.rule << ": " << rule.explanation);
  CHECK(verdict.allowed());
  CHECK(verdict.data_set == "table");
  CHECK(verdict.examples.at("train") == 900);
  CHECK(verdict.examples.at("holdout") == 100);
}

TEST_CASE("each rule refuses by itself") {
  CHECK(refused_by(judge(generous(), spec(), std::vector{table()}, "other"), "coordinators"));
  auto run = spec();
  run.purpose = "advertising";
  CHECK(refused_by(judged(generous(), run, table()), "allow.purposes"));
  run = spec();
  run.model_json = R"({"architecture":"mlp","inputs":4,"hidden":[3],"outputs":2})";
  CHECK(refused_by(judged(generous(), run, table()), "allow.architectures"));
  run = spec();
  run.model_json = R"({"architecture":"linear","inputs":4000,"outputs":2})";
  CHECK(refused_by(judged(generous(), run, table()), "allow.max_parameters"));
  run = spec();
  run.exchange.up = "bf16";
  CHECK(refused_by(judged(generous(), run, table()), "allow.encodings"));
}

TEST_CASE("data is matched by purpose, kind, schema and number of examples, and the reason names the difference") {
  const auto why = [](const RunSpec& run, const DataSet& set) {
    const auto verdict = judged(generous(), run, set);
    CHECK(refused_by(verdict, "data"));
    for (const auto& rule : verdict.rules)
      if (rule.rule == "data") return rule.explanation;
    return std::string();
  };
  auto run = spec();
  run.purpose = "language-study";
  CHECK_THAT(why(run, table()), Catch::Contains("may not serve purpose"));
  run = spec();
  run.data.kind = "idx";
  CHECK_THAT(why(run, table()), Catch::Contains("is of kind csv"));
  run = spec();
  run.data.schema_json = R"({"classes":3,"features":["a","b","c","d"],"label":"y"})";
  CHECK_THAT(why(run, table()), Catch::Contains("has schema"));
  auto small = table();
  small.total = 50;
  CHECK_THAT(why(spec(), small), Catch::Contains("45 examples"));
}

TEST_CASE("a run of text takes text however it lies there, cut by a tokenizer that the policy allows") {
  const std::string id = "b2-" + std::string(64, 'a');
  Policy policy = generous();
  policy.architectures = {"transformer"};
  policy.max_parameters = 1'000'000;
  RunSpec run = spec();
  run.model_json = R"({"architecture":"transformer","layers":1,"width":16,"heads":2,"kv_heads":2,"context":4,"vocabulary":300})";
  run.data.kind = "text";
  run.data.schema_json = R"({"encoding":"bytes"})";
  run.data.tokenizer = "bytes";
  const auto set = [](const std::string& kind, const std::string& schema) {
    DataSet one = table();
    one.kind = kind;
    one.schema_json = schema;
    one.total = 10'000;
    return one;
  };
  const DataSet files = set("text", R"({"encoding":"bytes"})"), lines = set("jsonl", R"({"field":"body"})");
  CHECK(judged(policy, run, files).allowed());
  CHECK(judged(policy, run, lines).allowed());
  CHECK(judged(policy, run, set("tokens", R"({"tokenizer":"bytes"})")).allowed());
  CHECK(refused_by(judged(policy, run, set("tokens", "{\"tokenizer\":\"" + id + "\"}")), "data"));
  CHECK(refused_by(judged(policy, run, table()), "data"));

  run.data.tokenizer = id;
  CHECK(refused_by(judged(policy, run, files), "allow.tokenizers"));
  policy.tokenizers = {"b2-*"};
  CHECK(judged(policy, run, files).allowed());
  CHECK(judged(policy, run, set("tokens", "{\"tokenizer\":\"" + id + "\"}")).allowed());

  policy.tokenizers = {"bytes"};
  run.data.tokenizer = "bytes";
  run.model_json = R"({"architecture":"transformer","layers":1,"width":16,"heads":2,"kv_heads":2,"context":4,"vocabulary":256})";
  CHECK(judged(policy, run, files).allowed());
  CHECK(refused_by(judged(policy, run, lines), "data"));  // its end-of-text token has no place
}

TEST_CASE("a holder reads what leaves and what stays, and a metric that the run needs must be allowed") {
  RunSpec run = spec();
  run.model_json = R"({"architecture":"mlp","inputs":4,"outputs":2,"hidden":[5],"control":true,"personal":["layers.1.*"],
                       "frozen":["layers.0.bias"]})";
  Policy policy = generous();
  policy.architectures.push_back("mlp");
  const auto explanation = [](const Verdict& verdict, const std::string& rule) {
    for (const auto& one : verdict.rules)
      if (one.rule == rule) return one.explanation;
    return std::string();
  };
  const Verdict verdict = judged(policy, run, table());
  CHECK(verdict.allowed());
  CHECK(explanation(verdict, "exchange") ==
        "an update holds the change of 20 parameters and as many control variates (the mean of this node's gradients); 12 personal "
        "parameters are trained here and never leave; 5 parameters are not trained");
  CHECK(explanation(judged(policy, spec(), table()), "exchange") == "an update holds the change of 10 parameters");

  run.training.start_loss = true;
  CHECK(refused_by(judged(policy, run, table()), "allow.metrics"));
  policy.metrics.push_back("start_*");
  CHECK(judged(policy, run, table()).allowed());
}

TEST_CASE("a coordinator hears of a refusal only what the policy lets it hear") {
  auto run = spec();
  run.purpose = "advertising";
  const auto verdict = judged(generous(), run, table());
  CHECK(verdict.reasons(Policy::Telling::kNone) == std::vector<std::string>{"refused by the holder's policy"});
  CHECK_THAT(verdict.reasons(Policy::Telling::kCode).front(), Catch::Contains("allow.purposes") && !Catch::Contains("language"));
  CHECK_THAT(verdict.reasons(Policy::Telling::kFull).front(), Catch::Contains("language-*"));
}

TEST_CASE("mistakes in a policy name the file and the line") {
  const auto message = [](const char* text) {
    const auto policy = parse_policy(text, "policy.toml");
    REQUIRE_FALSE(policy.ok());
    return policy.error().message;
  };
  CHECK_THAT(message("[allow]\npurpose = [\"x\"]"), Catch::Contains("policy.toml line 2") && Catch::Contains("unknown key allow.purpose"));
  CHECK_THAT(message("[limits]\n\nthreads = 0"), Catch::Contains("line 3") && Catch::Contains("limits.threads"));
  CHECK_THAT(message("[trainer]\nsandbox = \"jail\""), Catch::Contains("bubblewrap"));
  CHECK_THAT(message("hours = [\"Monday\"]"), Catch::Contains("Monday"));
  CHECK_THAT(message("[trainer]\ncommand = [\"python3\"]"), Catch::Contains("absolute"));
  CHECK_THAT(message("[allow]\nencodings = [\"f7\"]"), Catch::Contains("f7"));
  CHECK_THAT(message("x = ["), Catch::Contains("line 1"));
}

TEST_CASE("an island has no network unless the policy names its address, and workers elsewhere need one") {
  const auto island = [](const std::string& lines) { return parse_policy("hours = []\n[island]\n" + lines, "policy.toml"); };
  CHECK(parse_policy("", "policy.toml")->island_arguments().empty());
  CHECK(island("workers = 1\n")->island_arguments().empty());
  CHECK(island("workers = 3\n")->island_arguments() == std::vector<std::string>{"--island-size", "3", "--island-local", "3"});
  CHECK(island("workers = 3\n")->island_address.empty());
  CHECK(island("workers = 3\naddress = \"10.0.0.1:29400\"\nlocal = 2\n")->island_arguments() ==
        std::vector<std::string>{"--island-size", "3", "--island-local", "2", "--island-address", "10.0.0.1:29400"});
  const auto mistake = [&](const std::string& lines) {
    auto policy = island(lines);
    REQUIRE_FALSE(policy.ok());
    return policy.error().message;
  };
  CHECK_THAT(mistake("workers = 3\nlocal = 1\n"), Catch::Contains("policy.toml line 4: island.local leaves 2 workers to other machines"));
  CHECK_THAT(mistake("workers = 3\naddress = \"gpu-1:29400\"\n"), Catch::Contains("line 4: island.address is \"gpu-1:29400\""));
  CHECK_THAT(mistake("workers = 2\nlocal = 3\n"), Catch::Contains("line 4: island.local must be a whole number in [1, 2]"));
  CHECK_THAT(mistake("processes = 2\n"), Catch::Contains("unknown key island.processes"));
}

TEST_CASE("patterns: a star stands for any characters") {
  CHECK(fits("*", ""));
  CHECK(fits("language-*", "language-model"));
  CHECK(fits("a*b*c", "axxbyyc"));
  CHECK_FALSE(fits("language-*", "speech"));
  CHECK_FALSE(fits("abc", "abcd"));
  CHECK_FALSE(fits("", "a"));
}

TEST_CASE("hours: days, times, and spans past midnight") {
  const auto hours = Hours::parse({"Mon-Fri 18:00-08:00", "Sun"});
  REQUIRE(hours.ok());
  CHECK(hours->open_at(1, 20 * 60));        // Monday evening
  CHECK(hours->open_at(2, 7 * 60));         // Tuesday early, from Monday
  CHECK_FALSE(hours->open_at(3, 12 * 60));  // Wednesday noon
  CHECK(hours->open_at(6, 7 * 60));         // Saturday early, from Friday
  CHECK_FALSE(hours->open_at(6, 12 * 60));
  CHECK(hours->open_at(0, 12 * 60));        // Sunday
  CHECK_FALSE(hours->open_at(1, 7 * 60));   // Monday early: Sunday's span ends at midnight
  CHECK(Hours::parse({})->open_at(3, 0));
  CHECK_FALSE(Hours::parse({"25:00-26:00"}).ok());
  CHECK_FALSE(Hours::parse({"Mon-Xyz"}).ok());
}
