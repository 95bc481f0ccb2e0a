#include "server/sim/virtual_client.h"

#include <time.h>  // NOLINT(modernize-deprecated-headers): clock_gettime

#include <utility>

#include "client/daemon/supervise/trainer_process.h"
#include "client/daemon/update/residual.h"
#include "common/codec/encoding.h"
#include "common/os/files.h"

namespace skerry::sim {
namespace {

double thread_cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Δ of each fragment that the task writes.
Result<Deltas> deltas_of(const Job& job, const std::vector<std::span<const float>>& trained) {
  Deltas deltas;
  for (std::size_t i = 0; i < trained.size(); ++i) {
    std::vector<float>& delta = deltas.emplace_back(trained[i].size());
    SKERRY_TRY(job.bases[i]->file.read(0, delta));
    for (std::size_t k = 0; k < delta.size(); ++k) delta[k] -= trained[i][k];
  }
  return deltas;
}

}  // namespace

VirtualClient::VirtualClient(const ClientSurroundings& shared, const ClientPlan& plan)
    : shared_(shared), plan_(plan), directory_(join_path(shared.directory, plan.name)) {}

Result<void> VirtualClient::open_trainer() {
  SKERRY_TRY(make_directories(directory_));
  const RunSpec& spec = shared_.plan.spec;
  const std::string line = client::open_line({.run_id = shared_.run_id,
                                              .work_dir = directory_,
                                              .state_dir = directory_,
                                              .threads = shared_.threads,
                                              .seed = spec.seed,
                                              .model_json = spec.model_json,
                                              .training_json = spec.training_json,
                                              .data_kind = spec.data.kind,
                                              .data_schema_json = spec.data.schema_json,
                                              .data_path = plan_.name,
                                              .data_splits_json = "{}",
                                              .data_indices = ""});
  SKERRY_ASSIGN(trainer_, VirtualTrainer::open(line, [this](const std::string&, std::uint64_t) { return plan_.open_data(); }));
  return {};
}

Result<TrainerAnswer> VirtualClient::train_or_evaluate(Job& job) {
  if (!trainer_) SKERRY_TRY(open_trainer());
  // No files but those that are read: see VirtualTrainer.
  client::TaskPaths paths;
  for (const auto& [fragment, file] : job.read) paths.read[fragment] = {file->path, file->version};
  if (job.is_train()) {
    for (const std::string& fragment : job.task.write()) {
      if (shared_.plan.spec.exchange.overlap > 0) paths.emit[fragment] = {fragment, fragment};
      else paths.write[fragment] = fragment;
    }
  }
  for (int i = 0; i < job.task.merge_size(); ++i) {
    const ModelFile& version = *job.merges[static_cast<std::size_t>(i)];
    trainer_->tell(client::merge_line(job.task.merge(i).exchange(), version.fragment, {version.path, version.version}));
  }
  const std::string line = client::task_line(job.task, paths, job.counted, /*progress_ms=*/0, /*checkpoint=*/false);
  const double begin = thread_cpu_seconds();
  auto answer = trainer_->work(line);
  job.trainer_seconds = thread_cpu_seconds() - begin;
  return answer;
}

Result<void> VirtualClient::keep_bases(Job& job) const {
  for (const std::string& fragment : job.task.write()) {
    const Emission& emission = job.answer->emitted.at(fragment);
    const std::string path = join_path(directory_, "base-" + job.task.task_id() + "-" + fragment);
    SKERRY_TRY(write_fragment_file(path, shared_.plan.layout, fragment, emission.base, Durability::kScratch));
    SKERRY_ASSIGN(FragmentFile opened, FragmentFile::open(path, shared_.plan.layout, fragment));
    job.bases.push_back(std::make_shared<const ModelFile>(fragment, emission.base_version, path, std::move(opened)));
    job.previous.push_back(nullptr);
  }
  return {};
}

void VirtualClient::work(Job& job) {
  job.answer = train_or_evaluate(job);
  if (!job.answer.ok() || !job.is_train()) return;
  const auto& emitted = job.answer->emitted;
  if (!emitted.empty()) {
    if (const auto kept = keep_bases(job); !kept.ok()) {
      job.answer = kept.error();
      return;
    }
  }
  std::vector<std::span<const float>> trained;
  for (const auto& base : job.bases)
    trained.push_back(emitted.empty() ? job.answer->trained.at(base->fragment) : std::span<const float>(emitted.at(base->fragment).trained));
  if (job.keeps_deltas || job.hostile_update) {
    auto deltas = deltas_of(job, trained);
    if (!deltas.ok()) {
      job.answer = deltas.error();
      return;
    }
    job.deltas = std::move(deltas).value();
  }
  if (!job.hostile_update) job.update = update_of(job, trained);
}

void VirtualClient::undo_task(Job& job) {
  if (trainer_) trainer_->undo_task();
  for (client::Residual& before : job.residuals) residuals_[before.fragment] = std::move(before);
  job.residuals.clear();
}

void VirtualClient::give_back(const Job& job) {
  const Encoding* encoding = find_encoding(shared_.plan.spec.exchange.up).value();
  for (const v1::FragmentUpdate& lost : job.update->fragments) {
    client::Residual& residual = residuals_[lost.fragment()];
    auto more = client::give_back("", lost.fragment(), residual, *encoding, as_bytes_of(lost.data().inline_data()),
                                  shared_.plan.layout.find_fragment(lost.fragment())->elements);
    if (more.ok()) residual = *std::move(more);
  }
}

Result<client::MadeUpdate> VirtualClient::update_of(Job& job, const std::vector<std::span<const float>>& trained) {
  const ExchangeSpec& exchange = shared_.plan.spec.exchange;
  client::UpdateRecipe recipe;
  recipe.layout = &shared_.plan.layout;
  SKERRY_ASSIGN(recipe.encoding, find_encoding(exchange.up));
  recipe.stochastic = exchange.up_stochastic;
  recipe.feedback = exchange.up_feedback;
  for (std::size_t i = 0; i < trained.size(); ++i) {
    const ModelFile& base = *job.bases[i];
    recipe.fragments.push_back({base.fragment, base.version, &base.file, /*trained_path=*/"", trained[i]});
    if (recipe.feedback > 0) recipe.fragments.back().residual = residuals_[base.fragment];
  }
  recipe.seed = job.task.seed();
  recipe.maximum_bytes = job.task.max_update_bytes();
  recipe.in_memory = true;
  auto made = client::make_update(recipe);
  if (!made.ok() || recipe.feedback == 0) return made;
  for (client::Residual& next : made->residuals) {
    client::Residual before = std::exchange(residuals_[next.fragment], next);
    before.fragment = next.fragment;
    job.residuals.push_back(std::move(before));
  }
  return made;
}

void VirtualClient::make_hostile_update(Job& job, const Deltas& sent) {
  const auto make = [&]() -> Result<client::MadeUpdate> {
    Deltas models;
    for (std::size_t i = 0; i < job.bases.size(); ++i) {
      std::vector<float>& model = models.emplace_back(sent[i].size());
      SKERRY_TRY(job.bases[i]->file.read(0, model));
      for (std::size_t k = 0; k < model.size(); ++k) model[k] -= sent[i][k];
    }
    return update_of(job, {models.begin(), models.end()});
  };
  job.update = make();
}

}  // namespace skerry::sim
