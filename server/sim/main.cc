// skerry-sim: a run with virtual clients, in one process and on a virtual clock.
#include <CLI/CLI.hpp>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/config/run_spec.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "server/plugin/plugin.h"
#include "server/sim/results.h"
#include "server/sim/scenario.h"
#include "server/sim/simulation.h"
#include "strategies/catalogue.h"

namespace {

using namespace skerry;
using namespace skerry::sim;

constexpr std::uint64_t kMaxSpecBytes = 1 << 20;
constexpr int kDone = 0, kFailed = 1, kUsage = 2, kInterrupted = 130;

std::atomic<bool> stop_asked{false};

// The first asks for an end with the results so far, the second is the default's.
void on_signal(int signal) {
  stop_asked = true;
  std::signal(signal, SIG_DFL);
}

struct Arguments {
  std::string spec, scenario, out, scratch;
  std::map<std::string, std::string> settings;  ///< by name
  std::vector<std::string> overrides;           ///< KEY=VALUE of the run spec
  std::vector<std::string> plugins;             ///< shared objects with rules
  std::optional<std::uint64_t> seed, rounds;
  unsigned workers = std::max(1u, std::thread::hardware_concurrency());
  bool json = false, csv = false, quiet = false, verbose = false;
};

/// A directory of its own, gone at the end.
class Scratch {
 public:
  static Result<Scratch> make(std::string parent) {
    if (parent.empty()) {
      const char* temporary = std::getenv("TMPDIR");
      // Memory is the best place: nothing in it is meant to last.
      parent = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : temporary != nullptr ? temporary : "/tmp";
    }
    Scratch made;
    made.path_ = join_path(parent, "skerry-sim-XXXXXX");
    if (::mkdtemp(made.path_.data()) == nullptr) {
      made.path_.clear();
      return invalid_argument("--scratch: no directory can be made in " + parent);
    }
    return made;
  }
  Scratch(Scratch&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() {
    if (!path_.empty()) (void)remove_tree(path_).ok();
  }
  const std::string& path() const { return path_; }

 private:
  Scratch() = default;
  std::string path_;
};

// Puts "outer.momentum=0.9" into a run spec's table. What is no TOML value is a text.
Result<void> override_value(toml::table& table, const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) return invalid_argument("--set " + text + ": must be KEY=VALUE, for example outer.momentum=0.9");
  toml::table* section = &table;
  std::string key = text.substr(0, equals);
  for (std::size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.')) {
    const std::string name = key.substr(0, dot);
    key = key.substr(dot + 1);
    if (!section->contains(name)) section->insert(name, toml::table{});
    section = (*section)[name].as_table();
    if (section == nullptr) return invalid_argument("--set " + text + ": \"" + name + "\" is no section");
  }
  const std::string value = text.substr(equals + 1);
  try {
    const toml::table parsed = toml::parse("value = " + value);
    section->insert_or_assign(key, *parsed.get("value"));
  } catch (const toml::parse_error&) {
    section->insert_or_assign(key, value);
  }
  return {};
}

Result<RunSpec> load_spec(const Arguments& arguments, const Scenario& scenario, const strategies::RuleCatalogue& rules) {
  SKERRY_ASSIGN(std::string text, read_file(arguments.spec, kMaxSpecBytes));
  std::vector<std::string> overrides = arguments.overrides;
  if (!scenario.initial.empty()) {
    SKERRY_ASSIGN(const MappedFile model, MappedFile::open(scenario.initial));
    overrides.push_back("model.initial=" + content_id(model.bytes()));
  }
  if (!scenario.tokenizer.empty()) {
    SKERRY_ASSIGN(const MappedFile model, MappedFile::open(scenario.tokenizer));
    overrides.push_back("data.tokenizer=" + content_id(model.bytes()));
  }
  if (arguments.seed) overrides.push_back("seed=" + std::to_string(*arguments.seed));
  if (arguments.rounds) overrides.push_back("stop.rounds=" + std::to_string(*arguments.rounds));
  if (!overrides.empty()) {
    try {
      toml::table table = toml::parse(text, arguments.spec);
      for (const std::string& change : overrides) SKERRY_TRY(override_value(table, change));
      std::ostringstream changed;
      changed << table;
      text = changed.str();
    } catch (const toml::parse_error& error) {
      return invalid_argument(arguments.spec + " line " + std::to_string(error.source().begin.line) + ": " + std::string(error.description()));
    }
  }
  auto spec = parse_run_spec(text, strategies::spec_catalogue(rules));
  if (spec.ok()) return spec;
  Error error = std::move(spec).error();
  // The lines of a changed text are not the file's.
  constexpr std::string_view kPrefix = "run spec line ";
  if (error.message.starts_with(kPrefix)) {
    const std::string rest = error.message.substr(kPrefix.size());
    error.message = overrides.empty() ? arguments.spec + " line " + rest
                                      : arguments.spec + " with --set, --seed or --rounds:" + rest.substr(std::min(rest.size(), rest.find(':') + 1));
  } else {
    error.message = arguments.spec + ": " + error.message;
  }
  return error;
}

// A line after an exchange, at most one a second; on a terminal one that is written anew.
class Reporter {
 public:
  void operator()(const Progress& progress) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(terminal_ ? 100 : 1000)) return;
    last_ = now;
    std::string line = "round " + std::to_string(progress.round);
    if (progress.rounds > 0) line += " of " + std::to_string(progress.rounds);
    char text[96];
    std::snprintf(text, sizeof text, ", %.1f s virtual", static_cast<double>(progress.virtual_ms) / 1000);
    line += text;
    for (const char* name : {"train_loss", "evaluation loss", "evaluation accuracy", "test loss", "test accuracy"}) {
      const auto found = progress.metrics.find(name);
      if (found == progress.metrics.end()) continue;
      std::snprintf(text, sizeof text, ", %s %.4g", name, found->second);
      line += text;
    }
    std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", line.c_str());
    shown_ = true;
  }
  void end() const {
    if (terminal_ && shown_) std::fputs("\r\033[K", stderr);
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

int complain(const Error& error) {
  std::fprintf(stderr, "skerry-sim: %s\n", error.message.c_str());
  const bool input = error.code == Code::kInvalidArgument || error.code == Code::kNotFound || error.code == Code::kPermissionDenied;
  return input ? kUsage : kFailed;
}

Result<Scenario> load_scenario(const Arguments& arguments) {
  Scenario scenario;
  if (!arguments.scenario.empty()) SKERRY_TRY(apply_scenario_file(arguments.scenario, scenario));
  for (const Setting& setting : settings()) {
    const auto given = arguments.settings.find(std::string(setting.name));
    if (given == arguments.settings.end()) continue;
    if (auto applied = setting.apply(scenario, given->second); !applied.ok())
      return with_context(std::move(applied).error(), flag_of(setting));
  }
  return scenario;
}

// The rules of whatever file is named: it is the caller's own machine and his own rule.
Result<strategies::RuleCatalogue> load_rules(const Arguments& arguments) {
  std::vector<server::PluginConfig> plugins;
  for (const std::string& path : arguments.plugins) {
    SKERRY_ASSIGN(server::PluginConfig plugin, server::plugin_config(path));
    plugins.push_back(std::move(plugin));
  }
  return server::rules_with(plugins);
}

int run(const Arguments& arguments) {
  const auto rules = load_rules(arguments);
  if (!rules.ok()) return complain(rules.error());
  const auto scenario = load_scenario(arguments);
  if (!scenario.ok()) return complain(scenario.error());
  const auto spec = load_spec(arguments, *scenario, *rules);
  if (!spec.ok()) return complain(spec.error());
  const auto scratch = Scratch::make(arguments.scratch);
  if (!scratch.ok()) return complain(scratch.error());

  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  Reporter reporter;
  SimulationOptions options{*spec, *scenario, arguments.workers, scratch->path(), &stop_asked, {}, *rules};
  if (!arguments.quiet) options.progress = [&](const Progress& progress) { reporter(progress); };
  const auto result = simulate(options);
  reporter.end();
  if (!result.ok()) return complain(result.error());
  if (!arguments.out.empty())
    if (const auto written = write_results(*result, arguments.out); !written.ok()) return complain(written.error());
  if (arguments.json) std::fputs(summary_json(*result, /*timing=*/true).c_str(), stdout);
  else if (arguments.csv) std::fputs(rounds_csv(*result).c_str(), stdout);
  else std::fputs(summary_text(*result).c_str(), stdout);
  if (result->status == "interrupted") return kInterrupted;
  return result->status == "completed" || result->status == "stopped" ? kDone : kFailed;
}

// Idle threads must sleep, not spin, and every product is one worker's: the mathematics libraries read this when they
// are loaded, before main.
void settle_threads(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr && std::getenv("OMP_NUM_THREADS") != nullptr) return;
  ::setenv("OMP_WAIT_POLICY", "PASSIVE", 1);
  ::setenv("OMP_NUM_THREADS", "1", 1);
  ::setenv("GOMP_SPINCOUNT", "0", 0);
  ::setenv("OPENBLAS_THREAD_TIMEOUT", "4", 0);
  ::setenv("OPENBLAS_NUM_THREADS", "1", 1);
  ::execv("/proc/self/exe", argv);  // if that fails we run with threads that spin
}

int parse_and_run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app{"Runs a run spec with virtual clients, in one process and on a virtual clock.", "skerry-sim"};
  app.set_version_flag("--version", "skerry-sim " SKERRY_VERSION);
  app.add_option("RUN.toml", arguments.spec, "The run spec, as for `skerry run submit`")->required();
  app.add_option("--scenario", arguments.scenario, "Settings from a TOML file; flags go before it");
  for (const Setting& setting : settings()) {
    app.add_option_function<std::string>(
           flag_of(setting), [&arguments, &setting](const std::string& text) { arguments.settings[std::string(setting.name)] = text; },
           std::string(setting.help))
        ->option_text(std::string(setting.value))
        ->group("Scenario");
  }
  app.add_option("--seed", arguments.seed, "The run's seed; every draw of the simulation follows from it")->group("Run spec");
  app.add_option("--rounds", arguments.rounds, "Instead of stop.rounds")->group("Run spec");
  app.add_option("--set", arguments.overrides, "KEY=VALUE of the run spec, for example aggregation.rule=krum; may be repeated")
      ->option_text("KEY=VALUE")
      ->allow_extra_args(false)
      ->group("Run spec");
  app.add_option("--plugin", arguments.plugins, "A shared object with aggregation rules of your own; may be repeated")
      ->option_text("FILE")
      ->allow_extra_args(false)
      ->group("Run spec");
  app.add_option("--out", arguments.out, "Directory for rounds.csv, clients.csv, summary.json, timing.json, model/")->group("Output");
  app.add_flag("--json", arguments.json, "Print the summary as JSON")->group("Output");
  app.add_flag("--csv", arguments.csv, "Print rounds.csv instead of the summary")->group("Output");
  app.add_flag("-q,--quiet", arguments.quiet, "No progress on stderr")->group("Output");
  app.add_flag("-v,--verbose", arguments.verbose, "The coordinator's log on stderr")->group("Output");
  app.add_option("--workers", arguments.workers, "Clients that compute at one time; changes no result (one a core)")
      ->check(CLI::Range(1, 1024))
      ->group("Machine");
  app.add_option("--scratch", arguments.scratch, "Where large models and the store lie meanwhile (/dev/shm)")->group("Machine");
  app.footer(
      "Example: skerry-sim run.toml --data mnist --clients 100 --partition dirichlet:0.5 --test 0.1 --out results\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted (with the results so far).\n"
      "Documentation: docs/simulation.md");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  settle_threads(argv);
  spdlog::set_default_logger(spdlog::stderr_logger_mt("skerry-sim"));
  spdlog::set_level(arguments.verbose ? spdlog::level::info : spdlog::level::off);
  return run(arguments);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return parse_and_run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "skerry-sim: %s\n", error.what());
    return kFailed;
  }
}
