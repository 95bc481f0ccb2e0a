// Any bytes as a line of the daemon to its trainer, or as the training section within: an error that can be said in an
// answer, or values within their bounds. Answers about it are single lines of JSON.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "client/trainer/messages.h"
#include "client/trainer/options.h"

namespace {

using namespace skerry::trainer;

void require(bool holds) {
  if (!holds) std::abort();
}

void require_line(const std::string& line) {
  require(line.find('\n') == std::string::npos && nlohmann::json::parse(line, nullptr, false).is_object());
}

void try_training(std::string_view section) {
  const auto options = parse_training(section);
  if (!options.ok()) return require(!options.error().message.empty() && options.error().message.size() < 1000);
  require(options->batch > 0);
  for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1000}, std::uint64_t{1} << 53}) {
    const double rate = learning_rate_at(options->schedule, step);
    require(std::isfinite(rate) && rate >= 0 && rate <= options->schedule.learning_rate);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const ParsedLine line = parse_request(text);
  require_line(line.request.ok() ? cancelled_line(line.task) : error_line(line.task, line.request.error(), false));
  require_line(generated_line(line.task, std::string(text.substr(0, 4096))));
  try_training(text);
  if (!line.request.ok()) return 0;
  if (const auto* open = std::get_if<OpenRequest>(&*line.request)) try_training(open->training);
  if (const auto* train = std::get_if<TrainRequest>(&*line.request))
    for (const auto& merge : train->merge) require(merge.alpha >= 0 && merge.alpha <= 1);
  return 0;
}
