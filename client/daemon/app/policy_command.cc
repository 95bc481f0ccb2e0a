// `skerry-client policy test`: what this holder's policy says about a run, without asking anybody.
#include <toml++/toml.h>

#include <cstdio>
#include <sstream>

#include <nlohmann/json.hpp>

#include "client/daemon/app/commands.h"
#include "client/daemon/app/daemon.h"
#include "client/daemon/policy/judge.h"
#include "common/identity/profile.h"
#include "common/os/files.h"

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxSpecBytes = 1 << 20;

/// A run spec as a file. Presets and the parts of strategies are the coordinator's and do not matter to a policy, so they are
/// taken as they are named; what the file leaves to them has the run spec's own defaults.
Result<RunSpec> read_toml(const std::string& text, const std::string& path) {
  try {
    toml::table file = toml::parse(text, path);
    SpecCatalogue catalogue;
    catalogue.presets.push_back({file["strategy"].value_or(std::string("any")), "", {}});
    catalogue.fallback_preset = catalogue.presets.front().name;
    for (const auto& [section, selector] : {std::pair{"aggregation", "rule"}, std::pair{"outer", "optimizer"}}) {
      const std::string name = file[section][selector].value_or(std::string("any"));
      file.erase(section);
      catalogue.parts.push_back({section, selector, name, {name}, {}});
    }
    auto* training = file["training"].as_table();
    if (training != nullptr && !training->contains("steps") && !training->contains("epochs")) training->insert("epochs", 1);
    std::ostringstream out;
    out << file;
    return parse_run_spec(out.str(), catalogue);
  } catch (const toml::parse_error& error) {
    return invalid_argument(path + " line " + std::to_string(error.source().begin.line) + ": " + std::string(error.description()));
  }
}

Result<RunSpec> read_spec(const std::string& path) {
  SKERRY_ASSIGN(std::string text, read_file(path, kMaxSpecBytes));
  if (!path.ends_with(".json")) return read_toml(text, path);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return parse_resolved_spec(text);
}

}  // namespace

int policy_test_command(const Home& home, const std::string& spec_path, bool as_json) {
  const auto test = [&]() -> Result<Verdict> {
    SKERRY_ASSIGN(const Policy policy, load_policy(home.policy()));
    SKERRY_ASSIGN(const Catalogue catalogue, Catalogue::load(home.catalogue()));
    SKERRY_ASSIGN(const RunSpec spec, read_spec(spec_path));
    std::string fingerprint;
    if (const auto profile = load_profile(home.path); profile.ok()) {
      SKERRY_ASSIGN(fingerprint, root_fingerprint(profile->ca_pem));
    }
    return judge(policy, spec, catalogue.sets(), fingerprint);
  };
  const auto verdict = test();
  if (!verdict.ok()) return report(verdict.error());
  if (as_json) {
    json rules = json::array();
    for (const auto& rule : verdict->rules) rules.push_back({{"rule", rule.rule}, {"allowed", rule.allowed}, {"explanation", rule.explanation}});
    std::printf("%s\n", json{{"allowed", verdict->allowed()},
                             {"data_set", verdict->data_set},
                             {"examples", verdict->examples},
                             {"parameters", verdict->parameters},
                             {"rules", std::move(rules)}}
                            .dump(2)
                            .c_str());
  } else {
    std::vector<std::vector<std::string>> rows;
    for (const auto& rule : verdict->rules) rows.push_back({rule.allowed ? "allowed" : "REFUSED", rule.rule, rule.explanation});
    std::printf("%s\nThe run is %s.\n", table_text(rows).c_str(),
                verdict->allowed() ? "allowed" : ("refused; to allow it, change " + home.policy() + " where it says REFUSED").c_str());
  }
  return verdict->allowed() ? kExitOk : kExitRefused;
}

}  // namespace skerry::client
