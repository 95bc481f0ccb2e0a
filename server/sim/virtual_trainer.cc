#include "server/sim/virtual_trainer.h"

#include <utility>

#include <nlohmann/json.hpp>

namespace skerry::sim {
namespace {

using nlohmann::json;

Code code_named(const std::string& name) {
  for (int code = 0; code <= static_cast<int>(Code::kUnauthenticated); ++code)
    if (code_name(static_cast<Code>(code)) == name) return static_cast<Code>(code);
  return Code::kUnknown;
}

// Our own trainer's lines: always a JSON object.
Result<json> understood(const std::string& line) {
  json answer = json::parse(line, nullptr, false);
  if (answer.value("type", "") == "error")
    return Error{code_named(answer.value("code", "")), answer.value("message", ""), false};
  return answer;
}

}  // namespace

Result<std::unique_ptr<VirtualTrainer>> VirtualTrainer::open(const std::string& open_line, trainer::OpenData open_data) {
  std::unique_ptr<VirtualTrainer> made(new VirtualTrainer(std::move(open_data)));
  made->session_.handle(open_line);
  SKERRY_TRY(understood(made->answer_));
  return made;
}

void VirtualTrainer::take(const trainer::GivenFragment& given) {
  if (given.base.empty()) trained_[given.fragment] = given.values;
  else emitted_[given.fragment] = {{given.values.begin(), given.values.end()}, {given.base.begin(), given.base.end()}, given.base_version};
}

Result<TrainerAnswer> VirtualTrainer::work(const std::string& line) {
  trained_.clear();
  emitted_.clear();
  session_.handle(line);
  SKERRY_ASSIGN(const json done, understood(answer_));
  return TrainerAnswer{std::move(trained_), std::move(emitted_), done.value("examples", std::uint64_t{0}), done.value("tokens", std::uint64_t{0}),
                       done.value("steps", std::uint64_t{0}),
                       done.value("metrics", std::map<std::string, double>{})};
}

}  // namespace skerry::sim
