// skerry-bench: measures Skerry, and drives fleets of clients against a coordinator.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/os/files.h"
#include "tests/bench/figures/benchmarks.h"
#include "tests/bench/fleet/fleet.h"
#include "tests/bench/parts/bare_server.h"
#include "tests/bench/parts/rates.h"
#include "tests/bench/parts/raw_tls.h"

namespace skerry::bench {
namespace {

int fail(const Error& error) {
  std::fprintf(stderr, "skerry-bench: %s\n", to_string(error).c_str());
  return 1;
}

/// Writes a report to a file, or to stdout where none is named.
int report(const nlohmann::json& json, const std::string& path) {
  const std::string text = json.dump(2) + "\n";
  if (path.empty()) {
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  if (auto written = write_file_atomic(path, text, 0644); !written.ok()) return fail(written.error());
  return 0;
}

struct FleetCommand {
  FleetOptions options;
  std::string json;

  void add(CLI::App& app) {
    CLI::App* command = app.add_subcommand("fleet", "Drive many client identities from this process");
    command->add_option("--home", options.home, "Directory of the certificates; kept for the next start")->required();
    command->add_option("--profile", options.profile, "An operator's profile: invites the clients");
    command->add_option("--tokens", options.tokens, "File of join tokens, one a line, instead of --profile");
    command->add_option("--clients", options.clients, "How many identities")->capture_default_str();
    command->add_option("--prefix", options.prefix, "Their names are PREFIX-0, PREFIX-1, …")->capture_default_str();
    command->add_option("--workers", options.workers, "Threads for cargo and large updates")->capture_default_str();
    command->add_option("--connecting", options.connecting, "Clients that dial at the same time")->capture_default_str();
    command->add_option("--seed", options.seed, "Of the updates' values")->capture_default_str();
    command->add_option("--train-ms", options.train_ms, "How long each task pretends to train")->capture_default_str();
    command->add_option("--submit", options.submit, "Run spec to submit once all are connected; ends with that run");
    command->add_option("--runs", options.runs, "End after so many runs");
    command->add_option("--seconds", options.seconds, "End after this long at the latest");
    command->add_option("--watch", options.watch_pid, "Sample this process's memory and CPU while the fleet is connected");
    command->add_option("--json", json, "Write the report here instead of stdout");
    command->add_flag("--verbose", options.verbose, "Tell warnings and failures as they come");
  }

  int run() const {
    const auto result = run_fleet(options);
    if (!result.ok()) return fail(result.error());
    if (const int written = report(*result, json); written != 0) return written;
    return result->at("timed_out").get<bool>() ? 3 : 0;
  }
};

/// `skerry-bench raw-tls|hash|disk|sink|source|upload`: one rate, repeated, in MB/s.
struct RateCommand {
  std::string directory = ".";
  std::string profile;
  std::uint64_t megabytes = 1000;
  unsigned threads = 1;
  unsigned repeat = 5;

  void add(CLI::App& app) {
    const auto one = [&](const char* name, const char* help, std::function<Result<double>()> measure) {
      CLI::App* command = app.add_subcommand(name, help);
      command->add_option("--megabytes", megabytes, "How much each time")->capture_default_str();
      command->add_option("--repeat", repeat, "How often")->capture_default_str();
      command->callback([this, measure = std::move(measure)] { measure_ = measure; });
      return command;
    };
    one("raw-tls", "OpenSSL over one TCP connection, both ends here", [this] { return raw_tls_rate(bytes()); });
    one("hash", "Content ids of memory", [this] { return Result<double>(hash_rate(bytes(), threads)); })
        ->add_option("--threads", threads, "Threads that hash");
    one("disk", "Write a file and fsync it", [this] { return write_rate(directory, bytes()); })
        ->add_option("--directory", directory, "Where")->capture_default_str();
    one("sink", "Upload through the coordinator's port to nowhere", [this] { return with_profile(sink_rate); })
        ->add_option("--profile", profile, "A node's or an operator's profile")->required();
    one("source", "Download zeros through the coordinator's port", [this] { return with_profile(source_rate); })
        ->add_option("--profile", profile, "A node's or an operator's profile")->required();
    CLI::App* upload = one("upload", "Upload cargo that is verified and made durable", [this]() -> Result<double> {
      SKERRY_ASSIGN(const Profile loaded, load_profile(profile));
      return cargo_upload_rate(loaded, directory, bytes());
    });
    upload->add_option("--profile", profile, "An operator's profile")->required();
    upload->add_option("--directory", directory, "Where the file to upload is made")->capture_default_str();
  }

  bool chosen() const { return static_cast<bool>(measure_); }

  int run() const {
    for (unsigned i = 0; i < repeat; ++i) {
      const auto rate = measure_();
      if (!rate.ok()) return fail(rate.error());
      std::printf("%.1f MB/s\n", *rate / 1e6);
    }
    return 0;
  }

 private:
  std::uint64_t bytes() const { return megabytes * 1'000'000; }
  Result<double> with_profile(Result<double> (*measure)(const Profile&, std::uint64_t)) const {
    SKERRY_ASSIGN(const Profile loaded, load_profile(profile));
    return measure(loaded, bytes());
  }
  std::function<Result<double>()> measure_;
};

/// `skerry-bench bare-server`: the baseline of what an idle coordinator or daemon costs.
struct BareServerCommand {
  std::string certificate, key, ready;
  CLI::App* command = nullptr;

  void add(CLI::App& app) {
    command = app.add_subcommand("bare-server", "Serve nothing over gRPC and TLS until the end of stdin");
    command->add_option("--certificate", certificate, "PEM file")->required();
    command->add_option("--key", key, "PEM file")->required();
    command->add_option("--ready-file", ready, "Write the port's number here once it is open")->required();
  }

  int run() const {
    const auto result = run_bare_server(certificate, key, ready);
    return result.ok() ? 0 : fail(result.error());
  }
};

/// `skerry-bench figures [NAME…]`: what tests/bench/run.sh runs.
struct FiguresCommand {
  std::vector<std::string> names;
  std::string json;
  std::string programs;
  std::string trainer;
  std::string work;
  std::string source;
  unsigned repeat = 3;
  bool with_build = false;
  CLI::App* command = nullptr;

  void add(CLI::App& app) {
    command = app.add_subcommand("figures", "Run benchmarks and compare them with their targets");
    command->add_option("names", names, "Which ones; default: all but clean_build");
    command->add_option("--json", json, "Write the figures here, too");
    command->add_option("--programs", programs, "Directory of skerry-server and the others")->required();
    command->add_option("--trainer", trainer, "The skerry-trainer of the daemons");
    command->add_option("--work", work, "Directory on the disk that is measured; must not exist, removed at the end")->required();
    command->add_option("--source", source, "The repository, for clean_build");
    command->add_option("--repeat", repeat, "A figure is the median of so many values")->capture_default_str();
    command->add_flag("--with-build", with_build, "Also time a clean build");
  }

  bool wanted(const Benchmark& benchmark) const {
    if (benchmark.by_request && with_build) return true;
    if (names.empty()) return !benchmark.by_request;
    return std::find(names.begin(), names.end(), benchmark.name) != names.end();
  }

  int run() const {
    const std::vector<Benchmark> known = benchmarks();
    for (const std::string& name : names) {
      if (std::any_of(known.begin(), known.end(), [&](const Benchmark& benchmark) { return benchmark.name == name; })) continue;
      std::string all;
      for (const Benchmark& benchmark : known) all += " " + benchmark.name;
      std::fprintf(stderr, "skerry-bench: there is no benchmark '%s'; known are%s\n", name.c_str(), all.c_str());
      return 2;
    }
    if (path_exists(work)) return fail(already_exists(work + " exists; name a directory that does not, it is removed at the end"));
    auto world = World::create({programs, trainer, work});
    if (!world.ok()) return fail(world.error());
    BenchmarkContext context{**world, std::max(1u, repeat), source};
    nlohmann::json report = {{"machine", machine()}, {"figures", nlohmann::json::array()}, {"failed", nlohmann::json::object()}};
    std::fputs(table_head().c_str(), stdout);
    bool all_met = true;
    for (const Benchmark& benchmark : known) {
      if (!wanted(benchmark)) continue;
      const auto figures = benchmark.run(context);
      (*world)->stop_daemons();
      (*world)->stop_coordinator();
      if (!figures.ok()) {
        all_met = false;
        report["failed"][benchmark.name] = to_string(figures.error());
        std::printf("%-28s failed: %s\n", benchmark.name.c_str(), to_string(figures.error()).c_str());
        continue;
      }
      for (const Figure& figure : *figures) {
        all_met = all_met && figure.met;
        report["figures"].push_back(to_json(figure));
        std::fputs(table_row(figure).c_str(), stdout);
      }
      std::fflush(stdout);
    }
    report["machine"]["load_at_end"] = load();
    world->reset();
    if (auto removed = remove_tree(work); !removed.ok()) return fail(removed.error());
    if (!json.empty())
      if (const int written = ::skerry::bench::report(report, json); written != 0) return written;
    return all_met ? 0 : 4;
  }

 private:
  static double load() {
    double average = 0;
    return getloadavg(&average, 1) == 1 ? average : 0;
  }
  /// What else the machine does matters as much as what it is.
  static nlohmann::json machine() {
    std::string model;
    if (const auto info = read_file("/proc/cpuinfo", 1u << 20); info.ok()) {
      const auto at = info->find("model name");
      if (at != std::string::npos) {
        const auto colon = info->find(": ", at);
        model = info->substr(colon + 2, info->find('\n', colon) - colon - 2);
      }
    }
    return {{"cores", std::thread::hardware_concurrency()}, {"cpu", model}, {"load_at_start", load()}};
  }
};

int main_of(int argc, char** argv) {
  CLI::App app{"Measures Skerry, and drives fleets of clients against a coordinator."};
  app.require_subcommand(1);
  app.footer("Exit codes: 0 done, 1 failed, 2 wrong usage, 3 out of time, 4 a figure missed its target. Documentation: docs/benchmarks.md");
  FleetCommand fleet;
  fleet.add(app);
  RateCommand rate;
  rate.add(app);
  BareServerCommand bare_server;
  bare_server.add(app);
  FiguresCommand figures;
  figures.add(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (bare_server.command->parsed()) return bare_server.run();
  if (figures.command->parsed()) return figures.run();
  return rate.chosen() ? rate.run() : fleet.run();
}

}  // namespace
}  // namespace skerry::bench

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return skerry::bench::main_of(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "skerry-bench: %s\n", error.what());
    return 1;
  }
}
