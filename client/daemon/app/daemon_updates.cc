#include "client/daemon/app/daemon_loop.h"

#include "client/daemon/session/cargo_client.h"
#include "common/crypto/sha256.h"
#include "common/os/files.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::uint64_t kSmallElements = 64 * 1024;     // work on fragments up to this size is done on the loop itself
constexpr std::uint64_t kForgetWithinMs = 1'000;
constexpr std::string_view kSignaturePrefix{"skerry update v1\0", 17};

}  // namespace

Result<UpdateRecipe> DaemonLoop::recipe_for(RunArea& area, const v1::Task& task) const {
  UpdateRecipe recipe;
  recipe.layout = &area.cache->layout();
  SKERRY_ASSIGN(recipe.encoding, find_encoding(area.spec->exchange.up));
  for (const auto& fragment : task.write()) {
    if (area.overlapped()) {
      const auto emitted = area.emitted.find(task.task_id());
      if (emitted == area.emitted.end() || !emitted->second.contains(fragment))
        return failed_precondition("the trainer did not emit fragment " + fragment + "; does it support overlapped exchange?");
      const EmitPaths paths = emit_paths(area, task.task_id(), fragment);
      SKERRY_ASSIGN(FragmentFile file, FragmentFile::open(paths.base_path, area.cache->layout(), fragment));
      const auto base = std::make_shared<const FragmentFile>(std::move(file));
      recipe.fragments.push_back({fragment, emitted->second.at(fragment), base.get(), paths.path});
      recipe.fragments.back().held = base;
      continue;
    }
    const auto base = area.bases.find(fragment);
    const auto entry = base == area.bases.end() ? nullptr : area.cache->find(fragment, base->second);
    if (entry == nullptr) return not_found("the base of fragment " + fragment + " is gone");
    recipe.fragments.push_back({fragment, base->second, entry->file.get(), area.work_dir + "/" + fragment + "-out.safetensors"});
    recipe.fragments.back().held = entry;
  }
  recipe.maximum_norm = policy_.maximum_update_norm;
  recipe.zstd = area.spec->exchange.zstd;
  recipe.stochastic = area.spec->exchange.up_stochastic;
  recipe.seed = task.seed();
  recipe.inline_limit = inline_limit_;
  recipe.maximum_bytes = task.max_update_bytes();
  recipe.file_prefix = home_.outbox() + "/" + task.task_id();
  return recipe;
}

v1::UpdateBody DaemonLoop::body_for(const v1::Task& task, const TrainerResult& result, double seconds) const {
  v1::UpdateBody body;
  body.set_task_id(task.task_id());
  body.set_run_id(task.run_id());
  body.set_spec_hash(task.spec_hash());
  body.set_node(profile_->name);
  body.set_kind(task.kind());
  body.set_exchange(task.exchange());
  body.set_examples(result.examples);
  body.set_tokens(result.tokens);
  body.set_steps(result.steps);
  body.set_seconds(seconds);
  const auto area = area_of(task.run_id());
  for (const auto& [name, value] : result.metrics) {
    if (!fits_any(policy_.metrics, name) || !std::isfinite(value)) continue;
    // Names that the run does not collect are of no use to anyone there.
    if (area != nullptr && area->spec && !area->spec->limits.metrics.empty() &&
        std::find(area->spec->limits.metrics.begin(), area->spec->limits.metrics.end(), name) == area->spec->limits.metrics.end())
      continue;
    auto* metric = body.add_metrics();
    metric->set_name(name);
    metric->set_value(value);
  }
  return body;
}

Result<StoredUpdate> DaemonLoop::signed_update(const v1::Task& task, v1::UpdateBody body, std::vector<PendingUpload> uploads) const {
  StoredUpdate update;
  update.task = task;
  // What was read is not needed again; the outbox keeps small.
  update.task.clear_read();
  update.uploads = std::move(uploads);
  if (!body.SerializeToString(update.message.mutable_body())) return internal_error("the update cannot be written");
  SKERRY_ASSIGN(std::string signature, key_.sign(std::string(kSignaturePrefix) + update.message.body()));
  update.message.set_signature(std::move(signature));
  return update;
}

void DaemonLoop::execute(StoreUpdate& command) {
  const v1::Task& task = command.task;
  const auto area = area_of(task.run_id());
  if (area == nullptr || !area->spec) return store(task, internal_error("the run is not known"), 0, false);
  v1::UpdateBody body = body_for(task, command.result, command.result.seconds);
  if (task.kind() != v1::TASK_TRAIN) return store(task, signed_update(task, std::move(body), {}), 0, false);
  if (!area->cache) return store(task, not_found("the bases of the update are gone"), 0, false);
  if (area->cache->layout().shared_fragments() < area->cache->layout().fragments.size()) {
    const std::string own = area->work_dir + "/personal-out.safetensors";
    if (::rename(own.c_str(), home_.personal(task.run_id(), policy_.work_dir).c_str()) != 0)
      log(Note::Level::kWarning, "the personal tensors of run " + task.run_id() + " were not kept: " + std::strerror(errno));
  }
  auto recipe = recipe_for(*area, task);
  if (!recipe.ok()) return store(task, std::move(recipe).error(), 0, false);

  const auto finish = [this](const v1::Task& of, v1::UpdateBody with, Result<MadeUpdate> made) -> Result<StoredUpdate> {
    if (!made.ok()) return std::move(made).error();
    for (auto& fragment : made->fragments) *with.add_fragments() = std::move(fragment);
    return signed_update(of, std::move(with), std::move(made->uploads));
  };
  const auto feedback = feedback_of(task.run_id());
  if (!feedback.ok()) return store(task, feedback.error(), 0, false);
  if (*feedback != nullptr) {
    recipe->feedback = (*feedback)->share;
    recipe->residuals = (*feedback)->directory;
    return with_residuals(*feedback, [this, area, task, body = std::move(body), recipe = *std::move(recipe),
                                      finish](std::map<std::string, Residual> residuals) mutable {
      for (auto& fragment : recipe.fragments) fragment.residual = std::move(residuals[fragment.fragment]);
      auto made = make_update(recipe);
      const double norm = made.ok() ? made->norm : 0;
      const bool clipped = made.ok() && made->clipped;
      auto next = made.ok() ? std::move(made->residuals) : std::vector<Residual>();
      auto update = finish(task, std::move(body), std::move(made));
      return [this, task, update = std::move(update), norm, clipped, next = std::move(next)]() mutable {
        store(task, std::move(update), norm, clipped, std::move(next));
      };
    });
  }
  std::uint64_t elements = 0;
  for (const auto& fragment : recipe->fragments) elements += fragment.base->elements();
  if (elements <= kSmallElements) {
    auto made = make_update(*recipe);
    const double norm = made.ok() ? made->norm : 0;
    const bool clipped = made.ok() && made->clipped;
    return store(task, finish(task, std::move(body), std::move(made)), norm, clipped);
  }
  workers_.run([this, area, task, body = std::move(body), recipe = *std::move(recipe), finish]() mutable {
    auto made = make_update(recipe);
    const double norm = made.ok() ? made->norm : 0;
    const bool clipped = made.ok() && made->clipped;
    auto update = finish(task, std::move(body), std::move(made));
    loop_->post([this, task, update = std::move(update), norm, clipped]() mutable { store(task, std::move(update), norm, clipped); });
  });
}

void DaemonLoop::store(const v1::Task& task, Result<StoredUpdate> update, double norm, bool clipped, std::vector<Residual> residuals) {
  if (!update.ok()) {
    log(Note::Level::kError, "task " + task.task_id() + " gives no update: " + to_string(update.error()));
    return feed(StoreFailed{task.task_id(), told(update.error())});
  }
  EgressRow row;
  row.time_ms = unix_ms();
  row.kind = task.kind() == v1::TASK_TRAIN ? "update" : "evaluation";
  row.run = task.run_id();
  row.task = task.task_id();
  row.exchange = task.exchange();
  row.bytes = update->message.body().size();
  for (const auto& upload : update->uploads) row.bytes += upload.size;
  row.sha256 = sha256_hex(update->message.body());
  row.norm = norm;
  for (const auto& fragment : task.write()) row.detail += (row.detail.empty() ? "" : ", ") + fragment;
  if (clipped) row.detail += " clipped";
  const auto write = [&]() -> Result<void> {
    SKERRY_TRY(database_.begin());
    SKERRY_TRY(flush_forgotten());
    SKERRY_TRY(database_.append(std::move(row)));
    SKERRY_TRY(keep_residuals(task.run_id(), std::move(residuals)));
    return database_.put_update(*update, unix_ms());
  };
  if (auto done = write(); !done.ok()) return fail_for_good(done.error());
  unsent_.insert(task.task_id());
  if (!update->uploads.empty()) with_payloads_.insert(task.task_id());
  feed(OutboxStored{*std::move(update)});
  if (policy_.rounds_a_day > 0 && task.kind() == v1::TASK_TRAIN) loop_->post([this] { watch_availability(); });
}

void DaemonLoop::execute(Upload& command) {
  const std::string task_id = command.update.task.task_id();
  const auto flag = cancel_flag(task_id);
  // Begun after the commit that makes the update's row durable: cargo leaves no earlier than its row.
  after_commit_.emplace_back([this, update = std::move(command.update), task_id, flag, profile = profile_] {
    workers_.run([this, update, task_id, flag, profile] {
      const auto client = cargo_.borrow(profile, options_.proxy, flag.get());
      Result<void> result;
      for (const auto& upload : update.uploads) {
        result = client->upload(payload_path(home_.outbox() + "/" + task_id, upload.content_id), upload.content_id, upload.size,
                               update.task.ticket());
        if (!result.ok()) break;
      }
      loop_->post([this, task_id, result, flag] {
        if (*flag) return;
        cancelled_.erase(task_id);
        if (result.ok()) return feed(UploadDone{task_id});
        feed(UploadFailed{task_id, result.error()});
      });
    });
  });
}

void DaemonLoop::execute(ForgetUpdate& command) {
  unsent_.erase(command.task_id);
  if (!give_back_discarded(command)) forget(std::move(command));
}

void DaemonLoop::forget(ForgetUpdate command) {
  remove_payloads(command.task_id);
  // A run that was not announced again yet may have control variates.
  const auto area = area_of(command.run_id);
  const bool matters = area == nullptr || !area->spec || area->spec->training.control_variates;
  if (command.kind == v1::TASK_TRAIN && command.state == v1::UPDATE_COUNTED && matters) counted_[command.run_id] = command.task_id;
  forgotten_.push_back(std::move(command));
  if (forget_timer_ != 0) return;
  // A row that outlives its update for a moment only costs a question after a crash.
  forget_timer_ = loop_->after(kForgetWithinMs, [this] { forget_now(); });
}

void DaemonLoop::forget_now() {
  forget_timer_ = 0;
  if (forgotten_.empty()) return;
  const auto write = [&]() -> Result<void> {
    SKERRY_TRY(database_.begin());
    return flush_forgotten();
  };
  if (auto done = write(); !done.ok()) return fail_for_good(done.error());
}

/// Within a transaction: decided updates leave the outbox together with what their runs must know of them.
Result<void> DaemonLoop::flush_forgotten() {
  for (const auto& update : forgotten_) {
    SKERRY_TRY(database_.remove_update(update.task_id));
    const auto counted = counted_.find(update.run_id);
    if (counted != counted_.end() && counted->second == update.task_id)
      SKERRY_TRY(database_.set_value(kCountedKey + update.run_id, update.task_id));
  }
  forgotten_.clear();
  return {};
}

void DaemonLoop::remove_payloads(const std::string& task_id) {
  if (with_payloads_.erase(task_id) == 0) return;
  const auto names = list_directory(home_.outbox());
  if (!names.ok()) return;
  for (const auto& entry : *names)
    if (entry.name.starts_with(task_id + ".b2-")) (void)remove_file(join_path(home_.outbox(), entry.name));
}

void DaemonLoop::execute(DropRun& command) {
  const auto area = area_of(command.run_id);
  runs_.erase(command.run_id);
  counted_.erase(command.run_id);
  feedback_.erase(command.run_id);
  if (area == nullptr) return;
  if (area->spec && area->spec->exchange.up_feedback > 0)
    if (auto done = forget_residuals(command.run_id); !done.ok()) return fail_for_good(done.error());
  // The last model stays for `skerry-client model fetch`.
  if (area->cache && !area->fetching) area->cache->trim({});
  for (const auto& directory : {home_.work(command.run_id, policy_.work_dir), home_.state(command.run_id),
                                home_.residuals(command.run_id)})
    (void)remove_tree(directory);
  rest_soon();
}

}  // namespace skerry::client
