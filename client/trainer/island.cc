#include "client/trainer/island.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include <nlohmann/json.hpp>

#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

constexpr int kMaxSize = 1024;
constexpr int kLanguage = 1;  // of the frames
constexpr std::uint64_t kMaxHello = 4096;
constexpr auto kRedial = std::chrono::milliseconds(500);

std::int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ---- frames: plain values and vectors, one after another

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

struct StepHead {
  double rate = 0;    // of the optimizer
  double weight = 0;  // of this process's mean loss in the batch's
  std::uint64_t rows = 0, counted = 0, inputs = 0, labels = 0, targets = 0, tokens = 0;  // lengths
};

Result<void> send_step(IslandLink& link, const Batch& part, double rate, double weight) {
  const StepHead head{rate, weight, part.rows, part.counted, part.inputs.size(), part.labels.size(), part.targets.size(), part.tokens.size()};
  const std::span<const std::byte> pieces[] = {bytes_of(head), std::as_bytes(std::span(part.inputs)), std::as_bytes(std::span(part.labels)),
                                               std::as_bytes(std::span(part.targets)), std::as_bytes(std::span(part.tokens))};
  return link.send(FrameKind::kStep, pieces);
}

Result<StepHead> read_step(const std::string& payload, Batch& part) {
  const auto wrong = [] { return internal_error("a step of the island has the wrong length"); };
  StepHead head;
  if (payload.size() < sizeof head) return wrong();
  std::memcpy(&head, payload.data(), sizeof head);
  std::size_t at = sizeof head;
  const auto take = [&](auto& values, std::uint64_t count) {
    const std::size_t bytes = count * sizeof values[0];
    if (count > payload.size() || bytes > payload.size() - at) return false;
    values.resize(count);
    if (bytes > 0) std::memcpy(values.data(), payload.data() + at, bytes);
    at += bytes;
    return true;
  };
  part.rows = head.rows;
  part.counted = head.counted;
  if (!take(part.inputs, head.inputs) || !take(part.labels, head.labels) || !take(part.targets, head.targets) ||
      !take(part.tokens, head.tokens) || at != payload.size())
    return wrong();
  return head;
}

// ---- what travels as tensors

/// Everything that a step needs, in the same order in every process.
std::vector<std::span<float>> vectors_of(TrainerState::Saved& saved, std::span<float> frozen) {
  return {saved.parameters,        frozen,
          saved.optimizer.first,   saved.optimizer.second,
          saved.objective.received, saved.objective.control,
          saved.objective.own_control, saved.objective.next_control};
}

Result<void> copy_all(IslandGroup& group, TrainerState::Saved& saved, std::span<float> parameters) {
  for (const std::span<float> values : vectors_of(saved, parameters.subspan(saved.parameters.size())))
    if (!values.empty()) SKERRY_TRY(group.copy(values));
  return {};
}

/// Scales to this process's share of the batch's mean, then adds up over all.
Result<void> sum_gradient(IslandGroup& group, Engine& engine, double weight) {
  const std::span<float> gradient = engine.gradient();
  const float factor = static_cast<float>(weight);
  for (float& value : gradient) value *= factor;
  return group.sum(gradient);
}

/// The gradient of some rows, of none where there are none; their mean loss.
Result<double> gradient_of(Engine& engine, const Batch& part) {
  if (part.rows > 0) return engine.compute_gradient(part);
  const std::span<float> gradient = engine.gradient();
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  return 0.0;
}

/// What the loss of a batch is a mean over: the tokens that count, or the rows.
double terms_of(const Batch& batch, const ExampleShape& shape) {
  return static_cast<double>(shape.kind == ExampleShape::Kind::kText ? batch.counted : batch.rows);
}

json shape_json(const ExampleShape& shape) {
  return {{"kind", static_cast<int>(shape.kind)}, {"shape", shape.shape}, {"input_size", shape.input_size}, {"classes", shape.classes}};
}

std::string device_of(int rank) {
  std::string_view visible = "";
  if (const char* set = std::getenv("CUDA_VISIBLE_DEVICES")) visible = set;
  if (visible.empty()) return std::to_string(rank);
  for (int i = 0; i < rank && !visible.empty(); ++i) {
    const auto comma = visible.find(',');
    visible = comma == std::string_view::npos ? std::string_view() : visible.substr(comma + 1);
  }
  return std::string(visible.substr(0, visible.find(',')));
}

}  // namespace

Batch rows_of(const Batch& batch, const ExampleShape& shape, std::size_t first, std::size_t count) {
  Batch part;
  part.rows = count;
  const auto take = [&](const auto& from, auto& into) {
    if (batch.rows == 0) return;
    const std::size_t width = from.size() / batch.rows;
    into.assign(from.begin() + static_cast<std::ptrdiff_t>(first * width), from.begin() + static_cast<std::ptrdiff_t>((first + count) * width));
  };
  take(batch.inputs, part.inputs);
  take(batch.labels, part.labels);
  take(batch.targets, part.targets);
  take(batch.tokens, part.tokens);
  if (shape.kind == ExampleShape::Kind::kText) {
    part.counted = part.labels.empty() ? count * shape.input_size
                                       : part.labels.size() - static_cast<std::size_t>(std::count(part.labels.begin(), part.labels.end(), kIgnored));
  }
  return part;
}

Result<IslandArguments> parse_island_arguments(const std::vector<std::string>& words) {
  IslandArguments arguments;
  arguments.options.local = 0;
  for (std::size_t i = 0; i < words.size(); i += 2) {
    const std::string& name = words[i];
    if (i + 1 == words.size()) return invalid_argument(name + " needs a value");
    const std::string& value = words[i + 1];
    if (name == "--island-address") {
      SKERRY_TRY(parse_island_address(value));
      arguments.options.address = value;
      continue;
    }
    int number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size() || number < 1 || number > kMaxSize) {
      return invalid_argument(name + " " + value + " must be a whole number in [1, " + std::to_string(kMaxSize) + "]");
    }
    if (name == "--island-size") arguments.options.size = number;
    else if (name == "--island-local") arguments.options.local = number;
    else if (name == "--island-rank") arguments.rank = number;
    else return invalid_argument("unknown argument \"" + name + "\"");
  }
  IslandOptions& options = arguments.options;
  if (options.local == 0) options.local = options.address.empty() ? options.size : 1;
  if (options.local > options.size) return invalid_argument("--island-local is more than --island-size");
  if (options.local < options.size && options.address.empty())
    return invalid_argument("an island with workers on other machines needs --island-address IP:PORT");
  if (arguments.rank && (*arguments.rank >= options.size || options.address.empty()))
    return invalid_argument("a worker needs --island-rank below --island-size, and --island-address of its leader");
  return arguments;
}

// ---- the leader

Result<std::unique_ptr<Island>> Island::make(IslandOptions options) {
  std::unique_ptr<Island> island(new Island(std::move(options)));
  IslandAddress at{"127.0.0.1", 0};
  if (!island->options_.address.empty()) {
    SKERRY_ASSIGN(at, parse_island_address(island->options_.address));
  }
  SKERRY_ASSIGN(IslandDoor door, IslandDoor::open(at));
  island->door_ = std::move(door);
  return island;
}

Island::~Island() {
  for (Worker& worker : workers_)
    if (worker.link) (void)worker.link->send(FrameKind::kClose);
  disband();
}

void Island::open(const OpenRequest& request, const ExampleShape& shape) {
  request_ = request;
  shape_ = shape;
}

void Island::disband() {
  group_.reset();
  workers_.clear();  // kills those of this machine
}

Result<void> Island::start_local() {
  char self[4096] = {};
  if (::readlink("/proc/self/exe", self, sizeof self - 1) < 0) return internal_error("skerry-trainer does not find itself");
  const IslandAddress& door = door_->address();
  const std::string address = (door.host.find(':') == std::string::npos ? door.host : "[" + door.host + "]") + ":" + std::to_string(door.port);
  for (int rank = 1; rank < options_.local; ++rank) {
    SpawnOptions spawn;
    spawn.command = {self, "--island-rank", std::to_string(rank), "--island-size", std::to_string(options_.size), "--island-address", address};
    spawn.environment = pick_environment({"PATH", "LANG", "LC_ALL", "TZ", "HOME", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
                                          "OPENBLAS_THREAD_TIMEOUT", "OPENBLAS_NUM_THREADS"});
    spawn.environment.push_back("CUDA_VISIBLE_DEVICES=" + device_of(rank));
    spawn.pipe_stdout = spawn.pipe_stderr = false;  // its words go to our log
    SKERRY_ASSIGN(Process process, Process::spawn(spawn));
    workers_[static_cast<std::size_t>(rank) - 1].process = std::move(process);
  }
  return {};
}

Result<void> Island::admit(IslandLink link) {
  // Anybody may knock: no memory for what a stranger promises.
  SKERRY_ASSIGN(const std::string text, link.expect(FrameKind::kHello, 5'000, kMaxHello));
  const json hello = json::parse(text, nullptr, false);
  const auto number = [&](const char* name) {
    const auto found = hello.is_object() ? hello.find(name) : hello.end();
    return found != hello.end() && found->is_number_integer() ? found->get<int>() : -1;
  };
  const int rank = number("rank");
  std::string refusal;
  if (number("language") != kLanguage || !hello.contains("version") || hello["version"] != SKERRY_VERSION) {
    refusal = "the leader is skerry-trainer " SKERRY_VERSION ", this worker is another version";
  } else if (number("size") != options_.size || rank < 1 || rank >= options_.size) {
    refusal = "this worker is rank " + std::to_string(rank) + " of " + std::to_string(number("size")) + ", the island has " +
              std::to_string(options_.size) + " processes";
  } else if (workers_[static_cast<std::size_t>(rank) - 1].link) {
    refusal = "rank " + std::to_string(rank) + " is taken";
  }
  if (!refusal.empty()) {
    (void)link.send(FrameKind::kError, refusal);
    return invalid_argument(refusal);
  }
  workers_[static_cast<std::size_t>(rank) - 1].link = std::move(link);
  return {};
}

Result<void> Island::form() {
  workers_.resize(static_cast<std::size_t>(options_.size) - 1);
  SKERRY_TRY(start_local());
  const std::int64_t deadline = now_ms() + options_.join_ms;
  const auto absent = [&] {
    std::string ranks;
    for (std::size_t i = 0; i < workers_.size(); ++i)
      if (!workers_[i].link) ranks += (ranks.empty() ? "" : ", ") + std::to_string(i + 1);
    return ranks;
  };
  while (!absent().empty()) {
    const std::int64_t left = deadline - now_ms();
    if (left <= 0) {
      return unavailable("the island is not complete: rank " + absent() + " of " + std::to_string(options_.size) + " did not come to " +
                         door_->address().host + " port " + std::to_string(door_->address().port) + " within " +
                         std::to_string(options_.join_ms / 1000) + " s; start `skerry-trainer --island-rank RANK` there");
    }
    auto link = door_->accept(std::min<std::int64_t>(left, 200));
    if (link.ok()) {
      if (auto admitted = admit(*std::move(link)); !admitted.ok())
        std::fprintf(stderr, "skerry-trainer: a process is not let onto the island: %s\n", admitted.error().message.c_str());
    }
    for (std::size_t i = 0; i < workers_.size(); ++i)
      if (workers_[i].process && workers_[i].process->try_wait())
        return unavailable("the island's worker of rank " + std::to_string(i + 1) + " " + to_string(*workers_[i].process->try_wait()));
  }
  Meeting meeting;
  meeting.size = options_.size;
  meeting.timeout_ms = options_.step_ms;
  meeting.own_host = door_->address().host;
  if (options_.address.empty()) {
    meeting.file = join_path(request_.state_dir, "island-" + std::to_string(::getpid()) + "-" + std::to_string(formed_++));
    SKERRY_TRY(remove_file(meeting.file));
  } else {
    meeting.host = door_->address().host;
  }
  SKERRY_ASSIGN(group_, IslandGroup::meet(meeting));
  const std::string open = json{{"model", json::parse(request_.model)},
                                {"training", json::parse(request_.training)},
                                {"threads", request_.threads},
                                {"examples", shape_json(shape_)},
                                {"file", meeting.file},
                                {"host", meeting.host},
                                {"port", group_->port()},
                                {"timeout_ms", meeting.timeout_ms}}
                               .dump();
  for (Worker& worker : workers_) SKERRY_TRY(worker.link->send(FrameKind::kOpen, open));
  for (Worker& worker : workers_) SKERRY_TRY(worker.link->expect(FrameKind::kReady, options_.join_ms));
  SKERRY_TRY(group_->form());
  for (Worker& worker : workers_) SKERRY_TRY(worker.link->expect(FrameKind::kReady, options_.join_ms));
  stale_ = true;
  return meeting.file.empty() ? Result<void>() : remove_file(meeting.file);  // nobody needs it any more
}

Result<void> Island::share(Engine& engine, const TrainerState& state) {
  TrainerState::Saved saved;
  state.save(saved);
  const double scalars[] = {static_cast<double>(saved.optimizer.steps), static_cast<double>(saved.total_steps), saved.objective.rates};
  const std::span<const std::byte> pieces[] = {std::as_bytes(std::span(scalars))};
  for (Worker& worker : workers_) SKERRY_TRY(worker.link->send(FrameKind::kState, pieces));
  SKERRY_TRY(copy_all(*group_, saved, engine.parameters()));
  stale_ = false;
  return {};
}

Result<double> Island::step(Engine& engine, const Batch& batch, double rate) {
  const auto size = static_cast<std::size_t>(options_.size);
  const auto first = [&](std::size_t rank) { return batch.rows * rank / size; };
  const double all = terms_of(batch, shape_);
  std::vector<double> weights;
  Batch own;
  for (std::size_t rank = 0; rank < size; ++rank) {
    Batch part = rows_of(batch, shape_, first(rank), first(rank + 1) - first(rank));
    weights.push_back(all == 0 ? 0.0 : terms_of(part, shape_) / all);
    if (rank == 0) own = std::move(part);
    else SKERRY_TRY(send_step(*workers_[rank - 1].link, part, rate, weights[rank]));
  }
  SKERRY_ASSIGN(double loss, gradient_of(engine, own));
  loss *= weights[0];
  SKERRY_TRY(sum_gradient(*group_, engine, weights[0]));
  for (std::size_t rank = 1; rank < size; ++rank) {
    SKERRY_ASSIGN(const std::string payload, workers_[rank - 1].link->expect(FrameKind::kLoss, options_.step_ms));
    double part = 0;
    if (payload.size() != sizeof part) return internal_error("an island's worker tells no loss");
    std::memcpy(&part, payload.data(), sizeof part);
    loss += part * weights[rank];
  }
  return loss;
}

Error Island::explain(Error error) {
  const std::int64_t deadline = now_ms() + 500;  // what a process says in the end comes at once
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    const std::string who = "the island's worker of rank " + std::to_string(i + 1) + " ";
    if (!workers_[i].link) continue;
    for (;;) {
      auto frame = workers_[i].link->receive(std::max<std::int64_t>(deadline - now_ms(), 0));
      if (frame.ok() && frame->kind == FrameKind::kError) return unavailable(who + "failed: " + frame->payload);
      if (frame.ok()) continue;  // a loss of a step that came to nothing
      if (frame.error().code == Code::kUnavailable) return unavailable(who + "is gone; the task can be done again once it is back");
      break;
    }
  }
  return error;
}

Result<double> Island::compute_gradient(Engine& engine, const TrainerState& state, const Batch& batch, double rate) {
  const auto computed = [&]() -> Result<double> {
    if (group_ == nullptr) SKERRY_TRY(form());
    if (stale_) SKERRY_TRY(share(engine, state));
    return step(engine, batch, rate);
  };
  auto result = computed();
  if (result.ok()) return result;
  Error error = explain(std::move(result).error());
  disband();
  return error;
}

// ---- a worker

namespace {

/// What a worker holds of the run.
struct Follower {
  json run;
  ModelLayout layout;
  TrainingOptions training;
  std::unique_ptr<Engine> engine;
  std::optional<TrainerState> state;
  std::unique_ptr<IslandGroup> group;
};

Result<void> open_run(Follower& own, IslandLink& link, const std::string& text, int rank, int size) {
  own.run = json::parse(text, nullptr, false);
  if (!own.run.is_object()) return internal_error("the leader's open frame is not understood");
  SKERRY_ASSIGN(const json model, resolve_model(own.run.at("model")));
  SKERRY_ASSIGN(own.layout, build_layout(model));
  SKERRY_ASSIGN(own.training, parse_training(own.run.at("training").dump()));
  const json& examples = own.run.at("examples");
  const ExampleShape shape{static_cast<ExampleShape::Kind>(examples.at("kind").get<int>()), examples.at("shape").get<std::vector<std::uint64_t>>(),
                           examples.at("input_size").get<std::uint64_t>(), examples.at("classes").get<std::uint64_t>()};
  SKERRY_ASSIGN(own.engine, Engine::make(own.run.at("model").dump(), own.layout, shape, engine_options(own.training, own.run.at("threads").get<int>())));
  SKERRY_ASSIGN(TrainerState state, TrainerState::make(*own.engine, own.layout, own.training, 0));
  own.state = std::move(state);
  Meeting meeting{rank, size, own.run.at("file").get<std::string>(), own.run.at("host").get<std::string>(),
                  own.run.at("port").get<std::uint16_t>(), link.local_host(), own.run.at("timeout_ms").get<std::int64_t>()};
  SKERRY_ASSIGN(own.group, IslandGroup::meet(meeting));
  SKERRY_TRY(link.send(FrameKind::kReady));
  SKERRY_TRY(own.group->form());
  return link.send(FrameKind::kReady);
}

Result<void> take_state(Follower& own, const std::string& payload) {
  double scalars[3] = {};
  if (payload.size() != sizeof scalars) return internal_error("the leader's state frame is not understood");
  std::memcpy(scalars, payload.data(), sizeof scalars);
  TrainerState::Saved saved;
  own.state->save(saved);  // vectors of the right lengths
  SKERRY_TRY(copy_all(*own.group, saved, own.engine->parameters()));
  saved.optimizer.steps = static_cast<std::uint64_t>(scalars[0]);
  saved.total_steps = static_cast<std::uint64_t>(scalars[1]);
  saved.objective.rates = scalars[2];
  own.state->restore(saved);
  return {};
}

Result<void> follow_step(Follower& own, IslandLink& link, const std::string& payload) {
  Batch part;
  SKERRY_ASSIGN(const StepHead head, read_step(payload, part));
  SKERRY_ASSIGN(const double loss, gradient_of(*own.engine, part));
  const std::span<const std::byte> pieces[] = {bytes_of(loss)};
  SKERRY_TRY(link.send(FrameKind::kLoss, pieces));
  SKERRY_TRY(sum_gradient(*own.group, *own.engine, head.weight));
  own.state->step(head.rate);
  return {};
}

/// Until the leader closes the run.
Result<void> follow(IslandLink& link, int rank, int size) {
  Follower own;
  for (;;) {
    SKERRY_ASSIGN(const Frame frame, link.receive(-1));
    Result<void> done;
    switch (frame.kind) {
      case FrameKind::kOpen: done = open_run(own, link, frame.payload, rank, size); break;
      case FrameKind::kState: done = own.group ? take_state(own, frame.payload) : internal_error("no run is open"); break;
      case FrameKind::kStep: done = own.group ? follow_step(own, link, frame.payload) : internal_error("no run is open"); break;
      case FrameKind::kClose: return {};
      case FrameKind::kError: return unavailable("the leader says: " + frame.payload);
      default: done = internal_error("the leader speaks out of turn");
    }
    if (!done.ok()) {
      (void)link.send(FrameKind::kError, done.error().message);
      return done;
    }
  }
}

/// A step may take minutes, in which nobody looks at the link: another thread does, and ends the process.
void leave_with_leader(int fd) {
  std::thread([fd] {
    pollfd waiting{fd, POLLRDHUP, 0};
    while (::poll(&waiting, 1, -1) < 0) {
    }
    ::usleep(500'000);  // the worker may notice by itself, and say why
    std::fputs("skerry-trainer: the island's leader is gone\n", stderr);
    ::_exit(1);
  }).detach();
}

}  // namespace

int follow_island(const IslandOptions& options, int rank) {
  const auto followed = [&]() -> Result<void> {
    SKERRY_ASSIGN(const IslandAddress leader, parse_island_address(options.address));
    auto link = IslandLink::connect(leader);
    while (!link.ok()) {
      std::this_thread::sleep_for(kRedial);
      link = IslandLink::connect(leader);
    }
    leave_with_leader(link->fd());
    SKERRY_TRY(link->send(FrameKind::kHello,
                          json{{"language", kLanguage}, {"version", SKERRY_VERSION}, {"rank", rank}, {"size", options.size}}.dump()));
    try {
      return follow(*link, rank, options.size);
    } catch (const std::bad_alloc&) {
      (void)link->send(FrameKind::kError, "out of memory");
      return Error{Code::kResourceExhausted, "out of memory", false};
    } catch (const std::exception& error) {
      (void)link->send(FrameKind::kError, error.what());
      return internal_error(error.what());
    }
  }();
  if (followed.ok()) return 0;
  std::fprintf(stderr, "skerry-trainer: rank %d of the island: %s\n", rank, followed.error().message.c_str());
  return 1;
}

}  // namespace skerry::trainer
