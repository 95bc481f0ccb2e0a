#include "client/trainer/trainer_state.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include "client/trainer/checkpoint.h"
#include "common/model/fragment_file.h"
#include "common/model/initialise.h"
#include "common/model/philox.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

constexpr const char* kEmitted = "emitted.";

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
  for (const EmitPlan& emit : request.emit) key["emit"].push_back({emit.fragment, emit.at_step});
  for (const MergePlan& merge : request.merge) {
    key["merge"].push_back({merge.fragment, merge.at_step, static_cast<int>(merge.rule), merge.alpha, merge.block});
  }
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
  if (!read_own_file(path, headers_.at(name), values)) {
    SKERRY_ASSIGN(const FragmentFile file, FragmentFile::open(path, *layout_, name));
    SKERRY_TRY(file.read(0, values));
  }
  if (!all_finite(values)) {
    return invalid_argument(path + ": fragment \"" + name + "\" holds a value that is not finite");
  }
  return {};
}

Result<void> TrainerState::read_fragment(const std::string& name, const std::string& path) {
  SKERRY_ASSIGN(const std::span<float> values, fragment(name));
  const FragmentRole role = layout_->find_fragment(name)->role;
  if (role == FragmentRole::kFrozen) lacks_frozen_ = true;  // what a failed read leaves is worth nothing
  SKERRY_TRY(borrow_fragment(name, path));
  if (role == FragmentRole::kFrozen) lacks_frozen_ = false;
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
  const std::span<const std::byte> pieces[] = {as_bytes_of(headers_.at(name)), std::as_bytes(values)};
  return write_scratch_file(path, pieces);
}

Result<void> TrainerState::remember_emitted(const std::string& name) {
  SKERRY_ASSIGN(const std::span<float> values, fragment(name));
  emitted_[name].assign(values.begin(), values.end());
  return {};
}

Result<void> TrainerState::merge_fragment(const MergePlan& plan, const std::string& path) {
  SKERRY_ASSIGN(const std::span<float> values, fragment(plan.fragment));
  const std::vector<float> own(values.begin(), values.end());
  const auto emitted = emitted_.find(plan.fragment);
  if (plan.rule == MergeRule::kEager && emitted == emitted_.end()) {
    return Error(
        failed_precondition("eager merge of fragment \"" + plan.fragment + "\", which this trainer has not emitted"));
  }
  if (auto read = read_fragment(plan.fragment, path); !read.ok()) {
    std::copy(own.begin(), own.end(), values.begin());
    return read;
  }
  if (plan.rule == MergeRule::kLerp) {
    const auto alpha = static_cast<float>(plan.alpha);
    const auto rest = static_cast<float>(1.0 - plan.alpha);
    for (std::size_t i = 0; i < own.size(); ++i) values[i] = alpha * own[i] + rest * values[i];
  } else if (plan.rule == MergeRule::kEager) {
    for (std::size_t i = 0; i < own.size(); ++i) values[i] += own[i] - emitted->second[i];
  }
  if (emitted != emitted_.end()) emitted_.erase(emitted);
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
  saved.emitted = emitted_;
  saved.total_steps = total_steps_;
}

void TrainerState::restore(const Saved& saved) {
  std::copy(saved.parameters.begin(), saved.parameters.end(), engine_->parameters().begin());
  optimizer_ = saved.optimizer;
  objective_ = saved.objective;
  emitted_ = saved.emitted;
  total_steps_ = saved.total_steps;
}

Result<void> TrainerState::write(const std::string& path, const TaskProgress& progress) const {
  const json note = {{"format", 1},
                     {"fingerprint", fingerprint_},
                     {"total_steps", total_steps_},
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
  for (const auto& [name, values] : emitted_) vectors[kEmitted + name] = values;
  return write_checkpoint(path, note.dump(-1, ' ', false, json::error_handler_t::replace), vectors);
}

Result<TaskProgress> TrainerState::read(const std::string& path) {
  SKERRY_ASSIGN(Checkpoint file, read_checkpoint(path));
  const json note = json::parse(file.note, nullptr, false);
  TaskProgress progress;
  OptimizerState optimizer = fresh_state(options_.optimizer, trained_);
  ObjectiveState objective = fresh_objective(options_.objective, exchanged_);
  std::uint64_t total_steps = 0;
  std::string fingerprint;
  try {
    fingerprint = note.at("fingerprint").get<std::string>();
    total_steps = note.at("total_steps").get<std::uint64_t>();
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
  std::map<std::string, std::vector<float>> emitted;
  for (auto& [name, values] : file.vectors) {
    if (!name.starts_with(kEmitted)) continue;
    const std::string fragment_name = name.substr(std::string_view(kEmitted).size());
    SKERRY_ASSIGN(const std::span<float> target, fragment(fragment_name));
    if (target.size() != values.size())
      return invalid_argument(path + ": vector \"" + name + "\" has the wrong length");
    emitted[fragment_name] = std::move(values);
  }
  std::copy(parameters.begin(), parameters.end(), engine_->parameters().begin());
  optimizer_ = std::move(optimizer);
  objective_ = std::move(objective);
  emitted_ = std::move(emitted);
  total_steps_ = total_steps;
  return progress;
}

}  // namespace skerry::trainer
