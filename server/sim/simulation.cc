#include "server/sim/simulation.h"

#include <time.h>  // NOLINT(modernize-deprecated-headers): clock_gettime

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <queue>
#include <tuple>
#include <utility>

#include "common/os/files.h"
#include "server/sim/model_files.h"
#include "server/sim/virtual_client.h"
#include "server/sim/virtual_coordinator.h"
#include "server/sim/worker_pool.h"

namespace skerry::sim {
namespace {

using server::NodeJoined;
using server::NodeLeft;
using Steady = std::chrono::steady_clock;

constexpr std::int64_t kRedrawMs = 60'000;      // availability by round: drawn again where no exchange came of it
constexpr std::uint64_t kMaxIdleEvents = 1'000'000;  // without any task ending: nothing will come of it any more
constexpr double kEvaluationShare = 1.0 / 3;    // of a training step's time: no backward pass

double process_cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

std::int64_t in_ms(double seconds) { return static_cast<std::int64_t>(std::ceil(seconds * 1000)); }

/// A client as the simulation sees it.
struct Member {
  ClientPlan plan;
  std::unique_ptr<VirtualClient> client;
  ClientResult result;
  bool there = false;
  std::string counted;                             ///< its latest task whose update was counted
  std::int64_t free_at_ms = 0;                     ///< when its trainer has done what it was given
  std::map<std::string, std::shared_ptr<const ModelFile>> bases;     ///< by fragment: what it last read to train on
  std::map<std::string, std::shared_ptr<const ModelFile>> previous;  ///< and before that
};

/// A task that was given out, until its receipt is final.
struct Outstanding {
  std::shared_ptr<Job> job;
  std::optional<WorkerPool::Ticket> ticket;  ///< nothing: it is never worked on, the client drops it
  std::int64_t computed_ms = 0;              ///< when its trainer is done
  double compute_seconds = 0;
  std::uint64_t bytes_up = 0;
  bool waits_at_home = false;  ///< done while the client was away
  bool offered = false;
};

/// Something that happens at an instant of the virtual clock.
struct Due {
  std::int64_t at_ms = 0;
  std::uint64_t order = 0;  ///< of those at one instant
  std::size_t client = 0;
  std::string task;         ///< its result arrives; empty: the client comes or goes; "draw": all clients are drawn
  bool operator>(const Due& other) const { return std::tie(at_ms, order) > std::tie(other.at_ms, other.order); }
};

struct Test {
  std::uint64_t exchange = 0;
  WorkerPool::Ticket ticket = 0;
  Job job;
};

class Simulation {
 public:
  Simulation(const SimulationOptions& options, server::RunPlan plan, Population population, Availability availability)
      : options_(options),
        plan_(std::move(plan)),
        population_(std::move(population)),
        availability_(std::move(availability)),
        shared_{plan_, "r-" + plan_.spec.hash.substr(0, 16) + "-1", join_path(options.scratch, "clients"),
                options.scenario.threads},
        pool_(std::max(1u, options.workers)) {}

  Result<SimulationResult> run();

 private:
  Result<void> begin();
  void everyone_joins();
  Result<void> loop();
  Result<void> advance(std::optional<std::int64_t> coordinator_ms);
  void happen(const Due& due);
  SimulationResult result();

  // ---- what the coordinator says
  void told(const std::string& node, const v1::ToNode& message);
  void take_task(std::size_t client, const v1::Task& task);
  void cancel(const std::string& task);
  void receive(const v1::Receipt& receipt);

  // ---- tasks
  Result<std::shared_ptr<Job>> make_job(std::size_t client, const v1::Task& task);
  void schedule(Outstanding& outstanding, std::uint64_t bytes_down);
  double compute_seconds(const Member& member, const v1::Task& task) const;
  struct Download {
    std::uint64_t bytes = 0;
    std::uint64_t cargo = 0;  ///< of them, those that do not come with the task
  };
  Download download_of(const Member& member, const v1::Task& task) const;
  void arrive(const std::string& task);
  void offer(Outstanding& outstanding);
  void fail(Outstanding& outstanding, Error error);
  void attack(Outstanding& outstanding);
  v1::UpdateBody body_of(const Outstanding& outstanding) const;

  // ---- who is there
  void set_there(std::size_t client, bool there);
  void plan_change(std::size_t client, const Availability::Spell& spell);
  void draw_all();

  // ---- what the run has come to
  Result<void> released();
  Result<std::map<std::string, std::shared_ptr<const ModelFile>>> latest_model();
  void collect_tests(bool wait);

  void at(std::int64_t at_ms, std::size_t client, std::string task) { due_.push({at_ms, next_order_++, client, std::move(task)}); }
  std::int64_t now() const { return clock_.monotonic_ms(); }
  Member& member_of(const Outstanding& outstanding) { return members_[outstanding.job->client]; }

  const SimulationOptions& options_;
  const server::RunPlan plan_;
  Population population_;
  Availability availability_;
  ClientSurroundings shared_;
  VirtualClock clock_;
  std::unique_ptr<VirtualCoordinator> coordinator_;
  std::unique_ptr<ModelFiles> files_;
  std::vector<Member> members_;
  std::map<std::string, std::size_t> places_;  // by name
  std::map<std::string, Outstanding> outstanding_;  // by task
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::uint64_t next_order_ = 0;
  std::uint64_t idle_events_ = 0;
  std::uint64_t draws_ = 0;      // of all clients
  std::uint64_t exchanges_ = 0;  // released
  bool released_ = false;
  double attack_strength_ = 0;
  std::optional<ClientPlan> tester_plan_;
  std::unique_ptr<VirtualClient> tester_;
  std::vector<std::unique_ptr<Test>> tests_;
  std::vector<TestResult> test_results_;
  std::map<std::string, double> latest_test_;
  double trainer_seconds_ = 0;
  std::string ended_, ended_reason_;  // where the run itself does not say it
  std::optional<Error> broken_;       // the scratch directory failed inside a callback
  WorkerPool pool_;  // last: its threads are gone before what they work on
};

Result<void> Simulation::begin() {
  const std::string home = join_path(options_.scratch, "home");
  const std::string versions = join_path(options_.scratch, "versions");
  for (const std::string& directory : {home, versions, shared_.directory}) SKERRY_TRY(make_directories(directory));
  for (ClientPlan& plan : population_.clients) {
    Member member;
    member.result = {.name = plan.name,
                     .hostile = plan.hostile,
                     .speed = plan.pace.speed,
                     .examples = plan.examples,
                     .holdout_examples = plan.holdout_examples};
    places_[plan.name] = members_.size();
    member.plan = std::move(plan);
    members_.push_back(std::move(member));
  }
  for (Member& member : members_) member.client = std::make_unique<VirtualClient>(shared_, member.plan);
  if (population_.test_data != nullptr) {
    tester_plan_ = ClientPlan{.name = "@test", .whole = population_.test_data, .part = population_.test_part};
    tester_ = std::make_unique<VirtualClient>(shared_, *tester_plan_);
  }
  std::uint64_t hostile = 0;
  for (const Member& member : members_) hostile += member.plan.hostile ? 1 : 0;
  const auto rate = plan_.spec.outer.parameters.find("learning_rate");
  const double* learning_rate = rate == plan_.spec.outer.parameters.end() ? nullptr : std::get_if<double>(&rate->second);
  const auto& participation = plan_.spec.participation;
  std::uint64_t cohort = participation.cohort_size > 0 ? std::min<std::uint64_t>(participation.cohort_size, members_.size())
                                                       : members_.size();
  if (participation.mode == ParticipationSpec::Mode::kAsynchronous) cohort = participation.buffer;
  const AttackPlan& attack = options_.scenario.attack;
  const bool of_cohort = attack.kind == AttackKind::kModelReplacement;
  attack_strength_ = attack.strength.value_or(
      default_strength(attack.kind, of_cohort ? cohort : members_.size(), hostile, learning_rate ? *learning_rate : 1));

  SKERRY_ASSIGN(coordinator_, VirtualCoordinator::make(home, plan_, clock_, pool_.threads(),
                                                       {[this](const std::string& node, v1::ToNode message) { told(node, message); },
                                                        [this](const std::string& node) { return members_[places_.at(node)].there; },
                                                        [this] { released_ = true; }}));
  files_ = std::make_unique<ModelFiles>(versions, plan_.layout, coordinator_->cargo());
  SKERRY_TRY(coordinator_->settle());
  everyone_joins();
  return {};
}

// Nobody is given work before all who are there have joined.
void Simulation::everyone_joins() {
  coordinator_->run().handle(server::OperatorPause{"the clients join"});
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (availability_.by_round()) {
      set_there(i, availability_.drawn(i, 0));
    } else {
      const auto spell = availability_.spell(i, 0);
      set_there(i, spell.there);
      plan_change(i, spell);
    }
  }
  if (availability_.by_round()) at(kRedrawMs, 0, "draw");
  coordinator_->run().handle(server::OperatorResume{});
}

Result<SimulationResult> Simulation::run() {
  const auto begun = Steady::now();
  const double cpu_begun = process_cpu_seconds();
  SKERRY_TRY(begin());
  SKERRY_TRY(loop());
  collect_tests(/*wait=*/true);
  SimulationResult found = result();
  found.wall_seconds = std::chrono::duration<double>(Steady::now() - begun).count();
  found.cpu_seconds = process_cpu_seconds() - cpu_begun;
  return found;
}

Result<void> Simulation::loop() {
  for (;;) {
    SKERRY_ASSIGN(const auto coordinator_ms, coordinator_->settle());
    if (broken_) return *broken_;
    if (std::exchange(released_, false)) SKERRY_TRY(released());
    if (coordinator_->run().finished()) return {};
    if (options_.stop != nullptr && *options_.stop) {
      ended_ = "interrupted";
      return {};
    }
    if (idle_events_ > kMaxIdleEvents || (!coordinator_ms && due_.empty())) {
      ended_ = "stuck";
      ended_reason_ = "no client will ever do anything more: " + coordinator_->run().summary().status_reason();
      return {};
    }
    SKERRY_TRY(advance(coordinator_ms));
  }
}

// To the next instant at which anything happens, and lets one thing happen.
Result<void> Simulation::advance(std::optional<std::int64_t> coordinator_ms) {
  ++idle_events_;
  if (!due_.empty() && (!coordinator_ms || due_.top().at_ms <= *coordinator_ms)) {
    const Due due = due_.top();
    due_.pop();
    clock_.move_to(std::max(now(), due.at_ms));
    happen(due);
  } else {
    clock_.move_to(std::max(now(), *coordinator_ms));
  }
  return {};
}

void Simulation::happen(const Due& due) {
  if (due.task == "draw") return draw_all();
  if (!due.task.empty()) return arrive(due.task);
  const auto spell = availability_.spell(due.client, now());
  set_there(due.client, spell.there);
  plan_change(due.client, spell);
}

// ---- what the coordinator says ----

void Simulation::told(const std::string& node, const v1::ToNode& message) {
  const std::size_t client = places_.at(node);
  if (message.has_task()) take_task(client, message.task());
  if (message.has_cancel()) cancel(message.cancel().task_id());
  if (message.has_receipt()) receive(message.receipt());
}

void Simulation::take_task(std::size_t client, const v1::Task& task) {
  if (const auto known = outstanding_.find(task.task_id()); known != outstanding_.end()) {
    // Assigned again, because the client was away.
    if (known->second.waits_at_home) at(now(), client, task.task_id());
    return;
  }
  Member& member = members_[client];
  const Download download = download_of(member, task);
  member.result.bytes_down += download.bytes;
  coordinator_->run().carried(member.plan.name, 0, download.cargo);
  auto job = make_job(client, task);
  if (!job.ok()) {
    broken_ = job.error();
    return;
  }
  Outstanding& outstanding = outstanding_[task.task_id()];
  outstanding.job = *job;
  if ((*job)->is_train()) {
    ++member.result.tasks;
    Draws draws(plan_.spec.seed, "dropout", (static_cast<std::uint64_t>(client) << 32) + (*job)->number);
    if (draws.uniform() < options_.scenario.dropout) {
      outstanding.compute_seconds = compute_seconds(member, task) * draws.uniform();
      at(std::max(now(), member.free_at_ms) + in_ms(outstanding.compute_seconds), client, task.task_id());
      return;
    }
  }
  schedule(outstanding, download.bytes);
  outstanding.ticket = pool_.submit(client, [work = outstanding.job, with = member.client.get()] { with->work(*work); });
}

Result<std::shared_ptr<Job>> Simulation::make_job(std::size_t client, const v1::Task& task) {
  Member& member = members_[client];
  auto job = std::make_shared<Job>();
  job->client = client;
  job->number = member.result.tasks;
  job->counted = member.counted;
  for (const v1::FragmentVersion& wanted : task.read()) {
    SKERRY_ASSIGN(const auto version, coordinator_->store().version(shared_.run_id, wanted.fragment(), wanted.version()));
    if (!version) return internal_error("version " + std::to_string(wanted.version()) + " of fragment " + wanted.fragment() + " is not in the store");
    SKERRY_ASSIGN(job->read[wanted.fragment()], files_->get(*version));
  }
  job->task = task;
  job->task.clear_read();
  // Frozen tensors are sent once; a trainer that has them reads them again without harm.
  for (const FragmentLayout& fragment : plan_.layout.fragments) {
    if (fragment.role != FragmentRole::kFrozen) continue;
    auto& known = member.bases[fragment.name];
    if (const auto sent = job->read.find(fragment.name); sent != job->read.end()) known = sent->second;
    if (known) job->read[fragment.name] = known;
  }
  if (!job->is_train()) return job;

  for (const auto& [fragment, file] : job->read) {
    member.previous[fragment] = member.bases[fragment];
    member.bases[fragment] = file;
  }
  for (const std::string& fragment : task.write()) {
    if (!member.bases[fragment]) return internal_error("task " + task.task_id() + " writes fragment " + fragment + ", which " + member.plan.name + " never read");
    job->bases.push_back(member.bases[fragment]);
    job->previous.push_back(member.previous[fragment]);
  }
  const AttackPlan& attack = options_.scenario.attack;
  job->hostile_update = member.plan.hostile && attack.alters_update();
  job->keeps_deltas = attack.needs_honest() && !member.plan.hostile;
  return job;
}

double Simulation::compute_seconds(const Member& member, const v1::Task& task) const {
  const double batch = static_cast<double>(std::max<std::uint64_t>(1, plan_.spec.training.batch));
  double steps = static_cast<double>(task.steps());
  if (task.kind() != v1::TASK_TRAIN) steps = std::ceil(static_cast<double>(member.plan.holdout_examples) / batch) * kEvaluationShare;
  else if (task.steps() == 0) steps = std::ceil(std::max(1.0, std::round(task.epochs() * static_cast<double>(member.plan.examples))) / batch);
  return steps * options_.scenario.step_seconds / member.plan.pace.speed;
}

// As a daemon fetches them: nothing that it has, the step where it has the version before, else the whole.
Simulation::Download Simulation::download_of(const Member& member, const v1::Task& task) const {
  Download download;
  for (const v1::FragmentVersion& wanted : task.read()) {
    const auto found = member.bases.find(wanted.fragment());
    const auto base = found == member.bases.end() ? nullptr : found->second;
    if (base && base->version == wanted.version()) continue;
    const bool by_step = wanted.step().size() > 0 && base && base->version + 1 == wanted.version();
    const v1::Blob& blob = by_step ? wanted.step() : wanted.whole();
    download.bytes += blob.size();
    if (blob.inline_data().empty()) download.cargo += blob.size();
  }
  return download;
}

// When the task's result arrives: download, the trainer's turn, its work, upload.
void Simulation::schedule(Outstanding& outstanding, std::uint64_t bytes_down) {
  const v1::Task& task = outstanding.job->task;
  Member& member = member_of(outstanding);
  const Pace& pace = member.plan.pace;
  const auto carry = [&](std::uint64_t bytes, double mbps) {
    return in_ms(pace.latency_ms / 1000 + (mbps > 0 ? static_cast<double>(bytes) * 8 / (mbps * 1e6) : 0.0));
  };
  outstanding.bytes_up = outstanding.job->is_train() ? task.max_update_bytes() : 0;
  outstanding.compute_seconds = compute_seconds(member, task);
  outstanding.computed_ms = std::max(now() + carry(bytes_down, pace.down_mbps), member.free_at_ms) + in_ms(outstanding.compute_seconds);
  member.free_at_ms = outstanding.computed_ms;
  at(outstanding.computed_ms + carry(outstanding.bytes_up, pace.up_mbps), outstanding.job->client, task.task_id());
}

void Simulation::cancel(const std::string& task) {
  const auto found = outstanding_.find(task);
  if (found == outstanding_.end() || found->second.offered) return;
  Outstanding& outstanding = found->second;
  Member& member = member_of(outstanding);
  if (outstanding.ticket && !pool_.cancel(*outstanding.ticket)) {
    // Begun or done by now, but not at this instant of the virtual clock.
    pool_.submit(outstanding.job->client, [job = outstanding.job, with = member.client.get()] {
      if (job->is_train() && job->answer.ok()) with->undo_task();
    });
  }
  const std::size_t client = outstanding.job->client;
  outstanding_.erase(found);
  member.free_at_ms = now();
  for (const auto& [id, other] : outstanding_)
    if (other.job->client == client) member.free_at_ms = std::max(member.free_at_ms, other.computed_ms);
}

void Simulation::receive(const v1::Receipt& receipt) {
  const auto found = outstanding_.find(receipt.task_id());
  if (found == outstanding_.end()) return;
  if (receipt.state() != v1::UPDATE_COUNTED && receipt.state() != v1::UPDATE_DISCARDED) return;
  if (found->second.job->is_train()) {
    Member& member = member_of(found->second);
    const bool counted = receipt.state() == v1::UPDATE_COUNTED;
    ++(counted ? member.result.counted : member.result.discarded);
    if (counted) member.counted = receipt.task_id();
  }
  outstanding_.erase(found);
}

// ---- tasks ----

void Simulation::arrive(const std::string& task) {
  const auto found = outstanding_.find(task);
  if (found == outstanding_.end() || found->second.offered) return;  // cancelled meanwhile
  idle_events_ = 0;
  Outstanding& outstanding = found->second;
  Member& member = member_of(outstanding);
  if (!outstanding.ticket) {
    ++member.result.dropped;
    member.result.busy_seconds += outstanding.compute_seconds;
    return fail(outstanding, unavailable("the client dropped out"));
  }
  if (!outstanding.waits_at_home) {
    member.result.busy_seconds += outstanding.compute_seconds;
    pool_.wait(*outstanding.ticket);
    trainer_seconds_ += outstanding.job->trainer_seconds;
  }
  outstanding.waits_at_home = !member.there;
  if (member.there) offer(outstanding);
}

void Simulation::fail(Outstanding& outstanding, Error error) {
  const std::string task = outstanding.job->task.task_id();
  const std::string node = member_of(outstanding).plan.name;
  outstanding_.erase(task);
  coordinator_->run().failed(node, task, std::move(error));
}

void Simulation::offer(Outstanding& outstanding) {
  Job& job = *outstanding.job;
  if (!job.answer.ok()) return fail(outstanding, job.answer.error());
  if (job.hostile_update) attack(outstanding);
  if (job.is_train() && !job.update.ok()) return fail(outstanding, job.update.error());
  outstanding.offered = true;
  Member& member = member_of(outstanding);
  // The payloads stay in memory, beside the message that the store keeps.
  v1::UpdateBody body = body_of(outstanding);
  v1::SignedUpdate message;
  message.set_body(body.SerializeAsString());
  std::uint64_t payloads = 0;
  if (job.is_train())
    for (int i = 0; i < body.fragments_size(); ++i) {
      v1::FragmentUpdate& made = job.update->fragments[static_cast<std::size_t>(i)];
      payloads += made.data().size();
      body.mutable_fragments(i)->mutable_data()->set_inline_data(std::move(*made.mutable_data()->mutable_inline_data()));
    }
  coordinator_->run().carried(member.plan.name, payloads, 0);
  member.result.bytes_up += message.body().size() + payloads;
  coordinator_->run().offered(member.plan.name, std::move(body), std::move(message));
}

// Those who are hostile know all honest updates of their round, also such that have not arrived.
void Simulation::attack(Outstanding& outstanding) {
  Job& job = *outstanding.job;
  std::vector<const Job*> honest;
  if (options_.scenario.attack.needs_honest()) {
    for (const auto& [id, other] : outstanding_) {
      const Job& candidate = *other.job;
      if (!candidate.keeps_deltas || !other.ticket || candidate.task.exchange() != job.task.exchange()) continue;
      pool_.wait(*other.ticket);
      if (candidate.answer.ok() && candidate.deltas.size() == job.deltas.size()) honest.push_back(&candidate);
    }
    std::sort(honest.begin(), honest.end(), [](const Job* a, const Job* b) { return a->client < b->client; });
  }
  Deltas sent;
  for (std::size_t i = 0; i < job.deltas.size(); ++i) {
    std::vector<float> last_change;
    const ModelFile& base = *job.bases[i];
    if (const auto& before = job.previous[i]; before && before->version != base.version) {
      last_change.resize(base.file.elements());
      std::vector<float> now_values(last_change.size());
      if (!before->file.read(0, last_change).ok() || !base.file.read(0, now_values).ok()) last_change.clear();
      for (std::size_t k = 0; k < last_change.size(); ++k) last_change[k] -= now_values[k];
    }
    AttackView view{job.deltas[i], last_change};
    for (const Job* other : honest) view.honest.push_back(other->deltas[i]);
    sent.push_back(hostile_update(options_.scenario.attack.kind, attack_strength_, view,
                                  Draws(job.task.seed(), "attack", i)));
  }
  member_of(outstanding).client->make_hostile_update(job, sent);
}

v1::UpdateBody Simulation::body_of(const Outstanding& outstanding) const {
  const Job& job = *outstanding.job;
  v1::UpdateBody body;
  body.set_task_id(job.task.task_id());
  body.set_run_id(job.task.run_id());
  body.set_spec_hash(job.task.spec_hash());
  body.set_node(members_[job.client].plan.name);
  body.set_kind(job.task.kind());
  body.set_exchange(job.task.exchange());
  body.set_examples(job.answer->examples);
  body.set_tokens(job.answer->tokens);
  body.set_steps(job.answer->steps);
  body.set_seconds(outstanding.compute_seconds);
  for (const auto& [name, value] : job.answer->metrics) {
    if (!std::isfinite(value)) continue;
    v1::Metric& metric = *body.add_metrics();
    metric.set_name(name);
    metric.set_value(value);
  }
  if (job.is_train())
    for (const v1::FragmentUpdate& made : job.update->fragments) {
      v1::FragmentUpdate& fragment = *body.add_fragments();
      fragment.set_fragment(made.fragment());
      fragment.set_base_version(made.base_version());
      fragment.set_encoding(made.encoding());
      fragment.set_norm(made.norm());
      fragment.mutable_data()->set_size(made.data().size());
    }
  return body;
}

// ---- who is there ----

void Simulation::set_there(std::size_t client, bool there) {
  Member& member = members_[client];
  if (member.there == there) return;
  member.there = there;
  if (there)
    coordinator_->run().handle(NodeJoined{.node = member.plan.name,
                                          .data_set = "virtual",
                                          .examples = member.plan.examples,
                                          .holdout_examples = member.plan.holdout_examples});
  else
    coordinator_->run().handle(NodeLeft{member.plan.name});
}

void Simulation::plan_change(std::size_t client, const Availability::Spell& spell) {
  if (spell.until_ms) at(*spell.until_ms, client, "");
}

void Simulation::draw_all() {
  ++draws_;
  for (std::size_t i = 0; i < members_.size(); ++i) set_there(i, availability_.drawn(i, draws_));
  at(now() + kRedrawMs, 0, "draw");
}

// ---- what the run has come to ----

Result<std::map<std::string, std::shared_ptr<const ModelFile>>> Simulation::latest_model() {
  std::map<std::string, std::shared_ptr<const ModelFile>> model;
  for (const server::FragmentShape& shape : plan_.shapes) {
    SKERRY_ASSIGN(const auto version, coordinator_->store().latest_version(shared_.run_id, shape.name));
    if (!version) continue;
    SKERRY_ASSIGN(model[shape.name], files_->get(*version));
  }
  return model;
}

Result<void> Simulation::released() {
  SKERRY_ASSIGN(const auto row, coordinator_->store().latest_metric(shared_.run_id, "exchange"));
  if (!row || row->exchange == exchanges_) return {};
  exchanges_ = row->exchange;
  if (availability_.by_round()) {
    // The clients of the next round; what was drawn for a round that brought nothing is no longer due.
    std::priority_queue<Due, std::vector<Due>, std::greater<>> others;
    for (; !due_.empty(); due_.pop())
      if (due_.top().task != "draw") others.push(due_.top());
    due_ = std::move(others);
    draw_all();
  }
  if (tester_) {
    auto test = std::make_unique<Test>();
    test->exchange = row->exchange;
    test->job.task.set_task_id("test");
    test->job.task.set_kind(v1::TASK_EVALUATE);
    test->job.task.set_split("test");
    SKERRY_ASSIGN(test->job.read, latest_model());
    test->ticket = pool_.submit(members_.size(), [this, job = &test->job] { tester_->work(*job); });
    tests_.push_back(std::move(test));
    collect_tests(/*wait=*/false);
  }
  if (options_.progress) {
    const v1::RunSummary summary = coordinator_->run().summary();
    Progress progress{summary.round(), summary.rounds(), now(), {}};
    for (const server::MetricValue& metric : row->metrics) progress.metrics[metric.name] = metric.value;
    SKERRY_ASSIGN(const auto evaluation, coordinator_->store().latest_metric(shared_.run_id, "evaluation"));
    if (evaluation)
      for (const server::MetricValue& metric : evaluation->metrics) progress.metrics["evaluation " + metric.name] = metric.value;
    for (const auto& [name, value] : latest_test_) progress.metrics["test " + name] = value;
    options_.progress(progress);
  }
  return {};
}

// Tests end in their order; the newest two are left to go on beside the next round's work.
void Simulation::collect_tests(bool wait) {
  const std::size_t left = wait ? 0 : 2;
  while (tests_.size() > left) {
    const std::unique_ptr<Test> test = std::move(tests_.front());
    tests_.erase(tests_.begin());
    pool_.wait(test->ticket);
    trainer_seconds_ += test->job.trainer_seconds;
    TestResult result{test->exchange, {}};
    if (test->job.answer.ok()) result.metrics = test->job.answer->metrics;
    else if (!broken_) broken_ = with_context(test->job.answer.error(), "test");
    latest_test_ = result.metrics;
    test_results_.push_back(std::move(result));
  }
}

SimulationResult Simulation::result() {
  SimulationResult result;
  const v1::RunDetail detail = coordinator_->run().detail();
  result.name = plan_.spec.name;
  result.strategy = plan_.spec.strategy;
  result.spec_hash = plan_.spec.hash;
  result.seed = plan_.spec.seed;
  result.attack = attack_name(options_.scenario.attack.kind);
  result.status = ended_.empty() ? detail.summary().status() : ended_;
  result.status_reason = ended_.empty() ? detail.summary().status_reason() : ended_reason_;
  result.virtual_ms = now();
  if (auto rows = coordinator_->store().metrics(shared_.run_id); rows.ok()) result.rows = std::move(rows).value();
  result.tests = std::move(test_results_);
  for (const Member& member : members_) result.clients.push_back(member.result);
  for (const auto& [reason, count] : detail.discarded()) result.discarded[reason] = count;
  for (const server::FragmentShape& shape : plan_.shapes) {
    auto version = coordinator_->store().latest_version(shared_.run_id, shape.name);
    if (!version.ok() || !*version) continue;
    auto file = files_->get(**version);
    if (!file.ok()) continue;
    result.model.push_back({shape.name, (*version)->version, (*version)->whole.content_id, (*file)->path, *file});
  }
  result.trainer_seconds = trainer_seconds_;
  result.workers = pool_.threads();
  return result;
}

}  // namespace

Result<SimulationResult> simulate(const SimulationOptions& options) {
  SKERRY_ASSIGN(server::RunPlan plan, server::RunPlan::from_spec(options.spec, options.rules));
  SKERRY_ASSIGN(Population population, make_population(options.scenario, options.spec));
  std::vector<std::string> names;
  for (const ClientPlan& client : population.clients) names.push_back(client.name);
  SKERRY_ASSIGN(Availability availability, Availability::make(options.scenario.availability, names, options.spec.seed));
  return Simulation(options, std::move(plan), std::move(population), std::move(availability)).run();
}

}  // namespace skerry::sim
