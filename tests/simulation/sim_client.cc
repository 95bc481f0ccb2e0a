#include "tests/simulation/sim_client.h"

#include <algorithm>
#include <utility>

#include "tests/simulation/sim_coordinator.h"

namespace skerry::simulation {
SimClient::SimClient(World& world, SimCoordinator& coordinator, std::string name)
    : world_(world),
      coordinator_(coordinator),
      name_(std::move(name)),
      examples_(10 + world.random.below(100)),
      step_ms_(world.random.between(10, 400)),
      overlapped_(world, name_, step_ms_, [this](const client::Event& event) {
        running_.clear();
        handle(event);
      }) {}

void SimClient::boot() {
  if (up()) return;
  ++life_;
  world_.record(name_ + " boots");
  client::ClientMachineOptions options;
  options.seed = world_.random.next();
  options.previous_incarnation = incarnation_;
  for (const auto& [task, update] : outbox_) options.outbox.push_back(update);
  machine_ = std::make_unique<client::ClientMachine>(std::move(options));
  handle(client::Started{});
}

void SimClient::crash() {
  if (!up()) return;
  world_.record(name_ + " crashes");
  machine_.reset();
  overlapped_.end();
  bases_.clear();
  sent_.clear();
  running_.clear();
  ++trainer_;
  ++wake_;
  ++attempt_;
  break_link();
}

void SimClient::handle(const client::Event& event) {
  if (!up()) return;
  for (const auto& command : machine_->handle(event, static_cast<client::Instant>(world_.now())))
    std::visit([this](const auto& known) { on(known); }, command);
  if (up()) incarnation_ = machine_->incarnation();
}

void SimClient::later(std::int64_t delay_ms, client::Event event) {
  world_.after(delay_ms, [this, life = life_, event = std::move(event)] {
    if (up() && life == life_) handle(event);
  });
}

// ---- the link

void SimClient::on(const client::ConnectAfter& command) {
  const std::uint64_t attempt = ++attempt_;
  world_.after(static_cast<std::int64_t>(command.delay_ms) + world_.random.between(1, 30),
               [this, attempt, life = life_] {
                 if (up() && life == life_ && attempt == attempt_) connect();
               });
}

void SimClient::connect() {
  if (!coordinator_.up() || (world_.faults() && world_.random.chance(world_.shape.link_breaks * 2)))
    return handle(client::Disconnected{unavailable("connection refused")});
  break_link();
  link_ = ++world_.links;
  up_clear_ = down_clear_ = world_.now();
  coordinator_.connected(name_, link_);
  handle(client::Connected{});
}

void SimClient::break_link() {
  if (link_ == 0) return;
  const std::uint64_t link = std::exchange(link_, 0);
  // The coordinator notices later.
  world_.after(world_.random.between(0, 5000), [this, link] { coordinator_.disconnected(name_, link); });
}

void SimClient::link_broken(std::uint64_t link) {
  world_.after(world_.random.between(0, 50), [this, link] {
    if (link != link_) return;
    link_ = 0;
    handle(client::Disconnected{unavailable("the connection broke")});
  });
}

void SimClient::on(const client::CloseSession&) { break_link(); }

void SimClient::on(const client::Send& command) {
  if (link_ == 0) return;
  if (world_.faults() && world_.random.chance(world_.shape.link_breaks)) {
    const std::uint64_t link = link_;
    break_link();
    link_ = link;  // so that link_broken knows it
    return link_broken(link);
  }
  const std::int64_t at = std::max(up_clear_, world_.now() + world_.random.between(1, 60));
  up_clear_ = at;
  const auto arrive = [this, link = link_, message = command.message] { coordinator_.received(name_, link, message); };
  world_.after(at - world_.now(), arrive);
  // A copy that comes once more, much later, in the name of the same link.
  if (command.message.has_update() && world_.faults() && world_.random.chance(world_.shape.duplicates))
    world_.after(at - world_.now() + world_.random.between(0, 20000), arrive);
}

void SimClient::deliver(std::uint64_t link, v1::ToNode message) {
  if (world_.faults() && world_.random.chance(world_.shape.link_breaks)) {
    world_.after(world_.random.between(0, 5000), [this, link] { coordinator_.disconnected(name_, link); });
    return link_broken(link);
  }
  const std::int64_t at = std::max(down_clear_, world_.now() + world_.random.between(1, 60));
  down_clear_ = at;
  world_.after(at - world_.now(), [this, link, message = std::move(message)] {
    if (link == link_) handle(client::Received{message});
  });
}

// ---- the holder and the trainer

void SimClient::on(const client::JudgeRun& command) {
  v1::RunAnswer answer;
  answer.set_run_id(command.run.run_id());
  answer.set_spec_hash(command.run.spec_hash());
  answer.set_accepted(true);
  answer.set_data_set("data");
  (*answer.mutable_examples())["train"] = examples_;
  (*answer.mutable_examples())["holdout"] = examples_ % 3 == 0 ? 0 : examples_ / 5;
  later(1, client::RunJudged{.answer = answer, .overlapped = world_.shape.overlapped});
}

void SimClient::on(const client::StartTrainer& command) {
  ++trainer_;
  if (world_.faults() && world_.random.chance(world_.shape.trainer_failures / 2))
    return later(50, client::TrainerExited{command.run_id, unavailable("the trainer did not start")});
  later(world_.random.between(5, 1000), client::TrainerReady{command.run_id});
}

void SimClient::on(const client::StopTrainer& command) {
  ++trainer_;
  overlapped_.end();
  running_.clear();
  bases_.clear();
  later(world_.random.between(1, 500), client::TrainerExited{command.run_id, {Code::kCancelled, "stopped", true}});
}

void SimClient::on(const client::TrainerRequest& command) {
  const auto& task = command.task;
  running_ = task.task_id();
  if (world_.shape.overlapped && task.kind() == v1::TASK_TRAIN) return overlapped_.train(task);
  const std::uint64_t trainer = trainer_;
  const auto hear = [this, trainer, life = life_, id = task.task_id()](std::int64_t delay, client::Event event) {
    world_.after(delay, [this, trainer, life, id, event = std::move(event)] {
      if (!up() || life != life_ || trainer != trainer_ || running_ != id) return;
      running_.clear();
      handle(event);
    });
  };
  if (task.kind() == v1::TASK_TRAIN) {
    for (const auto& read : task.read()) {
      bases_[read.fragment()] = read.version();
      sent_.erase(read.fragment());
    }
    for (const auto& fragment : task.write())
      if (bases_.count(fragment) == 0)
        return hear(1, client::TrainerError{task.run_id(), task.task_id(),
                                            not_found("fragment " + fragment + " was never read")});
  }
  if (world_.faults() && world_.random.chance(world_.shape.trainer_failures)) {
    if (world_.random.chance(0.5)) {
      ++trainer_;
      bases_.clear();
      running_.clear();
      return later(world_.random.between(1, 2000),
                   client::TrainerExited{task.run_id(), unavailable("the trainer was killed")});
    }
    return hear(world_.random.between(1, 2000),
                client::TrainerError{task.run_id(),
                                     task.task_id(),
                                     {Code::kFailedPrecondition, "the loss is not finite", world_.random.chance(0.5)}});
  }
  client::TrainerResult result;
  result.steps = task.steps();
  result.examples = task.kind() == v1::TASK_TRAIN ? examples_ : examples_ / 5;
  hear(world_.random.between(5, static_cast<std::int64_t>(1 + task.steps()) * step_ms_),
       client::TrainerDone{task.run_id(), task.task_id(), result});
}

void SimClient::on(const client::CancelTask& command) {
  if (running_ != command.task_id) return;
  running_.clear();
  overlapped_.cancel();
  later(world_.random.between(1, 200), client::TrainerCancelled{command.run_id, command.task_id});
}

void SimClient::on(const client::Fetch& command) {
  if (world_.faults() && world_.random.chance(world_.shape.link_breaks))
    return later(500, client::FetchFailed{command.task.task_id(), unavailable("the download broke")});
  later(world_.random.between(1, 200), client::FetchDone{command.task.task_id()});
}

void SimClient::on(const client::FetchMerge& command) {
  const auto& version = command.delivery.version();
  const std::uint64_t exchange = command.delivery.exchange();
  if (world_.faults() && world_.random.chance(world_.shape.link_breaks)) {
    const Error error = world_.random.chance(0.7) ? unavailable("the download broke") : not_found("it was pruned");
    return later(500, client::MergeFailed{command.delivery.run_id(), exchange, version.fragment(), error});
  }
  delivered_[{exchange, version.fragment()}] = version.version();
  later(world_.random.between(1, 2000), client::MergeFetched{command.delivery.run_id(), exchange, version.fragment()});
}

void SimClient::on(const client::MergeFragment& command) {
  overlapped_.hand(command.exchange, command.fragment, delivered_.at({command.exchange, command.fragment}));
}

void SimClient::on(const client::StoreUpdate& command) {
  if (world_.faults() && world_.random.chance(world_.shape.trainer_failures / 4))
    return later(10, client::StoreFailed{command.task.task_id(), {Code::kResourceExhausted, "the disk is full", true}});
  client::StoredUpdate update;
  update.task = command.task;
  v1::UpdateBody body;
  body.set_task_id(command.task.task_id());
  body.set_run_id(command.task.run_id());
  body.set_node(name_);
  body.set_kind(command.task.kind());
  body.set_exchange(command.task.exchange());
  const bool overlapped = world_.shape.overlapped && command.task.kind() == v1::TASK_TRAIN;
  body.set_examples(overlapped ? examples_ : command.result.examples);
  body.set_steps(command.result.steps);
  for (const auto& fragment : command.task.write()) {
    const bool last = &fragment == &*command.task.write().rbegin();
    if (world_.shape.partial && !(last && body.fragments().empty()) && world_.random.chance(0.3)) continue;
    auto& item = *body.add_fragments();
    item.set_fragment(fragment);
    item.set_base_version(overlapped ? overlapped_.bases(command.task.task_id()).at(fragment) : bases_[fragment]);
    if (!overlapped && !sent_.insert(fragment).second)
      world_.violation(name_ + " sends a change of " + fragment + " in task " + command.task.task_id() +
                       " that holds an earlier update's again");
  }
  update.message.set_body(body.SerializeAsString());
  world_.after(world_.random.between(0, 20), [this, life = life_, update = std::move(update)] {
    if (!up() || life != life_) return;
    outbox_[update.task.task_id()] = update;
    handle(client::OutboxStored{update});
  });
}

void SimClient::on(const client::ForgetUpdate& command) {
  outbox_.erase(command.task_id);
  const std::string what = command.state == v1::UPDATE_COUNTED ? "counted" : "discarded";
  const auto [known, fresh] = told_.emplace(command.task_id, what);
  if (!fresh && known->second != what)
    world_.violation(name_ + " was told of task " + command.task_id + " first " + known->second + ", then " + what);
}

void SimClient::on(const client::WakeAt& command) {
  const std::uint64_t wake = ++wake_;
  world_.after(std::max<std::int64_t>(0, static_cast<std::int64_t>(command.at) - world_.now()),
               [this, wake, life = life_] {
                 if (up() && life == life_ && wake == wake_) handle(client::Tick{});
               });
}

}  // namespace skerry::simulation
