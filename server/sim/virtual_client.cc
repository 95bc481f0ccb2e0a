#include "server/sim/virtual_client.h"

#include <time.h>  // NOLINT(modernize-deprecated-headers): clock_gettime

#include <utility>

#include "client/daemon/supervise/trainer_process.h"
#include "common/codec/encoding.h"
#include "common/os/files.h"

namespace skerry::sim {
namespace {

constexpr const char* kTrained = "-out.safetensors";
constexpr const char* kHostile = "-hostile.safetensors";

double thread_cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

std::string payload_prefix(const ClientSurroundings& shared, const Job& job) {
  return join_path(shared.spool, job.task.task_id());
}

}  // namespace

VirtualClient::VirtualClient(const ClientSurroundings& shared, const ClientPlan& plan)
    : shared_(shared), plan_(plan), directory_(join_path(shared.directory, plan.name)) {}

std::string VirtualClient::output_path(const std::string& fragment) const { return join_path(directory_, fragment); }

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
    for (const std::string& fragment : job.task.write()) write[fragment] = output_path(fragment) + kTrained;
  const std::string line = client::task_line(job.task, read, write, job.counted, /*progress_ms=*/0, /*checkpoint=*/false);
  const double begin = thread_cpu_seconds();
  auto answer = trainer_->work(line);
  job.trainer_seconds = thread_cpu_seconds() - begin;
  return answer;
}

void VirtualClient::work(Job& job) {
  job.answer = train_or_evaluate(job);
  if (!job.answer.ok() || !job.is_train()) return;
  if (job.keeps_deltas || job.hostile_update) {
    auto deltas = deltas_of(job);
    if (!deltas.ok()) {
      job.answer = deltas.error();
      return;
    }
    job.deltas = std::move(deltas).value();
  }
  if (!job.hostile_update) job.update = update_of(job, kTrained);
}

void VirtualClient::undo_task() {
  if (trainer_) trainer_->undo_task();
}

Result<Deltas> VirtualClient::deltas_of(const Job& job) const {
  Deltas deltas;
  for (const auto& base : job.bases) {
    SKERRY_ASSIGN(const FragmentFile trained,
                  FragmentFile::open(output_path(base->fragment) + kTrained, shared_.plan.layout, base->fragment));
    std::vector<float> delta(base->file.elements());
    std::vector<float> now(delta.size());
    SKERRY_TRY(base->file.read(0, delta));
    SKERRY_TRY(trained.read(0, now));
    for (std::size_t i = 0; i < delta.size(); ++i) delta[i] -= now[i];
    deltas.push_back(std::move(delta));
  }
  return deltas;
}

Result<client::MadeUpdate> VirtualClient::update_of(const Job& job, const char* suffix) const {
  client::UpdateRecipe recipe;
  recipe.layout = &shared_.plan.layout;
  SKERRY_ASSIGN(recipe.encoding, find_encoding(shared_.plan.spec.exchange.up));
  for (const auto& base : job.bases)
    recipe.fragments.push_back({base->fragment, base->version, &base->file, output_path(base->fragment) + suffix});
  recipe.seed = job.task.seed();
  recipe.inline_limit = server::kInlineLimit;
  recipe.maximum_bytes = job.task.max_update_bytes();
  recipe.file_prefix = payload_prefix(shared_, job);
  return client::make_update(recipe);
}

void VirtualClient::make_hostile_update(Job& job, const Deltas& sent) {
  const auto make = [&]() -> Result<client::MadeUpdate> {
    for (std::size_t i = 0; i < job.bases.size(); ++i) {
      const ModelFile& base = *job.bases[i];
      std::vector<float> trained(base.file.elements());
      SKERRY_TRY(base.file.read(0, trained));
      for (std::size_t k = 0; k < trained.size(); ++k) trained[k] -= sent[i][k];
      SKERRY_TRY(write_fragment_file(output_path(base.fragment) + kHostile, shared_.plan.layout, base.fragment, trained,
                                     Durability::kScratch));
    }
    return update_of(job, kHostile);
  };
  job.update = make();
}

void remove_payloads(const ClientSurroundings& shared, const Job& job) {
  if (!job.update.ok()) return;
  for (const client::PendingUpload& upload : job.update->uploads)
    (void)remove_file(client::payload_path(payload_prefix(shared, job), upload.content_id)).ok();
}

}  // namespace skerry::sim
