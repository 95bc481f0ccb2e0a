// Plug-ins, good and bad, in real helpers under the real engine.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#include "common/os/files.h"
#include "server/plugin/plugin.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

using strategies::Part;
using strategies::Rule;

PluginOptions options() {
  const char* programs = std::getenv("SKERRY_BIN");
  PluginOptions made;
  made.host_program = std::string(programs != nullptr ? programs : "bin") + "/skerry-plugin-host";
  made.threads = 2;
  made.environment = {"ASAN_OPTIONS=handle_segv=0:handle_abort=0:detect_leaks=0:allocator_may_return_null=1"};
  return made;
}

std::string built(const std::string& name) { return std::string(PLUGINS) + "/" + name + ".so"; }

PluginConfig config_of(const std::string& path, std::uint32_t deadline_ms = 10'000) {
  PluginConfig config = plugin_config(path).value();
  config.deadline_ms = deadline_ms;
  config.memory_mb = 256;
  return config;
}

std::shared_ptr<Plugin> load(const std::string& name = "test_rules", std::uint32_t deadline_ms = 10'000) {
  auto plugin = Plugin::load(config_of(built(name), deadline_ms), options());
  if (!plugin.ok()) FAIL(plugin.error().message);
  return std::move(plugin).value();
}

std::string refusal(const std::string& name, std::uint32_t deadline_ms = 10'000) {
  const auto plugin = Plugin::load(config_of(built(name), deadline_ms), options());
  REQUIRE(!plugin.ok());
  return plugin.error().message;
}

Result<Rule> make(Plugin& plugin, const Part& part) {
  SKERRY_ASSIGN(const Part resolved, strategies::resolve(part, "aggregation", plugin.description().rules));
  return plugin.make(resolved);
}

Part faulty(const std::string& how, const std::string& where) { return {"faulty", {{"how", how}, {"where", where}}}; }

World three_updates(Rule rule, std::size_t elements = 5) {
  World world(std::vector<float>(elements, 10.0f));
  for (unsigned k = 1; k <= 3; ++k) {
    std::vector<float> values(elements);
    for (std::size_t i = 0; i < elements; ++i) values[i] = static_cast<float>(k * k) * (i % 2 == 0 ? 1.0f : -1.0f);
    world.update("task-" + std::to_string(k), values, 1);
  }
  world.rule = std::move(rule);
  return world;
}

// How one exchange under this rule fails.
std::string failure(Plugin& plugin, const Part& part) {
  auto rule = make(plugin, part);
  if (!rule.ok()) return rule.error().message;
  AggregationEngine engine({2});
  const World world = three_updates(std::move(rule).value());
  const auto outcome = engine.reduce(world.job());
  REQUIRE(!outcome.ok());
  return outcome.error().message;
}

// The same plug-in goes on: 1, 4 and 9 are half way at 5, and SGD(1) takes that from 10.
void require_good_exchange(Plugin& plugin) {
  auto rule = make(plugin, {"midrange", {}});
  if (!rule.ok()) FAIL(rule.error().message);
  AggregationEngine engine({2});
  const World world = three_updates(std::move(rule).value());
  const auto outcome = engine.reduce(world.job());
  if (!outcome.ok()) FAIL(outcome.error().message);
  CHECK(values_of(outcome->fragment.bytes) == std::vector<float>{5, 15, 5, 15, 5});
}

TEST_CASE("a plug-in says who it is, and its parameters are checked like those of a built-in rule") {
  const auto plugin = load();
  CHECK(plugin->description().name == "test-rules");
  CHECK(plugin->description().version == "1.2.3");
  const auto rules = rules_with({plugin}).value();
  CHECK(rules.make({"midrange", {{"pull", 2.0}}}).error().message == "aggregation.pull is 2, must be in [0, 1]");
  CHECK(rules.make({"faulty", {{"where", std::string("here")}}}).error().message ==
        "aggregation.where is \"here\", must be one of make, next, add, reduce");
  const Rule rule = rules.make({"short_mean", {}}).value();
  CHECK(rule.needs.individual_updates);
  CHECK(rule.needs.minimum_updates == 2);
  CHECK(rule.waits);
  CHECK(rules.make({"weighted_mean", {}}).ok());
}

TEST_CASE("a rule of a plug-in carries the hash of the bytes that compute it, and runs with no others") {
  const auto plugin = load();
  const auto rules = rules_with({plugin}).value();
  const std::string hash = plugin->config().sha256;
  CHECK(std::get<std::string>(strategies::resolve({"midrange", {}}, "aggregation", rules.infos())->parameters.at("plugin")) == hash);
  const auto other = rules.make({"midrange", {{"plugin", std::string(64, '0')}}});
  CHECK(other.error().message == "aggregation.plugin is \"" + std::string(64, '0') + "\", must be one of " + hash);
}

TEST_CASE("two plug-ins cannot both bring a rule of one name") {
  const auto plugin = load();
  CHECK(rules_with({plugin, plugin}).error().message.find("there is an aggregation rule midrange already") != std::string::npos);
}

TEST_CASE("value by value, by statistics and with a state vector, a plug-in's rule gives what the engine would compute itself") {
  const auto plugin = load();
  require_good_exchange(*plugin);
  AggregationEngine engine({2});
  {
    const World world = three_updates(make(*plugin, {"short_mean", {}}).value());  // 1 and 4 × 1 fit, 9 does not: 1² ≤ 4 · 1², 4² > 4
    CHECK(values_of(engine.reduce(world.job())->fragment.bytes) == std::vector<float>{9, 11, 9, 11, 9});
  }
  World world = three_updates(make(*plugin, {"high_water", {}}).value());
  const auto first = engine.reduce(world.job()).value();
  CHECK(values_of(first.fragment.bytes) == std::vector<float>(5, 1.0f));
  world.state = first.state.bytes;
  world.payloads.resize(1);
  CHECK(values_of(engine.reduce(world.job())->fragment.bytes) == std::vector<float>(5, 1.0f));
}

TEST_CASE("a large fragment on several threads is the same with one") {
  const auto plugin = load();
  constexpr std::size_t kElements = 300'001;
  const auto bytes = [&](unsigned threads) {
    World world(some_values(kElements, 9));
    for (unsigned k = 0; k < 5; ++k) world.update("t" + std::to_string(k), some_values(kElements, k), 1);
    world.rule = make(*plugin, {"midrange", {{"pull", 0.25}}}).value();
    return AggregationEngine({threads}).reduce(world.job())->fragment.bytes;
  };
  const std::string one = bytes(1);
  CHECK(bytes(4) == one);
  const std::vector<float> values = values_of(one);
  const std::vector<float> base = some_values(kElements, 9);
  for (const std::size_t i : {std::size_t{0}, std::size_t{131'072}, kElements - 1}) {
    double low = 1e9, high = -1e9;
    for (unsigned k = 0; k < 5; ++k) {
      low = std::min<double>(low, some_values(kElements, k)[i]);
      high = std::max<double>(high, some_values(kElements, k)[i]);
    }
    CHECK(values[i] == base[i] - static_cast<float>((low + high) / 2 * 0.75 + double{base[i]} * 0.25));
  }
}

TEST_CASE("ten thousand updates cross in pieces") {
  const auto plugin = load();
  World world(std::vector<float>(3000, 1.0f));
  for (unsigned k = 0; k < 3000; ++k) world.update("t" + std::to_string(k), std::vector<float>(3000, static_cast<float>(k % 3)), 1);
  world.rule = make(*plugin, {"midrange", {}}).value();
  AggregationEngine engine({2});
  const auto outcome = engine.reduce(world.job());
  if (!outcome.ok()) FAIL(outcome.error().message);
  CHECK(values_of(outcome->fragment.bytes) == std::vector<float>(3000, 0.0f));
}

TEST_CASE("an object that is no plug-in of this version is refused with what is wrong with it") {
  CHECK(refusal("other_major").find("built for version 2.0 of the plug-in interface and this coordinator has 1.0: build it with this coordinator's SDK") != std::string::npos);
  CHECK(refusal("newer_minor").find("built for version 1.1 of the plug-in interface and this coordinator has 1.0: update the coordinator") != std::string::npos);
  CHECK(refusal("short_table").find("its skerry_plugin has " + std::to_string(sizeof(void*) * 7 + 8) + " bytes, version 1.0 has " + std::to_string(sizeof(void*) * 7 + 16)) != std::string::npos);
  CHECK(refusal("no_entry").find("exports no skerry_plugin_entry, so it is no plug-in") != std::string::npos);
  CHECK(refusal("null_table").find("skerry_plugin_entry returned nothing") != std::string::npos);
  CHECK(refusal("null_function").find("lacks a function") != std::string::npos);
  CHECK(refusal("undefined").find("it cannot be loaded: ") != std::string::npos);
  CHECK(refusal("undefined").find("undefined symbol") != std::string::npos);
  CHECK(refusal("bad_description").find("a rule of its description: name is \"Bad Rule\", must be a name of a-z, 0-9, '_' and '-'") != std::string::npos);
  CHECK(refusal("hangs_at_load", 300).find("its start: did not answer within 300 ms and was killed") != std::string::npos);
  CHECK(refusal("crashes_at_load").find("its start: its helper was killed by signal") != std::string::npos);
}

TEST_CASE("only the bytes whose hash the configuration names are loaded") {
  const test::TempDir directory;
  const std::string path = directory / "rules.so";
  REQUIRE(write_file_atomic(path, read_file(built("test_rules"), 1 << 28).value(), 0644).ok());
  PluginConfig config = config_of(path);
  const auto plugin = Plugin::load(config, options()).value();
  REQUIRE(write_file_atomic(path, "something else", 0644).ok());  // what is loaded was read before
  require_good_exchange(*plugin);

  const auto changed = Plugin::load(config, options());
  CHECK(changed.error().code == Code::kFailedPrecondition);
  CHECK(changed.error().message == "plug-in " + path + " has the SHA-256 " + plugin_config(path)->sha256 + ", server.toml says " + config.sha256 +
                                       ": if the change is yours, `skerry-server plugin check " + path + "` prints the lines to put there");
  config.sha256 = plugin_config(path)->sha256;
  CHECK(Plugin::load(config, options()).error().message.find("it cannot be loaded: ") != std::string::npos);

  const std::string link = directory / "link.so";
  REQUIRE(::symlink(built("test_rules").c_str(), link.c_str()) == 0);
  CHECK(plugin_config(link).error().message == "plug-in " + link + " is a symbolic link: name the file itself");
  CHECK(plugin_config(directory / "none.so").error().code == Code::kNotFound);
  CHECK(plugin_config(directory / "").error().message.find("is no regular file") != std::string::npos);
}

TEST_CASE("whatever a rule does wrong fails its exchange with a clear message, and the next exchange works") {
  const auto plugin = load("test_rules", 1'000);
  struct Fault {
    const char* how;
    const char* where;
    const char* message;
  };
  const Fault fault = GENERATE(values<Fault>({
      {"throw", "make", "faulty: the weather is bad"},
      {"refuse", "make", "faulty: such a rule cannot be made"},
      {"segfault", "make", "its helper was killed by signal 11"},
      {"wrong_needs", "make", "gave a wrong answer and was ended: what the rule needs: metrics is [\"\"], must be a list of different texts"},
      {"throw", "next", "faulty: the weather is bad"},
      {"throw_int", "next", "threw something that is no std::exception"},
      {"refuse", "next", "such a cohort cannot be aggregated"},
      {"segfault", "next", "its helper was killed by signal 11"},
      {"hang", "next", "did not answer within 1000 ms and was killed (deadline_ms in [[plugins]])"},
      {"nan", "next", "its coefficient 0 is not finite"},
      {"too_few", "next", "it gave 1 coefficients for 3 vectors"},
      {"giant", "next", "its table has 1073741824 x 1073741824 cells, must have from 1 to 4194304"},
      {"verbose", "next", "its answer is longer than"},
      {"endless", "next", "asked for more than 1000 passes"},
      {"exit", "next", "its helper exited with code 0"},
      {"throw", "add", "add: the weather is bad"},
      {"nan", "add", "cell 0 of its table is not finite"},
      {"too_few", "add", "its add changed the size of the table"},
      {"segfault", "add", "its helper was killed by signal 11"},
      {"throw", "reduce", "reduce: the weather is bad"},
      {"throw_int", "reduce", "threw something that is no std::exception"},
      {"segfault", "reduce", "reduce: its helper was killed by signal 11"},
      {"abort", "reduce", "its helper was killed by signal 6"},
      {"exit", "reduce", "its helper exited with code 0"},
      {"hang", "reduce", "reduce: did not answer within 1000 ms and was killed"},
      {"nan", "reduce", "a value of elements 0 to 4 is not finite"},
      {"close_sockets", "reduce", "its helper "},
  }));
  CAPTURE(fault.how, fault.where);
  const std::string message = failure(*plugin, faulty(fault.how, fault.where));
  INFO(message);
  CHECK(message.find(fault.message) != std::string::npos);
  if (std::string(fault.how) != "endless") CHECK(message.find("plug-in " + built("test_rules")) != std::string::npos);
  require_good_exchange(*plugin);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("a plug-in cannot reach the network, write files, start programs or threads, signal its coordinator or take all memory") {
  const auto plugin = load();
  CHECK(failure(*plugin, faulty("open_socket", "reduce")).find("no socket") != std::string::npos);
  CHECK(failure(*plugin, faulty("write_file", "reduce")).find("no file") != std::string::npos);
  CHECK(failure(*plugin, faulty("run_program", "reduce")).find("no process") != std::string::npos);
  CHECK(failure(*plugin, faulty("kill_parent", "reduce")).find("no signal") != std::string::npos);
  CHECK(failure(*plugin, faulty("start_thread", "reduce")).find("reduce: ") != std::string::npos);
  CHECK(failure(*plugin, faulty("eat_memory", "reduce")).find("std::bad_alloc") != std::string::npos);
  require_good_exchange(*plugin);
}
#endif

TEST_CASE("several exchanges may use one plug-in at once, also while one of them fails") {
  const auto plugin = load();
  std::vector<std::thread> threads;
  std::vector<std::string> wrong(4);
  for (std::size_t t = 0; t < wrong.size(); ++t)
    threads.emplace_back([&, t] {
      for (int round = 0; round < 20; ++round) {
        auto rule = make(*plugin, t == 0 ? faulty("throw", "reduce") : Part{"midrange", {}});
        if (!rule.ok()) return void(wrong[t] = rule.error().message);
        World world(std::vector<float>(5, 10.0f));
        world.update("a", std::vector<float>(5, 2.0f), 1);
        world.rule = std::move(rule).value();
        const auto outcome = AggregationEngine({1}).reduce(world.job());
        if (outcome.ok() != (t != 0)) wrong[t] = outcome.ok() ? "it did not fail" : outcome.error().message;
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& message : wrong) CHECK(message == "");
}

TEST_CASE("a plug-in whose helpers keep ending gets a rest") {
  const auto plugin = load();
  std::string last;
  for (int i = 0; i < 12; ++i) last = failure(*plugin, faulty("segfault", "reduce"));
  CHECK(last.find("ended 8 helpers within a minute and rests for as long") != std::string::npos);
}

}  // namespace
}  // namespace skerry::server
