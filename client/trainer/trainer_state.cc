#include "client/trainer/trainer_state.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include <nlohmann/json.hpp>

#include "client/trainer/checkpoint.h"
#include "common/model/fragment_file.h"
#include "common/model/initialise.h"
#include "common/model/philox.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

constexpr std::string_view kBase = "base.";        // and the fragment
constexpr std::string_view kEmitted = "emitted.";  // and the exchange, a dot and the fragment

// Reads a file that begins with exactly `header` and has nothing but the values after it: false where it is another.
bool read_own_file(const std::string& path, const std::string& header, std::span<float> out) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return false;
  const std::size_t total = header.size() + out.size_bytes();
  struct stat status {};
  if (::fstat(file.get(), &status) != 0 || static_cast<std::size_t>(status.st_size) != total) return false;
  std::string found(header.size(), '\0');
  iovec parts[2] = {{found.data(), found.size()}, {out.data(), out.size_bytes()}};
  const ssize_t got = ::readv(file.get(), parts, 2);
  if (got < static_cast<ssize_t>(header.size()) || found != header) return false;
  auto done = static_cast<std::size_t>(got);
  while (done < total) {
    char* const rest = reinterpret_cast<char*>(out.data()) + (done - header.size());
    const ssize_t more = ::pread(file.get(), rest, total - done, static_cast<off_t>(done));
    if (more <= 0) return false;
    done += static_cast<std::size_t>(more);
  }
  return true;
}

std::string hex(std::uint64_t value) {
  std::string text(16, '0');
  for (std::size_t i = 16; i-- > 0; value >>= 4) text[i] = "0123456789abcdef"[value & 15];
  return text;
}

}  // namespace

std::string task_key(const TrainRequest& request) {
  json key = {{"task", request.task},
              {"steps", request.steps},
              {"epochs", request.epochs},
              {"seed", request.seed},
              {"first_step", request.first_step}};
  for (const auto& [fragment, source] : request.read) key["read"][fragment] = source.version;
  for (const auto& [fragment, path] : request.write) key["write"].push_back(fragment);
  for (const EmitPlan& emit : request.emit) key["emit"].push_back({emit.fragment, emit.at_step, emit.exchange});
  for (const MergePlan& merge : request.merge) {
    key["merge"].push_back(
        {merge.fragment, merge.at_step, static_cast<int>(merge.rule), merge.alpha, merge.block, merge.exchange});
  }
  if (!request.after.empty()) key["after"] = request.after;
  return key.dump(-1, ' ', false, json::error_handler_t::replace);
}

Result<TrainerState> TrainerState::make(Engine& engine, const ModelLayout& layout, const TrainingOptions& options,
                                        std::uint64_t seed) {
  const bool controlled = options.objective.control_variates;
  if (controlled != std::any_of(layout.fragments.begin(), layout.fragments.end(),
                                [](const FragmentLayout& one) { return one.role == FragmentRole::kControl; })) {
    return invalid_argument("training.control_variates and model.control differ");
  }
  TrainerState state(engine, layout, options);
  state.offsets_ = fragment_offsets(layout);
  const bool adam = options.optimizer.kind != OptimizerKind::kSgd;
  state.fingerprint_ = hex(stream_of_name(describe_layout(layout))) + (adam                              ? " adam"
                                                                       : options.optimizer.momentum != 0 ? " momentum"
                                                                                                         : " sgd");
  if (options.objective.proximal > 0) state.fingerprint_ += " proximal";
  if (controlled) state.fingerprint_ += " control";
  for (std::size_t i = 0; i < layout.fragments.size(); ++i) {
    const FragmentLayout& fragment = layout.fragments[i];
    SKERRY_ASSIGN(state.headers_[fragment.name], fragment_header(layout, fragment.name));
    if (fragment.role == FragmentRole::kControl) continue;  // no part of the model
    if (fragment.role == FragmentRole::kExchanged) state.exchanged_ += fragment.elements;
    if (fragment.role != FragmentRole::kFrozen) state.trained_ += fragment.elements;
    state.lacks_frozen_ = state.lacks_frozen_ || fragment.role == FragmentRole::kFrozen;
    SKERRY_TRY(initialise_fragment(layout, fragment.name, seed, 0,
                                   engine.parameters().subspan(state.offsets_[i], fragment.elements)));
  }
  state.reset_optimizer();
  state.objective_ = fresh_objective(options.objective, state.exchanged_);
  return state;
}

Result<std::span<float>> TrainerState::fragment(const std::string& name) {
  std::string known;
  for (std::size_t i = 0; i < layout_->fragments.size(); ++i) {
    const FragmentLayout& candidate = layout_->fragments[i];
    const std::span<float> home =
        candidate.role == FragmentRole::kControl ? std::span<float>(objective_.control) : engine_->parameters();
    if (candidate.name == name) return home.subspan(offsets_[i], candidate.elements);
    known += (known.empty() ? "" : ", ") + candidate.name;
  }
  return not_found("the model has no fragment \"" + name + "\", it has " + known);
}

Result<void> TrainerState::borrow_fragment(const std::string& name, const std::string& path) {
  SKERRY_ASSIGN(const std::span<float> values, fragment(name));
  if (layout_->find_fragment(name)->role == FragmentRole::kPersonal) {
    return invalid_argument("fragment \"" + name + "\" is personal; a trainer reads none but its own");
  }
  return read_values(name, path, values);
}

Result<void> TrainerState::read_values(const std::string& name, const std::string& path,
                                       std::span<float> values) const {
  if (!read_own_file(path, headers_.at(name), values)) {
    SKERRY_ASSIGN(const FragmentFile file, FragmentFile::open(path, *layout_, name));
    SKERRY_TRY(file.read(0, values));
  }
  if (!all_finite(values)) {
    return invalid_argument(path + ": fragment \"" + name + "\" holds a value that is not finite");
  }
  return {};
}

Result<void> TrainerState::read_fragment(const std::string& name, const FragmentSource& source, bool remember) {
  SKERRY_ASSIGN(const std::span<float> values, fragment(name));
  const FragmentRole role = layout_->find_fragment(name)->role;
  if (role == FragmentRole::kFrozen) lacks_frozen_ = true;  // what a failed read leaves is worth nothing
  SKERRY_TRY(borrow_fragment(name, source.path));
  if (role == FragmentRole::kFrozen) lacks_frozen_ = false;
  if (role == FragmentRole::kExchanged && remember) remember_read(memory_[name], source.version, values);
  if (role == FragmentRole::kExchanged && !objective_.received.empty()) {
    const auto offset = values.data() - engine_->parameters().data();
    std::copy(values.begin(), values.end(), objective_.received.begin() + offset);
  }
  return {};
}

Result<std::span<const float>> TrainerState::finite_fragment(const std::string& name) {
  SKERRY_ASSIGN(const std::span<float> values, fragment(name));
  if (!all_finite(values)) {
    return Error(failed_precondition("fragment \"" + name +
                                     "\" holds a value that is not finite after training; lower the learning rate or "
                                     "set training.clip_norm"));
  }
  return std::span<const float>(values);
}

Result<void> TrainerState::write_fragment(const std::string& name, const std::string& path) {
  SKERRY_ASSIGN(const std::span<const float> values, finite_fragment(name));
  return write_values(name, path, values);
}

Result<void> TrainerState::write_values(const std::string& name, const std::string& path,
                                        std::span<const float> values) const {
  const std::span<const std::byte> pieces[] = {as_bytes_of(headers_.at(name)), std::as_bytes(values)};
  return write_scratch_file(path, pieces);
}

Result<TrainerState::Emission> TrainerState::emission(const std::string& name) {
  SKERRY_ASSIGN(const std::span<const float> values, finite_fragment(name));
  const FragmentMemory& memory = memory_[name];
  return Emission{values, memory.base, memory.version};
}

Result<EmittedFiles> TrainerState::write_emission(const EmitPlan& plan) {
  SKERRY_ASSIGN(const Emission now, emission(plan.fragment));
  SKERRY_TRY(write_values(plan.fragment, plan.path, now.values));
  EmittedFiles files{now.base_version, checksum(std::as_bytes(now.values)), 0};
  if (plan.base_path.empty()) return files;
  if (now.base.empty()) {
    return Error(failed_precondition("the change of fragment \"" + plan.fragment +
                                     "\" has no base: this trainer never read it"));
  }
  SKERRY_TRY(write_values(plan.fragment, plan.base_path, now.base));
  files.base_sum = checksum(std::as_bytes(now.base));
  return files;
}

bool TrainerState::holds(const EmitPlan& plan, const EmittedFiles& files) const {
  std::vector<float> values(layout_->find_fragment(plan.fragment)->elements);
  const auto has = [&](const std::string& path, std::uint32_t sum) {
    return read_values(plan.fragment, path, values).ok() && checksum(std::as_bytes(std::span(values))) == sum;
  };
  return has(plan.path, files.sum) && (plan.base_path.empty() || has(plan.base_path, files.base_sum));
}

Result<void> TrainerState::remember_emitted(const EmitPlan& plan) {
  SKERRY_ASSIGN(const std::span<float> values, fragment(plan.fragment));
  trainer::remember_emitted(memory_[plan.fragment], plan.exchange, values);
  return {};
}

bool TrainerState::is_merged(const MergePlan& plan) const {
  const auto memory = memory_.find(plan.fragment);
  return memory != memory_.end() && trainer::is_merged(memory->second, plan);
}

Result<void> TrainerState::merge_fragment(const MergePlan& plan, const MergeRequest& merge) {
  SKERRY_ASSIGN(const std::span<float> own, fragment(plan.fragment));
  std::vector<float> fresh(own.size());
  SKERRY_TRY(read_values(plan.fragment, merge.path, fresh));
  SKERRY_TRY(trainer::merge(memory_[plan.fragment], plan, merge.version, fresh, own));
  if (!objective_.received.empty()) {
    const auto offset = own.data() - engine_->parameters().data();
    std::copy(fresh.begin(), fresh.end(), objective_.received.begin() + offset);
  }
  return {};
}

void TrainerState::step(double learning_rate) {
  const std::span<float> gradient = engine_->gradient().first(trained_);
  const std::span<float> parameters = engine_->parameters().first(trained_);
  add_objective(options_.objective, objective_, parameters.first(exchanged_), gradient.first(exchanged_));
  if (options_.clip_norm > 0) clip_to_norm(gradient, options_.clip_norm);
  optimizer_step(options_.optimizer, learning_rate, gradient, parameters, optimizer_);
  objective_.rates += learning_rate;
  ++total_steps_;
}

void TrainerState::save(Saved& saved) const {
  const std::span<const float> parameters = engine_->parameters().first(trained_);
  saved.parameters.assign(parameters.begin(), parameters.end());
  saved.optimizer = optimizer_;
  saved.objective = objective_;
  saved.memory = memory_;
  saved.latest_task = latest_task_;
  saved.total_steps = total_steps_;
  saved.total_examples = total_examples_;
}

void TrainerState::restore(const Saved& saved) {
  std::copy(saved.parameters.begin(), saved.parameters.end(), engine_->parameters().begin());
  optimizer_ = saved.optimizer;
  objective_ = saved.objective;
  memory_ = saved.memory;
  latest_task_ = saved.latest_task;
  total_steps_ = saved.total_steps;
  total_examples_ = saved.total_examples;
}

CheckpointView TrainerState::checkpoint(const TaskProgress& progress) const {
  json emitted = json::array();
  for (const auto& [entry, files] : progress.emitted)
    emitted.push_back({entry, files.base_version, files.sum, files.base_sum});
  json memory = json::object();
  for (const auto& [name, one] : memory_) {
    memory[name] = {{"version", one.version}, {"merged", one.merged}};
    if (one.in_flight) memory[name]["in_flight"] = *one.in_flight;
  }
  const json note = {{"format", 1},
                     {"fingerprint", fingerprint_},
                     {"total_steps", total_steps_},
                     {"total_examples", total_examples_},
                     {"latest_task", latest_task_},
                     {"memory", std::move(memory)},
                     {"optimizer_steps", optimizer_.steps},
                     {"next_task", objective_.next_task},
                     {"rates", objective_.rates},
                     {"task",
                      {{"key", progress.key},
                       {"step", progress.step},
                       {"steps", progress.outcome.steps},
                       {"examples", progress.outcome.examples},
                       {"tokens", progress.outcome.tokens},
                       {"metrics", progress.outcome.metrics},
                       {"loss_sum", progress.loss_sum},
                       {"emitted", std::move(emitted)},
                       {"merged", progress.merged}}}};
  std::map<std::string, std::span<const float>> vectors{{"model", engine_->parameters().first(trained_)}};
  const auto put = [&](const char* name, const std::vector<float>& values) {
    if (!values.empty()) vectors[name] = values;
  };
  put("first", optimizer_.first);
  put("second", optimizer_.second);
  put("received", objective_.received);
  put("control", objective_.control);
  put("own_control", objective_.own_control);
  put("next_control", objective_.next_control);
  for (const auto& [name, one] : memory_) {
    if (!one.base.empty()) vectors[std::string(kBase) + name] = one.base;
    for (const auto& [exchange, values] : one.earlier)
      vectors[std::string(kEmitted) + std::to_string(exchange) + "." + name] = values;
  }
  return {note.dump(-1, ' ', false, json::error_handler_t::replace), std::move(vectors)};
}

Result<TaskProgress> TrainerState::read(const std::string& path) {
  SKERRY_ASSIGN(Checkpoint file, read_checkpoint(path));
  const json note = json::parse(file.note, nullptr, false);
  TaskProgress progress;
  OptimizerState optimizer = fresh_state(options_.optimizer, trained_);
  ObjectiveState objective = fresh_objective(options_.objective, exchanged_);
  std::uint64_t total_steps = 0, total_examples = 0;
  std::string latest_task;
  std::map<std::string, FragmentMemory> memory;
  std::string fingerprint;
  try {
    fingerprint = note.at("fingerprint").get<std::string>();
    total_steps = note.at("total_steps").get<std::uint64_t>();
    total_examples = note.value("total_examples", std::uint64_t{0});  // earlier versions counted none
    latest_task = note.at("latest_task").get<std::string>();
    for (const auto& [name, one] : note.at("memory").items()) {
      memory[name].version = one.at("version").get<std::uint64_t>();
      memory[name].merged = one.at("merged").get<std::uint64_t>();
      if (one.contains("in_flight")) memory[name].in_flight = one.at("in_flight").get<std::uint64_t>();
    }
    optimizer.steps = note.at("optimizer_steps").get<std::uint64_t>();
    objective.next_task = note.at("next_task").get<std::string>();
    objective.rates = note.at("rates").get<double>();
    const json& task = note.at("task");
    progress.key = task.at("key").get<std::string>();
    progress.step = task.at("step").get<std::uint64_t>();
    progress.outcome.steps = task.at("steps").get<std::uint64_t>();
    progress.outcome.examples = task.at("examples").get<std::uint64_t>();
    progress.outcome.tokens = task.at("tokens").get<std::uint64_t>();
    progress.outcome.metrics = task.at("metrics").get<std::map<std::string, double>>();
    progress.loss_sum = task.at("loss_sum").get<double>();
    progress.merged = task.at("merged").get<std::vector<bool>>();
    for (const json& files : task.at("emitted")) {
      progress.emitted[files.at(0).get<std::size_t>()] = {files.at(1).get<std::uint64_t>(), files.at(2).get<std::uint32_t>(),
                                                          files.at(3).get<std::uint32_t>()};
    }
  } catch (const json::exception&) {
    return invalid_argument(path + ": its note is not one of this version of skerry-trainer");
  }
  if (fingerprint != fingerprint_) {
    return Error(failed_precondition(path + ": belongs to another model, optimizer or objective (" + fingerprint +
                                     ", this run has " + fingerprint_ + ")"));
  }
  const auto take = [&](const char* name, std::vector<float>& into) -> Result<void> {
    std::vector<float>& values = file.vectors[name];
    if (values.size() != into.size()) return invalid_argument(path + ": vector \"" + name + "\" has the wrong length");
    into = std::move(values);
    return {};
  };
  std::vector<float> parameters(trained_);
  SKERRY_TRY(take("model", parameters));
  SKERRY_TRY(take("first", optimizer.first));
  SKERRY_TRY(take("second", optimizer.second));
  SKERRY_TRY(take("received", objective.received));
  SKERRY_TRY(take("control", objective.control));
  SKERRY_TRY(take("own_control", objective.own_control));
  SKERRY_TRY(take("next_control", objective.next_control));
  for (auto& [vector, values] : file.vectors) {
    const bool base = vector.starts_with(kBase);
    if (!base && !vector.starts_with(kEmitted)) continue;
    const std::string place = vector.substr(base ? kBase.size() : kEmitted.size());
    const std::string name = base ? place : place.substr(place.find('.') + 1);
    SKERRY_ASSIGN(const std::span<float> home, fragment(name));
    if (home.size() != values.size()) {
      return invalid_argument(path + ": vector \"" + vector + "\" has the wrong length");
    }
    if (base) memory[name].base = std::move(values);
    else memory[name].earlier[std::strtoull(place.c_str(), nullptr, 10)] = std::move(values);
  }
  std::copy(parameters.begin(), parameters.end(), engine_->parameters().begin());
  optimizer_ = std::move(optimizer);
  objective_ = std::move(objective);
  memory_ = std::move(memory);
  latest_task_ = std::move(latest_task);
  total_steps_ = total_steps;
  total_examples_ = total_examples;
  return progress;
}

}  // namespace skerry::trainer
