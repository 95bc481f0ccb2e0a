// How fast the coordinator aggregates, against what the machine can do, measured in the same run.
//
//   skerry_aggregate_bench [NAME…] [--elements N] [--updates K] [--threads T] [--repeat R] [--dir DIR] [--cpu] [--list]
//
// Without names all rows run but those on request. Prints one JSON object a line: name, value, unit, baseline, baseline_name,
// ratio, target, met. The page cache is warm. With --cpu rates are told by CPU time on T cores instead of by the clock: on a machine
// that does other things, too.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/bench/aggregate/rows.h"

namespace skerry::server::bench {
namespace {

Settings settings_of(int argc, char** argv) {
  Settings settings;
  const char* base = std::getenv("TMPDIR");
  settings.directory = base != nullptr ? base : "/tmp";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--list") {
      for (const Benchmark& benchmark : benchmarks()) std::printf("%s\n", benchmark.name.c_str());
      std::exit(0);
    }
    if (argument == "--cpu") {
      settings.cpu_time = true;
      continue;
    }
    if (argument.rfind("--", 0) != 0) {
      settings.names.push_back(argument);
      continue;
    }
    const std::string value = i + 1 < argc ? argv[++i] : "";
    const auto number = std::strtoull(value.c_str(), nullptr, 10);
    if (argument == "--dir" && !value.empty()) {
      settings.directory = value;
    } else if (argument == "--elements" && number > 0) {
      settings.elements = number;
    } else if (argument == "--updates" && number > 0) {
      settings.updates = number;
    } else if (argument == "--threads") {
      settings.threads = static_cast<unsigned>(number);
    } else if (argument == "--repeat" && number > 0) {
      settings.repeat = static_cast<unsigned>(number);
    } else {
      std::fprintf(stderr, "cannot use %s \"%s\"; the options are at the head of aggregate/main.cc\n", argument.c_str(),
                   value.c_str());
      std::exit(2);
    }
  }
  const auto known = benchmarks();
  for (const std::string& name : settings.names) {
    if (std::any_of(known.begin(), known.end(), [&](const Benchmark& benchmark) { return benchmark.name == name; })) continue;
    std::fprintf(stderr, "there is no row %s; --list shows all\n", name.c_str());
    std::exit(2);
  }
  return settings;
}

void run(const Settings& settings) {
  AggregationEngine engine({settings.threads});
  for (const Benchmark& benchmark : benchmarks()) {
    const bool named = std::find(settings.names.begin(), settings.names.end(), benchmark.name) != settings.names.end();
    if (named || (settings.names.empty() && !benchmark.by_request)) benchmark.run(engine, settings, benchmark.name);
  }
}

}  // namespace
}  // namespace skerry::server::bench

int main(int argc, char** argv) { skerry::server::bench::run(skerry::server::bench::settings_of(argc, argv)); }
