#include <algorithm>
#include <cmath>

#include "server/sim/simulation_state.h"

namespace skerry::sim {

void Simulation::told(const std::string& node, const v1::ToNode& message) {
  const std::size_t client = places_.at(node);
  if (message.has_task()) take_task(client, message.task());
  if (message.has_delivery()) take_delivery(client, message.delivery());
  if (message.has_cancel()) cancel(message.cancel().task_id());
  if (message.has_receipt()) receive(message.receipt());
}

void Simulation::take_task(std::size_t client, const v1::Task& task) {
  if (const auto known = outstanding_.find(task.task_id()); known != outstanding_.end()) {
    // Assigned again, because the client was away.
    if (known->second.waits_at_home) at(now(), Due::What::kArrival, client, task.task_id());
    return;
  }
  Member& member = members_[client];
  Download download;
  for (const v1::FragmentVersion& wanted : task.read()) download += download_of(member.bases[wanted.fragment()].get(), wanted);
  member.result.bytes_down += download.bytes;
  coordinator_->run().carried(member.plan.name, 0, download.cargo);
  auto job = make_job(client, task);
  if (!job.ok()) {
    broken_ = job.error();
    return;
  }
  Outstanding& outstanding = outstanding_[task.task_id()];
  outstanding.job = *job;
  outstanding.ready_ms = now() + carry_ms(member.plan.pace, download.bytes, member.plan.pace.down_mbps);
  outstanding.compute_seconds = compute_seconds(options_.scenario, member.plan, task, plan_.spec.training.batch);
  if ((*job)->is_train()) {
    ++member.result.tasks;
    outstanding.bytes_up = task.max_update_bytes();
    if (gives_up(outstanding)) return;
    if (overlapped()) return begin_next(client);
  }
  schedule(outstanding);
  submit(outstanding);
}

// In its middle, by chance: then nothing of it is computed.
bool Simulation::gives_up(Outstanding& outstanding) {
  const Job& job = *outstanding.job;
  Draws draws(plan_.spec.seed, "dropout", (static_cast<std::uint64_t>(job.client) << 32) + job.number);
  if (draws.uniform() >= options_.scenario.dropout) return false;
  outstanding.given_up = true;
  outstanding.compute_seconds *= draws.uniform();
  outstanding.computed_ms = std::max(now(), member_of(outstanding).free_at_ms) + in_ms(outstanding.compute_seconds);
  at(outstanding.computed_ms, Due::What::kArrival, job.client, job.task.task_id());
  return true;
}

Result<std::shared_ptr<const ModelFile>> Simulation::file_of(const v1::FragmentVersion& wanted) {
  SKERRY_ASSIGN(const auto version, coordinator_->store().version(shared_.run_id, wanted.fragment(), wanted.version()));
  if (!version) return internal_error("version " + std::to_string(wanted.version()) + " of fragment " + wanted.fragment() + " is not in the store");
  return files_->get(*version);
}

Result<std::shared_ptr<Job>> Simulation::make_job(std::size_t client, const v1::Task& task) {
  Member& member = members_[client];
  auto job = std::make_shared<Job>();
  job->client = client;
  job->number = member.result.tasks;
  job->counted = member.counted;
  for (const v1::FragmentVersion& wanted : task.read()) {
    SKERRY_ASSIGN(job->read[wanted.fragment()], file_of(wanted));
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
  if (!overlapped()) SKERRY_TRY(find_bases(*job));
  const AttackPlan& attack = options_.scenario.attack;
  job->hostile_update = member.plan.hostile && attack.alters_update();
  job->keeps_deltas = attack.needs_honest() && !member.plan.hostile;
  return job;
}

// What its update is measured from, where that is what the client read last.
Result<void> Simulation::find_bases(Job& job) {
  Member& member = members_[job.client];
  for (const std::string& fragment : job.task.write()) {
    if (!member.bases[fragment]) return internal_error("task " + job.task.task_id() + " writes fragment " + fragment + ", which " + member.plan.name + " never read");
    job.bases.push_back(member.bases[fragment]);
    job.previous.push_back(member.previous[fragment]);
  }
  return {};
}

// When the task's result arrives: download, the trainer's turn, its work, upload.
void Simulation::schedule(Outstanding& outstanding) {
  Member& member = member_of(outstanding);
  const Pace& pace = member.plan.pace;
  outstanding.computed_ms = std::max(outstanding.ready_ms, member.free_at_ms) + in_ms(outstanding.compute_seconds);
  member.free_at_ms = outstanding.computed_ms;
  at(outstanding.computed_ms + carry_ms(pace, outstanding.bytes_up, pace.up_mbps), Due::What::kArrival,
     outstanding.job->client, outstanding.job->task.task_id());
}

void Simulation::submit(Outstanding& outstanding) {
  outstanding.ticket = pool_.submit(outstanding.job->client, [work = outstanding.job, with = member_of(outstanding).client.get()] { with->work(*work); });
}

void Simulation::cancel(const std::string& task) {
  const auto found = outstanding_.find(task);
  if (found == outstanding_.end() || found->second.offered) return;
  Outstanding& outstanding = found->second;
  Member& member = member_of(outstanding);
  if (outstanding.ticket && !pool_.cancel(*outstanding.ticket)) {
    // Begun or done by now, but not at this instant of the virtual clock.
    pool_.submit(outstanding.job->client, [job = outstanding.job, with = member.client.get()] {
      if (job->is_train() && job->answer.ok()) with->undo_task(*job);
    });
  }
  const std::size_t client = outstanding.job->client;
  outstanding_.erase(found);
  member.free_at_ms = now();
  for (const auto& [id, other] : outstanding_)
    if (other.job->client == client) member.free_at_ms = std::max(member.free_at_ms, other.computed_ms);
  if (overlapped()) begin_next(client);
}

void Simulation::receive(const v1::Receipt& receipt) {
  const auto found = outstanding_.find(receipt.task_id());
  if (found == outstanding_.end()) return;
  if (receipt.state() != v1::UPDATE_COUNTED && receipt.state() != v1::UPDATE_DISCARDED) return;
  if (found->second.job->is_train()) {
    Member& member = member_of(found->second);
    const bool counted = receipt.state() == v1::UPDATE_COUNTED;
    ++(counted ? member.result.counted : member.result.discarded);
    if (!counted) give_back(found->second);
    if (counted) member.counted = receipt.task_id();
  }
  outstanding_.erase(found);
}

void Simulation::arrive(const std::string& task) {
  const auto found = outstanding_.find(task);
  if (found == outstanding_.end() || found->second.offered) return;  // cancelled meanwhile
  idle_events_ = 0;
  Outstanding& outstanding = found->second;
  Member& member = member_of(outstanding);
  if (outstanding.given_up) {
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
  if (!member.there) return;
  if (outstanding.job->is_train() && Draws(outstanding.job->task.seed(), "loss", outstanding.job->number).uniform() < options_.scenario.drop_updates) {
    ++member.result.dropped;
    give_back(outstanding);
    return fail(outstanding, Error{Code::kDataLoss, "the update was lost on its way", /*retryable=*/false});
  }
  offer(outstanding);
}

// In its lane: after what the client is at work on.
void Simulation::give_back(Outstanding& outstanding) {
  const Job& job = *outstanding.job;
  if (plan_.spec.exchange.up_feedback == 0 || !job.answer.ok() || !job.update.ok()) return;
  pool_.submit(job.client, [job = outstanding.job, with = member_of(outstanding).client.get()] { with->give_back(*job); });
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
  const bool feedback = plan_.spec.exchange.up_feedback > 0;  // if it is discarded, the client wants it back
  if (job.is_train())
    for (int i = 0; i < body.fragments_size(); ++i) {
      v1::FragmentUpdate& made = job.update->fragments[static_cast<std::size_t>(i)];
      payloads += made.data().size();
      std::string& payload = *made.mutable_data()->mutable_inline_data();
      body.mutable_fragments(i)->mutable_data()->set_inline_data(feedback ? payload : std::move(payload));
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

}  // namespace skerry::sim
