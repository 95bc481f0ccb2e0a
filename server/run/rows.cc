// How the machine is kept: rows of small JSON, and back. Deadlines are kept as what remains of them.
#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "server/run/state.h"

namespace skerry::server {
namespace {

using nlohmann::json;

constexpr int kFormat = 2;

json remaining(const std::optional<Instant>& at, Instant now) {
  return at ? json(std::max<std::int64_t>(0, *at - now)) : json(nullptr);
}

/// SIZE_MAX is none.
json limit(std::size_t most) { return most == SIZE_MAX ? json(nullptr) : json(most); }
std::size_t limit(const json& most) { return most.is_null() ? SIZE_MAX : most.get<std::size_t>(); }

std::optional<Instant> deadline(const json& left, Instant now) {
  if (left.is_null()) return std::nullopt;
  return now + left.get<std::int64_t>();
}

std::uint64_t number_after(const std::string& key, std::size_t prefix) {
  std::uint64_t number = 0;
  std::from_chars(key.data() + prefix, key.data() + key.size(), number);
  return number;
}

}  // namespace

using TimerKind = RunMachine::State::TimerKey::Kind;

static std::string text_of(const json& row) { return row.dump(-1, ' ', false, json::error_handler_t::replace); }

static json groups_of(const RunMachine::State& s, Instant now) {
  json rows = json::array();
  for (const auto& [number, group] : s.groups)
    rows.push_back({{"number", number},
                    {"expected_left_ms", group.expected - now},
                    {"left_ms", remaining(group.latest, now)},
                    {"fastest_ms", group.fastest_ms},
                    {"arrived", group.arrived}});
  return rows;
}

static std::string core_row(const RunMachine::State& s, Instant now) {
  return text_of({{"format", kFormat},
                  {"run", s.setup.run_id},
                  {"spec", s.setup.spec.hash},
                  {"phase", static_cast<int>(s.phase)},
                  {"paused", s.paused},
                  {"pause_reason", s.pause_reason},
                  {"outcome", s.outcome},
                  {"outcome_reason", s.outcome_reason},
                  {"next_serial", s.next_serial},
                  {"next_exchange", s.next_exchange},
                  {"exchanges_done", s.exchanges_done},
                  {"last_exchange", s.last_exchange},
                  {"versions", s.versions},
                  {"voids", s.lane_voids},
                  {"groups", groups_of(s, now)},
                  {"position", s.position},
                  {"begun", s.begun},
                  {"evaluation_due", s.evaluation_due}});
}

static json merges_row(const std::vector<RunMachine::State::Merge>& merges) {
  json rows = json::array();
  for (const auto& merge : merges)
    rows.push_back({merge.exchange, merge.lane, merge.own, merge.version ? json(*merge.version) : json(nullptr),
                    merge.at_step});
  return rows;
}

static std::string node_row(const RunMachine::State& s, const RunMachine::State::Node& node) {
  json row = {{"tasks", node.tasks},
              {"steps", node.steps},
              {"counted", node.counted},
              {"discarded", node.discarded},
              {"data_set", node.data_set},
              {"examples", node.examples},
              {"gone", node.gone},
              {"invited", node.invited},
              {"last_turn", node.last_turn},
              {"step_ms", node.step_ms},
              {"failure", node.last_failure}};
  if (s.overlapped())
    row["line"] = {{"task", node.last_task}, {"exchange", node.last_exchange}, {"owed", merges_row(node.owed)}};
  return text_of(row);
}

static std::string task_row(const RunMachine::State& s, const RunMachine::State::Task& task, Instant now) {
  json row = {{"node", task.node},
              {"kind", static_cast<int>(task.kind)},
              {"lane", task.lane},
              {"exchange", task.exchange},
              {"round", task.round},
              {"bases", task.bases},
              {"prefix", task.prefix.empty() ? s.setup.task_prefix : task.prefix}};
  if (task.accepted) {
    row["accepted"] = {{"examples", task.examples},   {"tokens", task.tokens},         {"steps", task.steps},
                       {"staleness", task.staleness}, {"factor", task.factor},         {"weight", task.weight},
                       {"metrics", task.metrics},     {"needed", task.needed_metrics}, {"carries", task.carries}};
  } else {
    row["seed"] = task.seed;
    row["steps"] = task.inner_steps;
    row["age_ms"] = now - task.assigned;
    row["interrupted"] = task.interrupted;
    row["group"] = task.group;
    row["first_step"] = task.first_step;
    row["left_ms"] = remaining(task.deadline, now);
    if (s.overlapped()) row["line"] = {{"after", task.after}, {"merges", merges_row(task.merges)}};
  }
  return text_of(row);
}

static std::string exchange_row(const RunMachine::State::Exchange& exchange, Instant now) {
  json row = {{"lane", exchange.lane},
              {"base", exchange.base_version},
              {"reducing", exchange.reducing},
              {"goal", limit(exchange.goal)},
              {"target", limit(exchange.target)},
              {"invited", exchange.invited},
              {"nodes", exchange.nodes},
              {"due", exchange.due},
              {"age_ms", now - exchange.opened},
              {"rescues", exchange.rescues},
              {"left_ms", remaining(exchange.deadline, now)},
              {"grace_left_ms", remaining(exchange.grace, now)}};
  if (exchange.first_update) row["first_age_ms"] = now - *exchange.first_update;
  return text_of(row);
}

static std::string evaluation_row(const RunMachine::State::Evaluation& evaluation, Instant now) {
  return text_of({{"exchange", evaluation.exchange},
                  {"versions", evaluation.versions},
                  {"final", evaluation.final},
                  {"left_ms", remaining(evaluation.deadline, now)}});
}

static std::string report_row(const NodeMetrics& report) {
  return text_of({{"examples", report.examples}, {"metrics", report.metrics}});
}

MachineRows RunMachine::State::all_rows(Instant now) const {
  MachineRows rows;
  rows["core"] = core_row(*this, now);
  for (const auto& [name, node] : nodes) rows["n/" + name] = node_row(*this, node);
  for (const auto& [serial, task] : tasks) rows["t/" + std::to_string(serial)] = task_row(*this, task, now);
  for (const auto& [number, exchange] : exchanges) rows["x/" + std::to_string(number)] = exchange_row(exchange, now);
  if (!evaluation) return rows;
  rows["evaluation"] = evaluation_row(*evaluation, now);
  for (const auto& [name, report] : evaluation->reports) rows["e/" + name] = report_row(report);
  return rows;
}

MachineRows RunMachine::State::changed_rows(Instant now) {
  MachineRows rows;
  if (std::exchange(core_changed, false)) rows["core"] = core_row(*this, now);
  if (std::exchange(evaluation_changed, false)) rows["evaluation"] = evaluation ? evaluation_row(*evaluation, now) : "";
  for (const auto& name : changed_nodes) rows["n/" + name] = node_row(*this, nodes.at(name));
  for (const auto serial : changed_tasks) {
    const auto task = tasks.find(serial);
    rows["t/" + std::to_string(serial)] = task == tasks.end() ? "" : task_row(*this, task->second, now);
  }
  for (const auto number : changed_exchanges) {
    const auto exchange = exchanges.find(number);
    rows["x/" + std::to_string(number)] = exchange == exchanges.end() ? "" : exchange_row(exchange->second, now);
  }
  for (const auto& name : changed_reports) {
    const bool held = evaluation && evaluation->reports.count(name) != 0;
    rows["e/" + name] = held ? report_row(evaluation->reports.at(name)) : "";
  }
  forget_changes();
  return rows;
}

void RunMachine::State::forget_changes() {
  core_changed = evaluation_changed = false;
  changed_nodes.clear();
  changed_tasks.clear();
  changed_exchanges.clear();
  changed_reports.clear();
}

static void load_core(RunMachine::State& s, const json& row, Instant now) {
  s.phase = static_cast<RunMachine::State::Phase>(row.at("phase").get<int>());
  s.paused = row.at("paused").get<bool>();
  s.pause_reason = row.at("pause_reason").get<std::string>();
  s.outcome = row.at("outcome").get<std::string>();
  s.outcome_reason = row.at("outcome_reason").get<std::string>();
  s.next_serial = row.at("next_serial").get<std::uint64_t>();
  s.next_exchange = row.at("next_exchange").get<std::uint64_t>();
  s.exchanges_done = row.at("exchanges_done").get<std::uint64_t>();
  s.last_exchange = row.at("last_exchange").get<std::uint64_t>();
  s.versions = row.at("versions").get<std::vector<std::uint64_t>>();
  s.lane_voids = row.at("voids").get<std::vector<std::uint64_t>>();
  for (const json& kept : row.at("groups")) {
    auto& group = s.groups[kept.at("number").get<std::uint64_t>()];
    group.expected = now + kept.at("expected_left_ms").get<std::int64_t>();
    group.latest = now + kept.at("left_ms").get<std::int64_t>();
    group.fastest_ms = kept.at("fastest_ms").get<double>();
    group.arrived = kept.at("arrived").get<bool>();
    s.set_timer({TimerKind::kGroup, kept.at("number").get<std::uint64_t>(), {}}, group.latest);
  }
  s.position = row.at("position").get<std::uint64_t>();
  s.begun = row.at("begun").get<bool>();
  s.evaluation_due = row.at("evaluation_due").get<bool>();
}

static std::vector<RunMachine::State::Merge> load_merges(const RunMachine::State& s, const json& rows) {
  std::vector<RunMachine::State::Merge> merges;
  for (const json& row : rows) {
    merges.push_back({row.at(0).get<std::uint64_t>(), row.at(1).get<std::uint32_t>(), row.at(2).get<bool>(), {}, 0});
    if (!row.at(3).is_null()) merges.back().version = row.at(3).get<std::uint64_t>();
    merges.back().at_step = row.at(4).get<std::uint64_t>();
    (void)s.lanes.at(merges.back().lane);
  }
  return merges;
}

static void load_node(RunMachine::State& s, const std::string& name, const json& row) {
  auto& node = s.nodes[name];
  node.name = name;
  node.tasks = row.at("tasks").get<std::uint64_t>();
  node.steps = row.at("steps").get<std::uint64_t>();
  node.counted = row.at("counted").get<std::uint64_t>();
  node.discarded = row.at("discarded").get<std::uint64_t>();
  node.data_set = row.at("data_set").get<std::string>();
  node.examples = row.at("examples").get<std::uint64_t>();
  node.gone = row.at("gone").get<bool>();
  node.invited = row.at("invited").get<std::uint64_t>();
  node.last_turn = row.at("last_turn").get<std::uint64_t>();
  node.step_ms = row.at("step_ms").get<double>();
  node.last_failure = row.at("failure").get<std::string>();
  if (const auto line = row.find("line"); line != row.end()) {
    node.last_task = line->at("task").get<std::string>();
    node.last_exchange = line->at("exchange").get<std::uint64_t>();
    node.owed = load_merges(s, line->at("owed"));
  }
  s.consenting += node.gone ? 0 : 1;
  if (const auto separation = s.setup.spec.participation.minimum_separation; separation > 1 && node.last_turn > 0)
    s.turns[node.last_turn + separation].insert(name);
  node.last_read.assign(s.setup.fragments.size(), std::nullopt);
  node.fresh.assign(s.setup.fragments.size(), false);
}

static void load_task(RunMachine::State& s, std::uint64_t serial, const json& row, Instant now) {
  auto& task = s.tasks[serial];
  task.serial = serial;
  if (auto prefix = row.at("prefix").get<std::string>(); prefix != s.setup.task_prefix) task.prefix = std::move(prefix);
  task.node = row.at("node").get<std::string>();
  task.kind = row.at("kind").get<int>() == 2 ? TaskKind::kEvaluate : TaskKind::kTrain;
  task.lane = row.at("lane").get<std::uint32_t>();
  task.exchange = row.at("exchange").get<std::uint64_t>();
  task.round = row.at("round").get<std::uint64_t>();
  task.bases = row.at("bases").get<std::vector<std::uint64_t>>();
  if (const auto accepted = row.find("accepted"); accepted != row.end()) {
    task.accepted = true;
    task.examples = accepted->at("examples").get<std::uint64_t>();
    task.tokens = accepted->at("tokens").get<std::uint64_t>();
    task.steps = accepted->at("steps").get<std::uint64_t>();
    task.staleness = accepted->at("staleness").get<std::uint64_t>();
    task.factor = accepted->at("factor").get<double>();
    task.weight = accepted->at("weight").get<double>();
    task.metrics = accepted->at("metrics").get<std::map<std::string, double>>();
    task.needed_metrics = accepted->at("needed").get<std::vector<double>>();
    task.carries = accepted->at("carries").get<std::vector<FragmentIndex>>();
    return;
  }
  task.seed = row.at("seed").get<std::uint64_t>();
  task.first_step = row.at("first_step").get<std::uint64_t>();
  task.inner_steps = row.at("steps").get<std::uint64_t>();
  task.assigned = now - row.at("age_ms").get<std::int64_t>();
  task.interrupted = row.at("interrupted").get<bool>();
  task.group = row.at("group").get<std::uint64_t>();
  if (const auto line = row.find("line"); line != row.end()) {
    task.after = line->at("after").get<std::string>();
    task.merges = load_merges(s, line->at("merges"));
  }
  task.deadline = deadline(row.at("left_ms"), now);
  if (task.deadline) s.set_timer({TimerKind::kTask, serial, {}}, *task.deadline);
}

static void load_exchange(RunMachine::State& s, std::uint64_t number, const json& row, Instant now) {
  auto& exchange = s.exchanges[number];
  exchange.number = number;
  exchange.lane = row.at("lane").get<std::uint32_t>();
  exchange.base_version = row.at("base").get<std::uint64_t>();
  exchange.reducing = row.at("reducing").get<bool>();
  exchange.goal = limit(row.at("goal"));
  exchange.target = limit(row.at("target"));
  exchange.invited = row.at("invited").get<std::size_t>();
  exchange.nodes = row.at("nodes").get<std::uint64_t>();
  exchange.due = row.at("due").get<bool>();
  exchange.opened = now - row.at("age_ms").get<std::int64_t>();
  if (const auto age = row.find("first_age_ms"); age != row.end())
    exchange.first_update = now - age->get<std::int64_t>();
  exchange.missing.insert(s.required.begin(), s.required.end());
  exchange.rescues = row.at("rescues").get<std::uint32_t>();
  exchange.deadline = deadline(row.at("left_ms"), now);
  exchange.grace = deadline(row.at("grace_left_ms"), now);
  if (exchange.deadline) s.set_timer({TimerKind::kDeadline, number, {}}, *exchange.deadline);
  if (exchange.grace) s.set_timer({TimerKind::kGrace, number, {}}, *exchange.grace);
  auto& of_lane = exchange.reducing ? s.lane_reducing : s.lane_collecting;
  if (auto& first = of_lane.at(exchange.lane); first == 0 || number < first) first = number;
}

static void load_evaluation(RunMachine::State& s, const json& row, Instant now) {
  s.evaluation.emplace();
  s.evaluation->exchange = row.at("exchange").get<std::uint64_t>();
  s.evaluation->versions = row.at("versions").get<std::vector<std::uint64_t>>();
  s.evaluation->final = row.at("final").get<bool>();
  s.evaluation->deadline = deadline(row.at("left_ms"), now);
  if (s.evaluation->deadline) s.set_timer({TimerKind::kEvaluation, 0, {}}, *s.evaluation->deadline);
}

static Result<void> load_report(RunMachine::State& s, const std::string& name, const json& row) {
  if (!s.evaluation) return data_loss("the report of node " + name + " has no evaluation");
  s.evaluation->reports[name] = {name, row.at("examples").get<std::uint64_t>(),
                                 row.at("metrics").get<std::map<std::string, double>>()};
  return {};
}

/// What follows from the rows: who works on what, and for how long those who are away are waited for.
static Result<void> link(RunMachine::State& s, Instant now) {
  for (auto& [serial, task] : s.tasks) {
    const auto node = s.nodes.find(task.node);
    if (node == s.nodes.end() || task.bases.size() != s.setup.fragments.size())
      return data_loss("task " + s.task_id(serial) + " of node " + task.node + " does not fit its run");
    if (task.kind == TaskKind::kEvaluate) {
      if (!s.evaluation) return data_loss("evaluate task " + s.task_id(serial) + " has no evaluation");
      s.evaluation->outstanding.insert(serial);
      node->second.evaluate_task = serial;
    } else {
      const auto exchange = s.exchanges.find(task.exchange);
      if (exchange == s.exchanges.end() && (task.accepted || !s.asynchronous()))
        return data_loss("task " + s.task_id(serial) + " has no exchange " + std::to_string(task.exchange));
      if (task.accepted) {
        exchange->second.accepted.insert(serial);
        exchange->second.missing.erase(task.node);
        exchange->second.done.insert(task.node);
        continue;
      }
      if (!s.asynchronous()) exchange->second.outstanding.insert(serial);
      node->second.train_tasks.push_back(serial);
    }
    s.set_awaited(task, true);
    s.set_timer({TimerKind::kReconnect, 0, task.node},
                now + RunMachine::State::ms(s.setup.spec.participation.reconnect_s));
  }
  return {};
}

Result<void> RunMachine::State::load(const MachineRows& rows, Instant now) {
  const std::string run = "run " + setup.run_id + ": ";
  try {
    const auto core = rows.find("core");
    if (core == rows.end()) return data_loss(run + "its state has no row \"core\"");
    const json row = json::parse(core->second);
    if (row.at("format") != kFormat)
      return failed_precondition(run + "its state has format " + row.at("format").dump() + ", this program reads " +
                                 std::to_string(kFormat));
    if (row.at("run") != setup.run_id || row.at("spec") != setup.spec.hash)
      return failed_precondition(run + "the state is of run " + row.at("run").dump() + " with spec " +
                                 row.at("spec").dump());
    load_core(*this, row, now);
    if (versions.size() != setup.fragments.size() || lane_voids.size() != lanes.size())
      return data_loss(run + "its state has another number of fragments");
    if (const auto open = rows.find("evaluation"); open != rows.end() && !open->second.empty())
      load_evaluation(*this, json::parse(open->second), now);
    for (const auto& [key, text] : rows) {
      if (key == "core" || key == "evaluation" || text.empty()) continue;
      const json value = json::parse(text);
      if (key.rfind("e/", 0) == 0)
        SKERRY_TRY(load_report(*this, key.substr(2), value));
      else if (key.rfind("n/", 0) == 0)
        load_node(*this, key.substr(2), value);
      else if (key.rfind("t/", 0) == 0)
        load_task(*this, number_after(key, 2), value, now);
      else if (key.rfind("x/", 0) == 0)
        load_exchange(*this, number_after(key, 2), value, now);
    }
    SKERRY_TRY(link(*this, now));
  } catch (const std::exception& error) {
    return data_loss(run + "its state cannot be read: " + error.what());
  }
  forget_changes();
  return {};
}

}  // namespace skerry::server
