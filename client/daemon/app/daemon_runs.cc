#include "client/daemon/app/daemon_loop.h"

#include "client/daemon/policy/judge.h"
#include "client/daemon/supervise/sandbox.h"
#include "common/crypto/sha256.h"
#include "common/model/tokenizer_model.h"
#include "common/os/files.h"

#include <nlohmann/json.hpp>

#include <algorithm>

namespace skerry::client {
namespace {

constexpr std::uint64_t kProgressMs = 500;
constexpr std::uint64_t kCheckpointEveryMs = 2'000;

}  // namespace

// ---- consent ----

void DaemonLoop::execute(JudgeRun& command) {
  const auto answer = answer_to(command.run);
  if (!command.run.run_id().starts_with("dry-run-")) {
    const auto remember = [&]() -> Result<void> {
      SKERRY_TRY(database_.begin());
      return database_.remember_run(command.run, answer, unix_ms());
    };
    if (auto done = remember(); !done.ok()) return fail_for_good(done.error());
  }
  const auto area = area_of(command.run.run_id());
  feed(RunJudged{answer, area != nullptr && area->spec && area->spec->training.control_variates, area != nullptr && area->overlapped()});
}

v1::RunAnswer DaemonLoop::answer_to(const v1::RunAnnouncement& run) {
  v1::RunAnswer answer;
  answer.set_run_id(run.run_id());
  answer.set_spec_hash(run.spec_hash());
  auto& area = runs_[run.run_id()];
  if (area == nullptr || area->announcement.spec_hash() != run.spec_hash()) area = std::make_shared<RunArea>();
  area->announcement = run;
  const auto refuse = [&](std::string reason) {
    log(Note::Level::kWarning, "run " + run.run_id() + " is refused: " + reason);
    answer.add_reasons(policy_.error_messages == Policy::Telling::kFull ? std::move(reason) : "the run spec is not accepted by this daemon");
    return answer;
  };
  if (sha256_hex(run.spec_json()) != run.spec_hash()) return refuse("its spec is not the one that its hash names");
  if (!area->spec) {
    auto spec = parse_resolved_spec(run.spec_json());
    if (!spec.ok()) return refuse(spec.error().message);
    area->spec = *std::move(spec);
  }
  if (area->spec->training.control_variates && !counted_.contains(run.run_id())) {
    auto counted = database_.value(kCountedKey + run.run_id());
    if (!counted.ok()) return refuse(counted.error().message);
    counted_[run.run_id()] = *std::move(counted);
  }
  const Verdict verdict = judge(policy_, *area->spec, catalogue_.sets(), ca_fingerprint_);
  area->data_set.reset();
  if (!verdict.allowed()) {
    for (auto& reason : verdict.reasons(policy_.error_messages)) answer.add_reasons(std::move(reason));
    for (auto& reason : verdict.reasons(Policy::Telling::kFull)) log(Note::Level::kInfo, "run " + run.run_id() + " is refused: " + reason);
    return answer;
  }
  area->data_set = *catalogue_.find(verdict.data_set);
  answer.set_accepted(true);
  answer.set_data_set(verdict.data_set);
  for (const auto& [split, count] : verdict.examples) (*answer.mutable_examples())[split] = count;
  return answer;
}

/// What a coordinator may hear of an error of the holder's side.
Error DaemonLoop::told(const Error& error) const {
  switch (policy_.error_messages) {
    case Policy::Telling::kFull: return error;
    case Policy::Telling::kCode: return {error.code, "the holder's policy tells the code alone", error.retryable};
    case Policy::Telling::kNone: break;
  }
  // A coordinator must know that fragments are missing; that says nothing of the data.
  const Code code = error.code == Code::kNotFound ? Code::kNotFound : Code::kUnknown;
  return {code, "the task failed; the holder's policy tells no more", error.retryable};
}

// ---- trainers ----

std::shared_ptr<RunArea> DaemonLoop::area_of(const std::string& run_id) const {
  const auto found = runs_.find(run_id);
  return found == runs_.end() ? nullptr : found->second;
}

static std::string tokenizer_fetch(const std::string& run_id) { return "tokenizer of " + run_id; }

void DaemonLoop::fetch_tokenizer(const std::shared_ptr<RunArea>& area) {
  const auto flag = cancel_flag(tokenizer_fetch(area->announcement.run_id()));
  workers_.run([this, area, flag, download = downloader(flag)] {
    const std::string& run_id = area->announcement.run_id();
    const std::string path = home_.tokenizer(run_id);
    const auto fetched = [&]() -> Result<void> {
      const v1::Blob& blob = area->announcement.tokenizer();
      if (blob.size() == 0 || blob.size() > kMaxTokenizerBytes)
        return invalid_argument("the coordinator says that the tokenizer has " + std::to_string(blob.size()) + " bytes");
      SKERRY_TRY(make_directories(home_.run(run_id)));
      return download(area->spec->data.tokenizer, blob.size(), path);
    }();
    loop_->post([this, area, flag, fetched] {
      const std::string id = area->announcement.run_id();
      if (*flag) return;
      cancelled_.erase(tokenizer_fetch(id));
      StartTrainer again{id};
      if (fetched.ok()) return execute(again);
      log(Note::Level::kWarning, "the tokenizer of run " + id + " cannot be fetched: " + to_string(fetched.error()));
      feed(TrainerExited{id, told(fetched.error())});
    });
  });
}

void DaemonLoop::execute(StartTrainer& command) {
  const auto area = area_of(command.run_id);
  if (area != nullptr && area->spec && area->spec->data.tokenizer != "bytes" && !path_exists(home_.tokenizer(command.run_id)))
    return fetch_tokenizer(area);
  auto started = area == nullptr ? Result<void>(internal_error("run " + command.run_id + " is not known")) : start_trainer(*area);
  if (started.ok()) return;
  log(Note::Level::kError, "the trainer of run " + command.run_id + " cannot start: " + to_string(started.error()));
  feed(TrainerExited{command.run_id, told(started.error())});
}

Result<void> DaemonLoop::start_trainer(RunArea& area) {
  const std::string& run_id = area.announcement.run_id();
  if (!area.spec || !area.data_set) return failed_precondition("the run was not accepted");
  area.work_dir = home_.work(run_id, policy_.work_dir);
  const std::string state_dir = home_.state(run_id);
  const std::string cache_dir = home_.cache(run_id, policy_.work_dir);
  for (const auto& directory : {area.work_dir, state_dir, cache_dir}) SKERRY_TRY(make_directories(directory));

  SandboxPlan plan;
  plan.bubblewrap = policy_.sandbox == Policy::Sandbox::kBubblewrap;
  plan.command = policy_.trainer.empty() ? std::vector{options_.program_directory + "/skerry-trainer"} : policy_.trainer;
  plan.read_only = policy_.read_only;
  for (std::string& word : policy_.island_arguments()) plan.command.push_back(std::move(word));
  plan.network = policy_.island_workers > 1 && !policy_.island_address.empty();
  // A trainer outside /usr brings its own directory; a script named as an argument brings its own.
  for (const auto& word : plan.command)
    if (word.starts_with('/') && !word.starts_with("/usr/") && path_exists(word)) plan.read_only.push_back(parent_directory(word));
  plan.read_only.push_back(area.data_set->path);
  if (!area.data_set->indices.empty()) plan.read_only.push_back(area.data_set->indices);
  const bool tokenized = area.spec->data.tokenizer != "bytes";
  if (tokenized) plan.read_only.push_back(home_.tokenizer(run_id));
  plan.read_only.push_back(cache_dir);
  plan.read_write = {area.work_dir, state_dir};
  plan.devices = policy_.devices;
  plan.working_directory = area.work_dir;
  plan.policy_path = home_.policy();

  OpenRequest open;
  open.run_id = run_id;
  open.work_dir = area.work_dir;
  open.state_dir = state_dir;
  open.threads = policy_.threads;
  open.seed = area.spec->seed;
  open.checkpoint_ms = policy_.checkpoint_seconds * 1000;
  open.model_json = area.spec->model_json;
  open.training_json = area.spec->training_json;
  open.data_kind = area.data_set->kind;
  open.data_schema_json = area.data_set->schema_json;
  open.data_path = area.data_set->path;
  open.data_splits_json = area.data_set->splits_json();
  open.data_indices = area.data_set->indices;
  if (tokenized) open.tokenizer = home_.tokenizer(run_id);
  open.documents = area.spec->data.documents;

  TrainerLaunch launch;
  SKERRY_ASSIGN(launch.command, sandbox_command(plan));
  launch.sandboxed = plan.bubblewrap;
  launch.policy_path = home_.policy();
  launch.open_line = open_line(open);
  launch.log_path = home_.trainer_log(run_id);
  launch.memory_bytes = policy_.memory_mb * 1'000'000;

  TrainerEvents events;
  events.ready = [this, run_id](std::map<std::string, std::uint64_t> examples, std::uint64_t step) {
    trainer_ready(run_id, std::move(examples), step);
  };
  events.progress = [this, run_id](TrainerProgress progress) {
    progress.run_id = run_id;
    feed(std::move(progress));
  };
  events.done = [this, run_id](TrainerDone done) {
    done.run_id = run_id;
    if (const auto running = area_of(run_id); running != nullptr)
      done.result.seconds = static_cast<double>(EventLoop::now_ms() - running->task_started_ms) / 1000.0;
    feed(std::move(done));
  };
  events.error = [this, run_id](TrainerError error) {
    error.run_id = run_id;
    log(Note::Level::kWarning, "trainer of run " + run_id + ": " + to_string(error.error));
    if (const auto running = area_of(run_id); running != nullptr) running->has_frozen = false;
    error.error = told(error.error);
    feed(std::move(error));
  };
  events.cancelled = [this, run_id](TrainerCancelled cancelled) {
    cancelled.run_id = run_id;
    feed(std::move(cancelled));
  };
  events.emitted = [this, run_id](const std::string& task_id, const std::string& fragment, std::uint64_t base_version) {
    if (const auto running = area_of(run_id); running != nullptr) running->emitted[task_id][fragment] = base_version;
  };
  events.merged = [this, run_id](TrainerMerged merged) {
    merged.run_id = run_id;
    feed(std::move(merged));
  };
  events.note = [](Note::Level level, std::string text) { log(level, text); };
  events.exited = [this, run_id](Error error) {
    log(error.code == Code::kCancelled ? Note::Level::kInfo : Note::Level::kWarning, "run " + run_id + ": " + error.message);
    if (const auto ended = area_of(run_id); ended != nullptr && ended->trainer != nullptr) {
      // The process object is in the middle of this call.
      loop_->post([gone = std::shared_ptr<TrainerProcess>(std::move(ended->trainer))]() mutable { gone.reset(); });
    }
    feed(TrainerExited{run_id, told(error)});
  };
  SKERRY_ASSIGN(area.trainer, TrainerProcess::start(*loop_, std::move(launch), std::move(events)));
  return {};
}

void DaemonLoop::trainer_ready(const std::string& run_id, std::map<std::string, std::uint64_t> examples, std::uint64_t resumed_step) {
  const auto area = area_of(run_id);
  if (area == nullptr) return;
  area->needs_everything = resumed_step == 0;
  area->has_frozen = false;
  area->last_checkpoint_ms = 0;
  // A trainer that sees other counts than the catalogue may read other data; the holder wants to know.
  const bool countable = area->data_set && area->spec && area->spec->data.tokenizer == "bytes" && !area->spec->data.documents &&
                         area->data_set->kind != "jsonl";
  const auto known = countable ? area->data_set->examples(model_context(*area->spec)) : examples;
  for (const auto& [split, count] : examples)
    if (const auto found = known.find(split); found != known.end() && found->second != count)
      log(Note::Level::kWarning, "run " + run_id + ": the trainer counts " + std::to_string(count) + " examples in split \"" + split +
                                     "\", the catalogue " + std::to_string(found->second) + "; `skerry-client data check` looks again");
  feed(TrainerReady{run_id});
}

void DaemonLoop::execute(StopTrainer& command) {
  const auto area = area_of(command.run_id);
  Abandon fetching{tokenizer_fetch(command.run_id)};
  execute(fetching);
  if (area == nullptr || area->trainer == nullptr) {
    feed(TrainerExited{command.run_id, {Code::kCancelled, command.reason, true}});
    return;
  }
  area->trainer->send(R"({"type":"checkpoint"})");
  area->trainer->stop(command.reason);
}

void DaemonLoop::execute(CancelTask& command) {
  const auto area = area_of(command.run_id);
  if (area != nullptr && area->trainer != nullptr) area->trainer->send(cancel_line(command.task_id));
}

void DaemonLoop::execute(TrainerRequest& command) {
  const auto area = area_of(command.task.run_id());
  auto requested = area == nullptr || area->trainer == nullptr ? Result<void>(Error{Code::kAborted, "the trainer is gone", true})
                                                               : request(*area, command.task);
  if (!requested.ok()) feed(TrainerError{command.task.run_id(), command.task.task_id(), told(requested.error())});
}

/// Frozen tensors are read once in a trainer's life: the line names them until a train task has them.
static Result<void> choose_frozen(RunArea& area, const v1::Task& task, std::map<std::string, ReadPath>& read) {
  for (const auto& fragment : area.cache->layout().fragments) {
    if (fragment.role != FragmentRole::kFrozen) continue;
    if (area.has_frozen) {
      read.erase(fragment.name);
      continue;
    }
    if (!read.contains(fragment.name)) {
      const auto entry = area.cache->find(fragment.name, 0);
      if (entry == nullptr) return not_found("this node no longer has fragment " + fragment.name);
      read[fragment.name] = {entry->path, 0};
    }
    area.has_frozen = task.kind() == v1::TASK_TRAIN;
  }
  return {};
}

/// Whether a task begins with more than it reads: what a trainer has learned must then be safe before its update is offered.
static bool remembers(const RunSpec& spec, const ModelLayout& layout) {
  if (spec.exchange.schedule == ExchangeSpec::Schedule::kStaggered || spec.exchange.overlap > 0) return true;
  for (const auto& fragment : layout.fragments)
    if (fragment.role == FragmentRole::kPersonal || fragment.role == FragmentRole::kControl) return true;
  const auto training = nlohmann::json::parse(spec.training_json, nullptr, false);
  if (training.value("order", "") == "run") return true;
  const bool stateless = training.value("optimizer", "") == "sgd" && training.value("momentum", 0.0) == 0;
  return !stateless && training.value("optimizer_state", "") == "keep";
}

/// What a train task reads beside what its line from the coordinator says, and where it writes.
Result<void> DaemonLoop::choose_paths(RunArea& area, const v1::Task& task, TaskPaths& paths) {
  const ModelLayout& layout = area.cache->layout();
  const bool overlapped = area.overlapped();
  if (!overlapped)
    for (const auto& wanted : task.read()) area.bases[wanted.fragment()] = wanted.version();
  if (area.needs_everything) {
    // With overlapped exchange no file here is what a trainer would go on from.
    for (const auto& [fragment, version] : area.bases)
      if (const auto entry = area.cache->find(fragment, version); entry != nullptr) paths.read[fragment] = {entry->path, version};
    for (const auto& fragment : layout.fragments)
      if (fragment.role != FragmentRole::kPersonal && fragment.role != FragmentRole::kFrozen && !paths.read.contains(fragment.name))
        return not_found("this node no longer has fragment " + fragment.name + ": its trainer started anew");
  }
  if (overlapped) SKERRY_TRY(prepare_emissions(area, task.task_id()));
  for (const auto& name : task.write()) {
    const auto* fragment = layout.find_fragment(name);
    if (!safe_name(name) || fragment == nullptr) return invalid_argument("the model has no fragment \"" + name + "\"");
    if (fragment->role == FragmentRole::kFrozen || fragment->role == FragmentRole::kPersonal)
      return permission_denied("fragment " + name + " is " + (fragment->role == FragmentRole::kFrozen ? "frozen" : "personal") +
                               ", it is in no update");
    if (overlapped) {
      paths.emit[name] = emit_paths(area, task.task_id(), name);
      continue;
    }
    if (!area.bases.contains(name)) return not_found("this node no longer has the base of fragment " + name);
    paths.write[name] = area.work_dir + "/" + name + "-out.safetensors";
  }
  // The holder's copy: it goes to no update.
  for (const auto& fragment : layout.fragments)
    if (fragment.role == FragmentRole::kPersonal) paths.write[fragment.name] = area.work_dir + "/personal-out.safetensors";
  return {};
}

Result<void> DaemonLoop::request(RunArea& area, const v1::Task& task) {
  SKERRY_TRY(open_cache(area));
  TaskPaths paths;
  for (const auto& wanted : task.read()) {
    const auto entry = area.cache->find(wanted.fragment(), wanted.version());
    if (entry == nullptr) return not_found("fragment " + wanted.fragment() + " version " + std::to_string(wanted.version()) + " is not here");
    paths.read[wanted.fragment()] = {entry->path, wanted.version()};
  }
  const ModelLayout& layout = area.cache->layout();
  if (task.kind() == v1::TASK_TRAIN) SKERRY_TRY(choose_paths(area, task, paths));
  SKERRY_TRY(choose_frozen(area, task, paths.read));
  if (task.kind() == v1::TASK_TRAIN) area.needs_everything = false;
  const auto now = EventLoop::now_ms();
  area.task_started_ms = now;
  if (!area.remembers) area.remembers = remembers(*area.spec, layout);
  const bool checkpoint =
      area.last_checkpoint_ms == 0 || now - area.last_checkpoint_ms >= kCheckpointEveryMs || *area.remembers;
  if (task.kind() == v1::TASK_TRAIN && checkpoint) area.last_checkpoint_ms = now;
  const auto counted = counted_.find(task.run_id());
  area.trainer->send(task_line(task, paths, counted == counted_.end() ? "" : counted->second, kProgressMs, checkpoint));
  return {};
}

}  // namespace skerry::client
