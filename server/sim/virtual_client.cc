#include "server/sim/virtual_client.h"

#include <time.h>  // NOLINT(modernize-deprecated-headers): clock_gettime

#include <utility>

#include "client/daemon/supervise/trainer_process.h"
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
  std::map<std::string, client::ReadPath> read;
  for (const auto& [fragment, file] : job.read) read[fragment] = {file->path, file->version};
  std::map<std::string, std::string> write;
  if (job.is_train())
    for (const std::string& fragment : job.task.write()) write[fragment] = fragment;  // no file: see VirtualTrainer
  const std::string line = client::task_line(job.task, {read, write, {}}, job.counted, /*progress_ms=*/0, /*checkpoint=*/false);
  const double begin = thread_cpu_seconds();
  auto answer = trainer_->work(line);
  job.trainer_seconds = thread_cpu_seconds() - begin;
  return answer;
}

void VirtualClient::work(Job& job) {
  job.answer = train_or_evaluate(job);
  if (!job.answer.ok() || !job.is_train()) return;
  std::vector<std::span<const float>> trained;
  for (const auto& base : job.bases) trained.push_back(job.answer->trained.at(base->fragment));
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

void VirtualClient::undo_task() {
  if (trainer_) trainer_->undo_task();
}

Result<client::MadeUpdate> VirtualClient::update_of(const Job& job,
                                                    const std::vector<std::span<const float>>& trained) const {
  client::UpdateRecipe recipe;
  recipe.layout = &shared_.plan.layout;
  SKERRY_ASSIGN(recipe.encoding, find_encoding(shared_.plan.spec.exchange.up));
  for (std::size_t i = 0; i < trained.size(); ++i) {
    const ModelFile& base = *job.bases[i];
    recipe.fragments.push_back({base.fragment, base.version, &base.file, /*trained_path=*/"", trained[i]});
  }
  recipe.seed = job.task.seed();
  recipe.maximum_bytes = job.task.max_update_bytes();
  recipe.in_memory = true;
  return client::make_update(recipe);
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
