// Evaluations, and how a run ends.
#include <utility>

#include "server/run/state.h"
#include "strategies/evaluation.h"

namespace skerry::server {

using TimerKind = RunMachine::State::TimerKey::Kind;

/// In overlapped runs nodes evaluate between two tasks, when there may be a newer version already: the evaluation under
/// way is not given up for it.
void RunMachine::State::open_due_evaluation(Instant now) {
  if (evaluation_due && !(overlapped() && evaluation)) open_evaluation(false, now);
}

/// Every holder that is here measures the current versions on its own split. One evaluation is open at a time.
void RunMachine::State::open_evaluation(bool is_final, Instant now) {
  if (evaluation) close_evaluation(now);
  if (phase == Phase::kFinished || phase == Phase::kEnding) return;
  evaluation_due = false;
  evaluation.emplace();
  evaluation->exchange = last_exchange;
  evaluation->versions = versions;
  evaluation->final = is_final;
  evaluation->deadline = now + ms(setup.spec.evaluation.deadline_s);
  set_timer({TimerKind::kEvaluation, 0, {}}, *evaluation->deadline);
  touch_evaluation();
  touch_core();
  for (auto& [name, node] : nodes) assign_evaluate(node, now);
  if (!is_final) check_evaluation(now);
}

void RunMachine::State::assign_evaluate(Node& node, Instant now) {
  if (!evaluation || paused || !node.connected || node.paused || node.holdout_examples == 0 ||
      node.evaluate_task != 0 || evaluation->reports.count(node.name) != 0)
    return;
  Task& task = tasks[next_serial];
  task.serial = next_serial++;
  task.node = node.name;
  task.kind = TaskKind::kEvaluate;
  task.round = evaluation->versions.front();
  task.bases = evaluation->versions;
  evaluation->outstanding.insert(task.serial);
  node.evaluate_task = task.serial;
  set_awaited(task, true);
  touch_core();
  AssignTask command = describe(task, now);
  for (FragmentIndex fragment = 0; fragment < versions.size(); ++fragment)
    if (measured[fragment]) command.read.push_back({fragment, task.bases[fragment], node.last_read[fragment]});
  emit(std::move(command));
}

void RunMachine::State::check_evaluation(Instant now) {
  if (!evaluation || evaluation->awaited > 0) return;
  if (!evaluation->final) return close_evaluation(now);
  // The last evaluation also waits for holders that are away, until its deadline; not for those who hold nothing back.
  bool anyone_here = false;
  bool holder_here = false;
  for (const auto& [name, node] : nodes) {
    anyone_here = anyone_here || node.connected;
    holder_here = holder_here || (node.connected && node.holdout_examples > 0);
  }
  if (evaluation->reports.size() >= setup.spec.evaluation.minimum || (anyone_here && !holder_here))
    close_evaluation(now);
}

void RunMachine::State::close_evaluation(Instant now) {
  const std::set<Serial> late = evaluation->outstanding;
  for (const auto serial : late) end_task(serial, "the evaluation was closed without this report", true, now);
  clear_timer({TimerKind::kEvaluation, 0, {}});
  Evaluation closed = std::move(*evaluation);
  for (const auto& [name, report] : closed.reports) changed_reports.insert(name);
  evaluation.reset();
  touch_evaluation();

  EvaluationDone command;
  command.exchange = closed.exchange;
  for (FragmentIndex fragment = 0; fragment < closed.versions.size(); ++fragment)
    command.versions[fragment] = closed.versions[fragment];
  std::vector<strategies::Measured> reports;
  for (auto& [name, report] : closed.reports) {
    command.examples += report.examples;
    command.reports.push_back(std::move(report));
  }
  for (const auto& report : command.reports) reports.push_back({report.examples, &report.metrics});
  if (reports.size() >= setup.spec.evaluation.minimum)
    command.metrics = strategies::merge_metrics(reports, setup.spec.limits.metrics);
  const bool reached = strategies::target_reached(setup.spec.stop, command.metrics);
  emit(std::move(command));
  if (closed.final)
    end_run("completed", "all " + std::to_string(setup.spec.stop.rounds) + " rounds are done", now);
  else if (reached)
    end_run("completed",
            setup.spec.stop.metric + " reached its target in the evaluation after exchange " +
                std::to_string(closed.exchange),
            now);
}

void RunMachine::State::end_run(const std::string& how, const std::string& reason, Instant now) {
  if (phase == Phase::kEnding || phase == Phase::kFinished) return;
  phase = Phase::kEnding;
  outcome = how;
  outcome_reason = reason;
  touch_core();
  if (evaluation) close_evaluation(now);
  std::vector<Serial> outstanding;
  for (const auto& [serial, task] : tasks)
    if (!task.accepted) outstanding.push_back(serial);
  for (const auto serial : outstanding) end_task(serial, "the run has ended: " + reason, true, now);
  std::vector<std::uint64_t> open;
  for (const auto& [number, exchange] : exchanges)
    if (!exchange.reducing) open.push_back(number);
  for (const auto number : open)
    discard_exchange(number, "the run ended before exchange " + std::to_string(number) + ": " + reason);
  finish_if_ending(now);
}

/// The accepted updates of an exchange that will not be committed.
void RunMachine::State::discard_exchange(std::uint64_t number, const std::string& reason) {
  Exchange& exchange = exchanges.at(number);
  for (const auto serial : exchange.accepted) {
    Task& task = tasks.at(serial);
    Node& node = nodes.at(task.node);
    ++node.discarded;
    touch(node);
    touch(task);
    emit(Discard{task_id(serial), task.node, reason});
    remember_end(task, {task.node, reason, {}});
    tasks.erase(serial);
  }
  for (const auto kind : {TimerKind::kDeadline, TimerKind::kGrace, TimerKind::kRescue, TimerKind::kReduce})
    clear_timer({kind, number, {}});
  const std::uint32_t lane = exchange.lane;
  if (exchange.reducing) lane_reducing[lane] = 0;
  touch(exchange);
  exchanges.erase(number);
  lane_collecting[lane] = first_collecting(lane);
}

void RunMachine::State::finish_if_ending(Instant) {
  if (phase != Phase::kEnding || !exchanges.empty()) return;
  phase = Phase::kFinished;
  touch_core();
  timers.clear();
  timer_order.clear();
  emit(Finish{outcome, outcome_reason});
}

}  // namespace skerry::server
