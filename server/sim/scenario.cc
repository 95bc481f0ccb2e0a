#include "server/sim/scenario.h"

#include <toml++/toml.h>

#include <cmath>
#include <sstream>

#include "common/os/files.h"
#include "server/sim/text_form.h"

namespace skerry::sim {
namespace {

constexpr std::uint64_t kMaxScenarioBytes = 1 << 20;

Result<double> number_in(const std::string& text, double low, double high) {
  const auto value = parse_number(text);
  if (value.ok() && *value >= low && *value <= high) return *value;
  char range[80];
  std::snprintf(range, sizeof range, "\" must be a number from %g to %g", low, high);
  return invalid_argument("\"" + text + range);
}

template <typename T>
Result<void> take_whole(T& into, const std::string& text, double low, double high) {
  SKERRY_ASSIGN(const double value, number_in(text, low, high));
  if (value != std::floor(value)) return invalid_argument("\"" + text + "\" must be a whole number");
  into = static_cast<T>(value);
  return {};
}

Result<void> take_number(double& into, const std::string& text, double low, double high) {
  SKERRY_ASSIGN(into, number_in(text, low, high));
  return {};
}

// The test data: a share below 1, or a path.
Result<void> take_test(Scenario& scenario, const std::string& text) {
  if (const auto share = parse_number(text); share.ok()) {
    scenario.test_path.clear();
    return take_number(scenario.test_share, text, 0, 0.9);
  }
  scenario.test_path = text;
  scenario.test_share = 0;
  return {};
}

constexpr Setting kSettings[] = {
    {"data", "PATH", "the data, of the run spec's kind: a file or a directory",
     [](Scenario& s, const std::string& t) -> Result<void> { return s.data = t, Result<void>{}; }},
    {"clients", "N", "how many clients there are (10)",
     [](Scenario& s, const std::string& t) { return take_whole(s.clients, t, 1, 100'000); }},
    {"partition", "HOW",
     "iid | dirichlet:ALPHA | shards:N | labels:N | power:BETA | linear:RATIO, each with ,MINIMUM rows | files (iid)",
     [](Scenario& s, const std::string& t) -> Result<void> {
       SKERRY_ASSIGN(s.partition, parse_partition(t));
       return {};
     }},
    {"examples", "N", "use only the first N rows of the data (all)",
     [](Scenario& s, const std::string& t) { return take_whole(s.examples, t, 0, 1e15); }},
    {"initial", "FILE", "a model to start from, instead of model.initial: a safetensors file",
     [](Scenario& s, const std::string& t) -> Result<void> { return s.initial = t, Result<void>{}; }},
    {"tokenizer", "FILE", "cut text by this SentencePiece model, as data.tokenizer would (bytes)",
     [](Scenario& s, const std::string& t) -> Result<void> { return s.tokenizer = t, Result<void>{}; }},
    {"holdout", "SHARE", "the part of each client's rows that it measures on (0.1)",
     [](Scenario& s, const std::string& t) { return take_number(s.holdout, t, 0, 0.9); }},
    {"test", "SHARE|PATH", "measure every new version on the data's last part, or on other data",
     [](Scenario& s, const std::string& t) { return take_test(s, t); }},
    {"test_every", "N", "exchanges from one such test to the next; the last model is always tested (1)",
     [](Scenario& s, const std::string& t) { return take_whole(s.test_every, t, 1, 1e9); }},
    {"trusted_examples", "N", "rows of the node that aggregation.trusted names (100)",
     [](Scenario& s, const std::string& t) { return take_whole(s.trusted_examples, t, 1, 1e9); }},
    {"step_seconds", "SECONDS", "virtual time of an inner step at speed 1 (0.05)",
     [](Scenario& s, const std::string& t) { return take_number(s.step_seconds, t, 0, 1e6); }},
    {"speed", "HOW", "constant:X | uniform:FROM,TO | lognormal:SIGMA | file:CSV (constant:1)",
     [](Scenario& s, const std::string& t) -> Result<void> {
       SKERRY_ASSIGN(s.speed, parse_speed(t));
       return {};
     }},
    {"up_mbps", "MBIT", "rate of a client's line upward; 0: bytes take no time (0)",
     [](Scenario& s, const std::string& t) { return take_number(s.pace.up_mbps, t, 0, 1e9); }},
    {"down_mbps", "MBIT", "and downward (0)",
     [](Scenario& s, const std::string& t) { return take_number(s.pace.down_mbps, t, 0, 1e9); }},
    {"latency_ms", "MS", "time of any message (0)",
     [](Scenario& s, const std::string& t) { return take_number(s.pace.latency_ms, t, 0, 1e9); }},
    {"availability", "HOW", "always | random:CHANCE | on_off:SECONDS,SECONDS | file:CSV (always)",
     [](Scenario& s, const std::string& t) -> Result<void> {
       SKERRY_ASSIGN(s.availability, parse_availability(t));
       return {};
     }},
    {"dropout", "CHANCE", "that a client gives up a task in its middle (0)",
     [](Scenario& s, const std::string& t) { return take_number(s.dropout, t, 0, 1); }},
    {"drop_updates", "CHANCE", "that an update is lost on its way (0)",
     [](Scenario& s, const std::string& t) { return take_number(s.drop_updates, t, 0, 1); }},
    {"kill", "N", "after every N exchanges one client is killed, and a fresh one with its data comes instead (0: never)",
     [](Scenario& s, const std::string& t) { return take_whole(s.kill_every, t, 0, 1e9); }},
    {"attack", "KIND:COUNT[,S]",
     "sign_flip | noise | ipm | alie | label_flip | free_rider | model_replacement; COUNT clients or a share; S: strength",
     [](Scenario& s, const std::string& t) -> Result<void> {
       SKERRY_ASSIGN(s.attack, parse_attack(t));
       return {};
     }},
    {"threads", "N", "of each client's trainer: as limits.threads in a holder's policy (1)",
     [](Scenario& s, const std::string& t) { return take_whole(s.threads, t, 1, 1024); }},
};

// What a key's value would be as a flag. Tables and lists have no such form.
std::string text_of(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  std::ostringstream out;
  node.visit([&](const auto& known) { out << known; });
  return out.str();
}

// Relative paths are meant from where the file lies.
void resolve_paths(Scenario& scenario, std::string_view key, const std::string& directory) {
  const auto resolve = [&](std::string& path) {
    if (!path.empty() && path.front() != '/') path = join_path(directory, path);
  };
  if (key == "data") resolve(scenario.data);
  if (key == "initial") resolve(scenario.initial);
  if (key == "test") resolve(scenario.test_path);
  if (key == "tokenizer") resolve(scenario.tokenizer);
  if (key == "speed") resolve(scenario.speed.path);
  if (key == "availability") resolve(scenario.availability.path);
}

}  // namespace

std::span<const Setting> settings() { return kSettings; }

std::string flag_of(const Setting& setting) {
  std::string flag = "--" + std::string(setting.name);
  for (char& c : flag)
    if (c == '_') c = '-';
  return flag;
}

Result<void> apply_scenario_file(const std::string& path, Scenario& scenario) {
  SKERRY_ASSIGN(const std::string text, read_file(path, kMaxScenarioBytes));
  try {
    const toml::table table = toml::parse(text, path);
    for (const auto& [key, node] : table) {
      const std::string where = path + " line " + std::to_string(node.source().begin.line) + ": ";
      const Setting* setting = nullptr;
      std::string known;
      for (const Setting& candidate : kSettings) {
        if (candidate.name == key.str()) setting = &candidate;
        known += (known.empty() ? "" : ", ") + std::string(candidate.name);
      }
      if (setting == nullptr) {
        return invalid_argument(where + "there is no setting \"" + std::string(key.str()) + "\"; known are " + known);
      }
      if (auto applied = setting->apply(scenario, text_of(node)); !applied.ok()) {
        return with_context(std::move(applied).error(), where + std::string(setting->name));
      }
      resolve_paths(scenario, setting->name, parent_directory(path));
    }
  } catch (const toml::parse_error& error) {
    return invalid_argument(path + " line " + std::to_string(error.source().begin.line) + ": " +
                            std::string(error.description()));
  }
  return {};
}

}  // namespace skerry::sim
