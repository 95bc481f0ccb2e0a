// Aggregation by itself: the rows of skerry_aggregate_bench, a process of their own.
#include <algorithm>
#include <cstdio>

#include "tests/bench/figures/benchmarks.h"

namespace skerry::bench {

Figures aggregation(BenchmarkContext& context, const std::string& row) {
  const WorldOptions& options = context.world.options();
  const std::string command = options.programs + "/skerry_aggregate_bench " + row + " --repeat " +
                              std::to_string(2 * context.repeat + 1) + " --dir '" + options.directory + "'";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return internal_error("cannot start " + command);
  std::string output;
  char buffer[4096];
  while (const std::size_t count = std::fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, count);
  if (::pclose(pipe) != 0) return internal_error(command + " failed; is it built?");

  std::vector<Figure> figures;
  for (std::size_t begin = 0; begin < output.size();) {
    const std::size_t end = std::min(output.find('\n', begin), output.size());
    const auto json = nlohmann::json::parse(output.substr(begin, end - begin), nullptr, false);
    begin = end + 1;
    if (!json.is_object()) return internal_error(command + " printed something that is not a figure");
    Figure figure;
    figure.name = json["name"];
    figure.value = json["value"];
    figure.unit = json["unit"];
    figure.baseline = json["baseline"];
    figure.baseline_name = json["baseline_name"];
    figure.target = json["target"];
    figure.met = json["met"];
    figures.push_back(std::move(figure));
  }
  return figures;
}

}  // namespace skerry::bench
