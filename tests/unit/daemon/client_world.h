// A client machine with a clock, a coordinator's words and a record of what it commanded last.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "client/daemon/machine/client_machine.h"

namespace skerry::test {

using namespace skerry::client;

class World {
 public:
  explicit World(ClientMachineOptions options = {}) : machine(std::move(options)) {}

  const std::vector<Command>& feed(const Event& event) {
    commands = machine.handle(event, now);
    return commands;
  }
  const std::vector<Command>& receive(v1::ToNode message) { return feed(Received{std::move(message)}); }

  void connect(const std::string& name = "i-1") {
    feed(Connected{});
    v1::ToNode message;
    message.mutable_welcome()->set_incarnation(name);
    message.mutable_welcome()->set_heartbeat_ms(10'000);
    message.mutable_welcome()->set_coordinator("harbour");
    receive(std::move(message));
    incarnation = name;
  }
  void start() {
    feed(Started{});
    connect();
  }
  void announce(const std::string& run, bool accepted = true, bool one_by_one = false, bool overlapped = false) {
    v1::ToNode message;
    message.mutable_run()->set_run_id(run);
    message.mutable_run()->set_spec_hash("hash-" + run);
    receive(std::move(message));
    v1::RunAnswer answer;
    answer.set_run_id(run);
    answer.set_spec_hash("hash-" + run);
    answer.set_accepted(accepted);
    answer.set_data_set(accepted ? "letters" : "");
    feed(RunJudged{answer, one_by_one, overlapped});
  }
  v1::Task task(const std::string& run, const std::string& id, v1::TaskKind kind = v1::TASK_TRAIN) const {
    v1::Task task;
    task.set_task_id(id);
    task.set_run_id(run);
    task.set_spec_hash("hash-" + run);
    task.set_incarnation(incarnation);
    task.set_kind(kind);
    task.set_exchange(1);
    task.add_read()->set_fragment("all");
    task.add_write("all");
    return task;
  }
  const std::vector<Command>& give(const v1::Task& task) {
    v1::ToNode message;
    *message.mutable_task() = task;
    return receive(std::move(message));
  }
  /// Everything up to the trainer's work.
  void begin_work(const std::string& run, const std::string& id) {
    give(task(run, id));
    feed(FetchDone{id});
    feed(TrainerReady{run});
  }
  void finish_work(const std::string& run, const std::string& id, std::vector<PendingUpload> uploads = {}) {
    feed(TrainerDone{run, id, {}});
    StoredUpdate update;
    update.task = task(run, id);
    update.uploads = std::move(uploads);
    update.message.set_body("body of " + id);
    feed(OutboxStored{update});
  }
  const std::vector<Command>& receipt(const std::string& id, v1::UpdateState state, const std::string& reason = "") {
    v1::ToNode message;
    message.mutable_receipt()->set_task_id(id);
    message.mutable_receipt()->set_state(state);
    message.mutable_receipt()->set_reason(reason);
    return receive(std::move(message));
  }

  template <typename T>
  std::vector<T> all() const {
    std::vector<T> found;
    for (const auto& command : commands)
      if (const auto* one = std::get_if<T>(&command)) found.push_back(*one);
    return found;
  }
  template <typename T>
  bool none() const {
    return all<T>().empty();
  }
  std::vector<v1::FromNode> sent() const {
    std::vector<v1::FromNode> messages;
    for (const auto& send : all<Send>()) messages.push_back(send.message);
    return messages;
  }
  std::vector<v1::TaskFailure> failures() const {
    std::vector<v1::TaskFailure> found;
    for (const auto& message : sent())
      if (message.has_failure()) found.push_back(message.failure());
    return found;
  }

  ClientMachine machine;
  Instant now = 1'000;
  std::string incarnation = "i-1";
  std::vector<Command> commands;
};

}  // namespace skerry::test
