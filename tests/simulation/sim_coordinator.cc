#include "tests/simulation/sim_coordinator.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "tests/simulation/sim_client.h"

namespace skerry::simulation {
namespace {

std::uint64_t mix(std::uint64_t digest, std::string_view text) {
  for (const char c : text) digest = (digest ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return digest;
}

}  // namespace

SimCoordinator::SimCoordinator(World& world, server::RunSetup setup) : world_(world), setup_(std::move(setup)) {
  released_.assign(setup_.fragments.size(), {0});
  stored_.assign(setup_.fragments.size(), {0});
}

void SimCoordinator::boot() {
  if (up()) return;
  ++boots_;
  world_.record("coordinator boots");
  // A new process has a new monotonic clock.
  contents_ = released_;
  boot_offset_ = world_.now() - world_.random.between(0, 1000000);
  if (rows_.empty()) {
    machine_ = std::make_unique<server::RunMachine>(setup_);
  } else {
    auto restored = server::RunMachine::restore(setup_, rows_, clock());
    if (!restored.ok()) {
      world_.violation("the state cannot be restored: " + restored.error().message);
      return;
    }
    machine_ = std::make_unique<server::RunMachine>(std::move(restored).value());
    if (machine_->snapshot(clock()).size() != rows_.size()) world_.violation("a restored machine has other rows");
  }
  handle(server::Started{});
}

void SimCoordinator::crash() {
  if (!up()) return;
  world_.record("coordinator crashes");
  machine_.reset();
  batch_ = {};
  commit_planned_ = false;
  offers_.clear();
  reductions_.clear();
  waiting_.clear();
  handling_ = false;
  ++wake_;
  for (const auto& [node, session] : std::exchange(sessions_, {})) clients_.at(node)->link_broken(session.link);
}

void SimCoordinator::handle(server::Event event) {
  if (!up()) return;
  waiting_.push_back(std::move(event));
  if (handling_) return;
  handling_ = true;
  while (!waiting_.empty()) {
    const server::Event next = std::move(waiting_.front());
    waiting_.erase(waiting_.begin());
    for (const auto& command : machine_->handle(next, clock()))
      std::visit([this](const auto& known) { on(known); }, command);
  }
  handling_ = false;
  if (commit_planned_) return;
  commit_planned_ = true;
  const std::uint64_t boot = boots_;
  world_.after(world_.random.between(0, 4), [this, boot] {
    if (up() && boot == boots_) commit();
  });
}

void SimCoordinator::commit() {
  commit_planned_ = false;
  Batch batch = std::exchange(batch_, {});
  const auto before = machine_->versions();
  for (const auto& [key, text] : machine_->take_changes(clock())) {
    if (text.empty())
      rows_.erase(key);
    else
      rows_[key] = text;
  }
  for (const auto& durable : batch.durable) durable();
  for (std::size_t fragment = 0; fragment < before.size(); ++fragment)
    if (before[fragment] + 1 != released_[fragment].size())
      world_.violation("fragment " + setup_.fragments[fragment] + " is at version " + std::to_string(before[fragment]) +
                       ", released are " + std::to_string(released_[fragment].size()));
  const auto needed = machine_->needed_versions();
  for (std::size_t fragment = 0; fragment < before.size(); ++fragment) {
    for (auto version = stored_[fragment].begin(); version != stored_[fragment].end();) {
      const bool wanted = *version + 2 > before[fragment] ||
                          std::binary_search(needed[fragment].begin(), needed[fragment].end(), *version);
      version = wanted ? std::next(version) : stored_[fragment].erase(version);
    }
  }
  // The process may end right after the commit, before a word of it is said.
  if (world_.faults() && world_.shape.coordinator_crashes > 0 && world_.random.chance(0.002)) {
    crash();
    world_.after(world_.random.between(10, 20000), [this] { boot(); });
    return;
  }
  for (const auto& act : batch.after) act();
}

// ---- commands

void SimCoordinator::check_task(const server::AssignTask& command) {
  const auto& participation = setup_.spec.participation;
  for (const auto& read : command.read)
    if (read.version < *stored_[read.fragment].rbegin() && stored_[read.fragment].count(read.version) == 0)
      world_.violation("task " + command.task + " reads a version that is not stored any more");
  if (command.kind != server::TaskKind::kTrain) return;
  std::size_t exchanged = 0;
  for (const auto role : setup_.roles) exchanged += role == FragmentRole::kExchanged ? 1 : 0;
  if (world_.shape.overlapped && command.after.empty() && command.read.size() < exchanged)
    world_.violation("task " + command.task + " neither reads all nor goes on from another");
  const std::uint64_t least =
      participation.work == ParticipationSpec::Work::kEqual ? setup_.spec.training.steps : participation.minimum_steps;
  if (command.steps < least || command.steps > setup_.spec.training.steps)
    world_.violation("task " + command.task + " asks for " + std::to_string(command.steps) + " steps");
  if (repeated(command.task) || participation.concurrency == 0) return;
  std::uint64_t training = 0;
  for (const auto& node : machine_->view().nodes) training += node.state == "training" ? 1 : 0;
  if (training > participation.concurrency) world_.violation("more nodes train at once than the run allows");
}

void SimCoordinator::on(const server::AssignTask& command) {
  if (world_.trace)
    world_.record("gives " + command.task + " of exchange " + std::to_string(command.exchange) + " to " + command.node +
                  (command.after.empty() ? "" : " after " + command.after));
  check_task(command);
  v1::ToNode message;
  auto& task = *message.mutable_task();
  task.set_task_id(command.task);
  task.set_run_id(setup_.run_id);
  task.set_spec_hash(setup_.spec.hash);
  task.set_kind(command.kind == server::TaskKind::kTrain ? v1::TASK_TRAIN : v1::TASK_EVALUATE);
  task.set_exchange(command.exchange);
  task.set_round(command.round);
  for (const auto& merge : command.merge) {
    auto& plan = *task.add_merge();
    plan.set_fragment(setup_.fragments[merge.fragment]);
    plan.set_exchange(merge.exchange);
    plan.set_at_step(merge.at_step);
    plan.set_rule(merge.rule);
    plan.set_alpha(merge.alpha);
    plan.set_block(merge.block);
  }
  task.set_after(command.after);
  for (const auto& read : command.read) {
    told_[command.node][read.fragment].insert(read.version);
    auto& item = *task.add_read();
    item.set_fragment(setup_.fragments[read.fragment]);
    item.set_version(read.version);
    if (read.version > machine_->versions()[read.fragment])
      world_.violation("task " + command.task + " reads a version that does not exist");
  }
  for (const auto fragment : command.write) task.add_write(setup_.fragments[fragment]);
  task.set_steps(command.steps);
  task.set_seed(command.seed);
  task.set_deadline_ms(static_cast<std::uint64_t>(command.deadline_ms));
  task.set_split(command.split);
  if (decided_.count(command.task) != 0)
    world_.violation("task " + command.task + " is given again after its decision");
  batch_.after.push_back([this, node = command.node, message]() mutable {
    const auto session = sessions_.find(node);
    if (session == sessions_.end()) return;
    message.mutable_task()->set_incarnation(session->second.incarnation);
    send(node, std::move(message));
  });
}

void SimCoordinator::check_delivery(const server::Deliver& command) {
  const bool asynchronous = setup_.spec.participation.mode == ParticipationSpec::Mode::kAsynchronous;
  const auto made = made_.find(command.exchange);
  if (!asynchronous && made == made_.end())
    return world_.violation("exchange " + std::to_string(command.exchange) + " is delivered before it is over");
  // What the exchange made; a node that was away gets what is there instead.
  for (const auto& read : command.versions) {
    const std::uint64_t current = machine_->versions()[read.fragment];
    const std::uint64_t least = asynchronous ? 0 : made->second.at(read.fragment);
    if (read.version < least || read.version > current)
      world_.violation("exchange " + std::to_string(command.exchange) + " is delivered as version " +
                       std::to_string(read.version) + " of fragment " + std::to_string(read.fragment));
    if (read.version + 1 < current && stored_[read.fragment].count(read.version) == 0)
      world_.violation("exchange " + std::to_string(command.exchange) +
                       " is delivered as a version that is not stored");
  }
}

void SimCoordinator::on(const server::Deliver& command) {
  if (world_.trace) world_.record("delivers exchange " + std::to_string(command.exchange) + " to " + command.node);
  check_delivery(command);
  for (const auto& read : command.versions) {
    told_[command.node][read.fragment].insert(read.version);
    v1::ToNode message;
    auto& delivery = *message.mutable_delivery();
    delivery.set_run_id(setup_.run_id);
    delivery.set_exchange(command.exchange);
    delivery.mutable_version()->set_fragment(setup_.fragments[read.fragment]);
    delivery.mutable_version()->set_version(read.version);
    batch_.after.push_back([this, node = command.node, message]() mutable { send(node, std::move(message)); });
  }
}

void SimCoordinator::on(const server::CancelTask& command) {
  if (world_.trace) world_.record("cancels " + command.task + ": " + command.reason);
  batch_.after.push_back([this, command] {
    v1::ToNode message;
    message.mutable_cancel()->set_task_id(command.task);
    message.mutable_cancel()->set_reason(command.reason);
    send(command.node, std::move(message));
  });
}

void SimCoordinator::on(const server::Accept& command) {
  const auto offer = offers_.find(command.task);
  if (offer == offers_.end()) return world_.violation("task " + command.task + " is accepted without an offer");
  const Stored stored{command.node, static_cast<double>(offer->second.examples)};
  const bool again = accepted_.count(command.task) != 0;
  const auto last = last_turn_.find(command.node);
  const std::uint64_t separation = setup_.spec.participation.minimum_separation;
  if (!again && separation > 1 && last != last_turn_.end() && command.exchange < last->second + separation)
    world_.violation(command.node + " takes part in exchange " + std::to_string(command.exchange) +
                     " so soon after exchange " + std::to_string(last->second));
  batch_.durable.push_back([this, command, stored] {
    accepted_.emplace(command.task, stored);
    last_turn_[command.node] = command.exchange;
  });
  batch_.after.push_back([this, command] { receipt(command.node, command.task, v1::UPDATE_ACCEPTED, 0, ""); });
}

void SimCoordinator::on(const server::CountReport& command) {
  batch_.durable.push_back([this, command] {
    decide(command.task, {true, command.node, command.versions.begin()->second, ""});
  });
  batch_.after.push_back([this, command] {
    receipt(command.node, command.task, v1::UPDATE_COUNTED, command.versions.begin()->second, "");
  });
}

void SimCoordinator::on(const server::Discard& command) {
  batch_.durable.push_back([this, command] {
    if (command.reason.empty()) world_.violation("task " + command.task + " is discarded without a reason");
    if (command.reason.find("was measured against version") != std::string::npos)
      world_.violation("task " + command.task + ": " + command.reason);
    discarded_ += decided_.count(command.task) == 0 ? 1 : 0;
    decide(command.task, {false, command.node, 0, command.reason});
  });
  batch_.after.push_back(
      [this, command] { receipt(command.node, command.task, v1::UPDATE_DISCARDED, 0, command.reason); });
}

void SimCoordinator::on(const server::Refuse& command) {
  world_.violation("task " + command.task + " is refused to its own node " + command.node + ": " + command.reason);
}

void SimCoordinator::on(const server::AskStore& command) {
  const auto known = decided_.find(command.task);
  if (known == decided_.end()) return on(server::Discard{command.task, command.node, command.otherwise});
  batch_.after.push_back([this, command, decision = known->second] {
    receipt(command.node, command.task, decision.counted ? v1::UPDATE_COUNTED : v1::UPDATE_DISCARDED, decision.version,
            decision.reason);
  });
}

void SimCoordinator::on(const server::Reduce& command) {
  // The content depends on the arguments alone.
  std::vector<std::uint64_t> contents;
  std::string last;
  for (const auto& step : command.fragments) {
    if (step.base_version != machine_->versions()[step.fragment])
      world_.violation("an exchange is reduced on an old base");
    std::uint64_t content = contents_[step.fragment].at(step.base_version);
    last.clear();
    for (const auto& input : command.inputs) {
      content = mix(content, input.task + "*" + std::to_string(input.weight));
      if (input.node < last)
        world_.violation("the inputs of exchange " + std::to_string(command.exchange) + " are not in order");
      last = input.node;
    }
    contents.push_back(content);
  }
  if (command.inputs.empty()) world_.violation("an exchange is reduced without updates");
  std::string arguments = std::to_string(command.nodes);
  std::set<std::string> nodes;
  for (const auto& input : command.inputs) {
    nodes.insert(input.node);
    arguments += " " + input.task + "*" + std::to_string(input.weight);
    for (const auto& [fragment, version] : input.base_versions) {
      arguments += " " + std::to_string(fragment) + "@" + std::to_string(version);
      if (setup_.needs.rebased && stored_[fragment].count(version) == 0)
        world_.violation("task " + input.task + " was measured against a version that is not stored any more");
    }
  }
  if (command.nodes < nodes.size()) world_.violation("more nodes delivered than consented");
  for (const auto& name : setup_.spec.participation.required_nodes)
    if (nodes.count(name) == 0) world_.violation("an exchange is reduced without " + name);
  if (const auto before = asked_.find(command.exchange); before != asked_.end() && before->second != arguments)
    world_.violation("exchange " + std::to_string(command.exchange) + " is reduced anew with other arguments");
  batch_.durable.push_back([this, command, arguments] { asked_[command.exchange] = arguments; });
  const bool fails = world_.faults() && world_.random.chance(world_.shape.reduce_failures);
  const auto finish = [this, command, contents, fails] {
    if (fails) return handle(server::Reduced{command.exchange, unavailable("the disk is full")});
    reductions_[command.exchange] = contents;
    handle(server::Reduced{command.exchange, std::nullopt});
  };
  if (world_.random.chance(0.5)) return finish();  // small: within the same commit
  const std::uint64_t boot = boots_;
  batch_.after.push_back([this, boot, finish] {
    world_.after(world_.random.between(1, 3000), [this, boot, finish] {
      if (up() && boot == boots_) finish();
    });
  });
}

void SimCoordinator::on(const server::Count& command) {
  const auto contents = reductions_.find(command.exchange);
  if (contents == reductions_.end()) return world_.violation("an exchange is counted that was not reduced");
  for (std::size_t i = 0; i < command.fragments.size(); ++i) {
    contents_[command.fragments[i].fragment].push_back(contents->second[i]);
    made_[command.exchange][command.fragments[i].fragment] = command.fragments[i].new_version;
  }
  batch_.durable.push_back([this, command, values = contents->second] {
    for (std::size_t i = 0; i < command.fragments.size(); ++i) {
      auto& versions = released_[command.fragments[i].fragment];
      if (command.fragments[i].new_version != versions.size())
        return world_.violation("a version is released out of turn");
      versions.push_back(values[i]);
      stored_[command.fragments[i].fragment].insert(command.fragments[i].new_version);
    }
    double examples = 0;
    for (std::size_t i = 0; i < command.tasks.size(); ++i) {
      const auto stored = accepted_.find(command.tasks[i]);
      if (stored == accepted_.end())
        return world_.violation("task " + command.tasks[i] + " is counted, but not durable");
      examples += stored->second.examples;
      ++counted_;
      decide(command.tasks[i], {true, stored->second.node, command.fragments.front().new_version, ""});
    }
    const bool asynchronous = setup_.spec.participation.mode == ParticipationSpec::Mode::kAsynchronous;
    const bool right = asynchronous ? command.total_weight <= examples + 1e-9 && command.total_weight > 0
                                    : std::fabs(command.total_weight - examples) < 1e-9;
    if (!right)
      world_.violation("exchange " + std::to_string(command.exchange) + ": the weights are not the counted updates'");
  });
  batch_.after.push_back([this, command] {
    for (std::size_t i = 0; i < command.tasks.size(); ++i)
      receipt(command.nodes[i], command.tasks[i], v1::UPDATE_COUNTED, command.fragments.front().new_version, "");
  });
}

void SimCoordinator::on(const server::Void& command) {
  batch_.durable.push_back([this] { ++voids_; });
  const auto now = machine_->versions();
  for (std::size_t fragment = 0; fragment < now.size(); ++fragment)
    made_[command.exchange][static_cast<server::FragmentIndex>(fragment)] = now[fragment];
  if (setup_.spec.participation.minimum_completion == 0)
    world_.violation("exchange " + std::to_string(command.exchange) + " is void in a run that has no void exchanges");
}

void SimCoordinator::on(const server::EvaluationDone& command) {
  for (const auto& [fragment, version] : command.versions)
    if (version > machine_->versions()[fragment])
      world_.violation("an evaluation measured a version that does not exist");
}

void SimCoordinator::on(const server::Finish& command) {
  batch_.durable.push_back([this, command] {
    if (outcome_) world_.violation("the run ended twice");
    outcome_ = command.outcome;
    world_.record("the run has " + command.outcome + ": " + command.reason);
  });
  batch_.after.push_back([this, command] {
    for (const auto& [node, session] : sessions_) {
      v1::ToNode message;
      message.mutable_run_ended()->set_run_id(setup_.run_id);
      message.mutable_run_ended()->set_outcome(command.outcome);
      send(node, std::move(message));
    }
  });
}

void SimCoordinator::on(const server::WakeAt& command) {
  const std::uint64_t wake = ++wake_;
  world_.after(std::max<std::int64_t>(0, command.at - clock()), [this, wake] {
    if (up() && wake == wake_) handle(server::Tick{});
  });
}

void SimCoordinator::decide(const std::string& task, Decision decision) {
  const auto [known, fresh] = decided_.emplace(task, decision);
  const bool repeated =
      !fresh && known->second.counted == decision.counted && known->second.version == decision.version;
  if (repeated) return;
  if (!fresh)
    world_.violation("task " + task + " was decided twice, first " +
                     (known->second.counted ? "counted" : "discarded: " + known->second.reason));
  world_.record((decision.counted ? "counted " : "discarded ") + task + " " + decision.reason);
}

// ---- sessions

void SimCoordinator::connected(const std::string& node, std::uint64_t link) {
  if (const auto old = sessions_.find(node); old != sessions_.end()) disconnected(node, old->second.link);
  sessions_[node] = {link, "i" + std::to_string(boots_) + "-" + std::to_string(link), false, false};
}

void SimCoordinator::disconnected(const std::string& node, std::uint64_t link) {
  const auto session = sessions_.find(node);
  if (session == sessions_.end() || session->second.link != link) return;
  const bool joined = session->second.joined;
  sessions_.erase(session);
  if (joined) handle(server::NodeLeft{.node = node});
}

void SimCoordinator::received(const std::string& node, std::uint64_t link, const v1::FromNode& message) {
  const auto found = sessions_.find(node);
  if (!up() || found == sessions_.end() || found->second.link != link) return;
  Session& session = found->second;
  switch (message.message_case()) {
    case v1::FromNode::kHello: {
      session.paused = message.hello().paused();
      v1::ToNode welcome;
      welcome.mutable_welcome()->set_incarnation(session.incarnation);
      welcome.mutable_welcome()->set_heartbeat_ms(10000);
      send(node, std::move(welcome));
      v1::ToNode announcement;
      announcement.mutable_run()->set_run_id(setup_.run_id);
      announcement.mutable_run()->set_spec_hash(setup_.spec.hash);
      if (!ended()) send(node, std::move(announcement));
      break;
    }
    case v1::FromNode::kRunAnswer: {
      const auto& answer = message.run_answer();
      server::NodeJoined event{.node = node, .data_set = answer.data_set()};
      event.examples = answer.examples().at("train");
      event.holdout_examples = answer.examples().at("holdout");
      event.paused = session.paused;
      event.new_session = !std::exchange(session.joined, true);
      handle(std::move(event));
      break;
    }
    case v1::FromNode::kUpdate: {
      v1::UpdateBody body;
      body.ParseFromString(message.update().body());
      if (body.kind() == v1::TASK_EVALUATE) {
        handle(server::EvaluationReported{body.task_id(), node, body.examples(), {{"loss", 1.0}}});
        break;
      }
      server::UpdateStored event{
          .task = body.task_id(), .node = node, .examples = body.examples(), .steps = body.steps(), .norm = 1};
      for (const auto& fragment : body.fragments())
        for (server::FragmentIndex index = 0; index < setup_.fragments.size(); ++index)
          if (setup_.fragments[index] == fragment.fragment()) event.base_versions[index] = fragment.base_version();
      if (world_.shape.overlapped)
        for (const auto& [fragment, version] : event.base_versions)
          if (told_[node][fragment].count(version) == 0)
            world_.violation("task " + event.task + " is measured from version " + std::to_string(version) +
                             ", which its node was not given");
      if (world_.faults() && world_.shape.drops > 0 && decided_.count(event.task) == 0 &&
          accepted_.count(event.task) == 0 && world_.random.chance(world_.shape.drops)) {
        handle(server::UpdateInvalid{event.task, node, "its values are not finite"});
        break;
      }
      offers_[event.task] = event;
      handle(std::move(event));
      break;
    }
    case v1::FromNode::kFailure: {
      const auto& failure = message.failure();
      world_.record("failed " + failure.task_id() + " " + failure.message());
      handle(server::TaskFailed{
          failure.task_id(), node, {static_cast<Code>(failure.code()), failure.message(), failure.retryable()}});
      break;
    }
    case v1::FromNode::kHeartbeat: {
      v1::ToNode echo;
      echo.mutable_heartbeat()->set_token(message.heartbeat().token());
      send(node, std::move(echo));
      if (std::exchange(session.paused, message.heartbeat().paused()) != session.paused && session.joined)
        handle(server::NodePaused{node, session.paused});
      break;
    }
    case v1::FromNode::kReceiptQuery:
      for (const auto& task : message.receipt_query().task_ids()) {
        const auto known = decided_.find(task);
        if (known != decided_.end())
          receipt(node, task, known->second.counted ? v1::UPDATE_COUNTED : v1::UPDATE_DISCARDED, known->second.version,
                  known->second.reason);
        else
          receipt(node, task, accepted_.count(task) != 0 ? v1::UPDATE_ACCEPTED : v1::UPDATE_STATE_UNSPECIFIED, 0, "");
      }
      break;
    default:
      break;
  }
}

void SimCoordinator::receipt(const std::string& node, const std::string& task, v1::UpdateState state,
                             std::uint64_t version, const std::string& reason) {
  v1::ToNode message;
  message.mutable_receipt()->set_task_id(task);
  message.mutable_receipt()->set_state(state);
  message.mutable_receipt()->set_version(version);
  message.mutable_receipt()->set_reason(reason);
  send(node, std::move(message));
}

void SimCoordinator::send(const std::string& node, v1::ToNode message) {
  const auto session = sessions_.find(node);
  if (session != sessions_.end()) clients_.at(node)->deliver(session->second.link, std::move(message));
}

// ---- the end

void SimCoordinator::check_end() {
  for (const auto& [task, stored] : accepted_)
    if (decided_.count(task) == 0) world_.violation("task " + task + " was accepted and never decided");
  std::uint64_t counted = 0;
  for (const auto& [task, decision] : decided_) {
    if (decision.counted && accepted_.count(task) != 0) ++counted;
  }
  if (counted != counted_) world_.violation("the counted updates are not the counted receipts");
  if (outcome_ != "completed" || !up()) return;
  std::uint64_t committed = 0;
  std::uint64_t lanes = 0;
  for (std::size_t fragment = 0; fragment < setup_.fragments.size(); ++fragment) {
    const std::uint64_t version = machine_->versions()[fragment];
    if (setup_.roles[fragment] == FragmentRole::kFrozen && version != 0)
      world_.violation("a frozen fragment has version " + std::to_string(version));
    if (setup_.roles[fragment] != FragmentRole::kExchanged) continue;
    const bool staggered = setup_.spec.exchange.schedule == ExchangeSpec::Schedule::kStaggered;
    if (!staggered && lanes > 0) continue;
    committed += version;
    ++lanes;
  }
  if (committed + voids_ != lanes * setup_.spec.stop.rounds)
    world_.violation("a completed run has " + std::to_string(committed) + " versions and " + std::to_string(voids_) +
                     " void rounds");
}

std::string SimCoordinator::undecided() const {
  std::string out = up() ? machine_->status().status + " (" + machine_->status().status_reason + ")" : "down";
  if (up())
    for (const auto& node : machine_->view().nodes) out += "; " + node.node + " " + node.state + " " + node.detail;
  return out;
}

}  // namespace skerry::simulation
