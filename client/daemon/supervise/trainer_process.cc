#include "client/daemon/supervise/trainer_process.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>

#include <nlohmann/json.hpp>

#include "client/daemon/supervise/sandbox.h"

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxLine = 1 << 20;
constexpr std::size_t kMaxUnsent = 16 << 20;
constexpr std::uint64_t kLogBytes = 1 << 20;
constexpr std::uint64_t kLeastProgressMs = 200;
constexpr int kLastChunks = 16;  // 1 MiB, the most that a pipe may hold

std::uint64_t count_member(const json& message, const char* name) {
  const auto found = message.find(name);
  if (found == message.end() || !found->is_number()) return 0;
  if (found->is_number_unsigned()) return found->get<std::uint64_t>();
  const double value = found->get<double>();
  return value >= 0 && value < 9e15 ? static_cast<std::uint64_t>(value) : 0;
}

double number_member(const json& message, const char* name) {
  const auto found = message.find(name);
  return found != message.end() && found->is_number() ? found->get<double>() : 0.0;
}

std::string text_member(const json& message, const char* name) {
  const auto found = message.find(name);
  return found != message.end() && found->is_string() ? found->get<std::string>() : std::string();
}

Code code_of(std::string_view name) {
  for (int number = 1; number <= 16; ++number)
    if (code_name(static_cast<Code>(number)) == name) return static_cast<Code>(number);
  return Code::kUnknown;
}

// The numerical libraries of trainers must not spin while they wait for the next task.
std::vector<std::string> trainer_environment() {
  auto environment = pick_environment({"PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SKERRY_DEVICE",
                                       "SKERRY_PEAK_TFLOPS"});
  for (const char* setting : {"OMP_WAIT_POLICY=PASSIVE", "GOMP_SPINCOUNT=0", "OPENBLAS_THREAD_TIMEOUT=4", "OPENBLAS_NUM_THREADS=1",
                              "PYTHONUNBUFFERED=1", "HOME=/tmp"})
    environment.emplace_back(setting);
  return environment;
}

}  // namespace

Result<std::unique_ptr<TrainerProcess>> TrainerProcess::start(EventLoop& loop, TrainerLaunch launch, TrainerEvents events) {
  SpawnOptions options;
  options.command = launch.command;
  options.environment = trainer_environment();
  options.memory_bytes = launch.memory_bytes;
  SKERRY_ASSIGN(Process process, Process::spawn(options));
  std::unique_ptr<TrainerProcess> trainer(new TrainerProcess(loop, std::move(launch), std::move(events), std::move(process)));
  SKERRY_TRY(trainer->begin());
  return trainer;
}

TrainerProcess::TrainerProcess(EventLoop& loop, TrainerLaunch launch, TrainerEvents events, Process process)
    : loop_(loop), launch_(std::move(launch)), events_(std::move(events)), process_(std::move(process)) {}

Result<void> TrainerProcess::begin() {
  SKERRY_TRY(loop_.watch(process_.stdout_fd(), EPOLLIN, [this](std::uint32_t) { read_stdout(1); }));
  SKERRY_TRY(loop_.watch(process_.stderr_fd(), EPOLLIN, [this](std::uint32_t) { read_stderr(); }));
  if (process_.exit_fd() >= 0)
    SKERRY_TRY(loop_.watch(process_.exit_fd(), EPOLLIN, [this](std::uint32_t) { child_ended(); }));
  expect_within(launch_.hello_timeout_ms, "say hello");
  return {};
}

TrainerProcess::~TrainerProcess() {
  loop_.cancel(timer_);
  for (const int fd : {process_.stdout_fd(), process_.stderr_fd(), process_.exit_fd(), process_.stdin_fd()})
    if (fd >= 0) loop_.unwatch(fd);
}

void TrainerProcess::expect_within(std::uint64_t timeout_ms, const char* what) {
  loop_.cancel(timer_);
  timer_ = loop_.after(timeout_ms, [this, timeout_ms, what] {
    give_up({Code::kDeadlineExceeded, "the trainer did not " + std::string(what) + " within " + std::to_string(timeout_ms / 1000) + " s", true});
  });
}

void TrainerProcess::send(std::string line) {
  if (finished_ || close_after_writing_) return;
  unsent_ += line;
  unsent_ += '\n';
  if (unsent_.size() > kMaxUnsent) return give_up({Code::kResourceExhausted, "the trainer does not read its stdin", true});
  flush();
}

void TrainerProcess::flush() {
  const int fd = process_.stdin_fd();
  if (fd < 0) return;
  std::size_t done = 0;
  while (done < unsent_.size()) {
    const auto written = ::write(fd, unsent_.data() + done, unsent_.size() - done);
    if (written > 0) done += static_cast<std::size_t>(written);
    else if (written < 0 && errno == EINTR) continue;
    else break;
  }
  const bool blocked = done < unsent_.size() && (errno == EAGAIN || errno == EWOULDBLOCK);
  if (done < unsent_.size() && !blocked) unsent_.clear();  // it closed its stdin; its end is reported by the exit
  else unsent_.erase(0, done);
  if (blocked && !waiting_to_write_) {
    waiting_to_write_ = loop_.watch(fd, EPOLLOUT, [this](std::uint32_t) { flush(); }).ok();
  } else if (!blocked) {
    if (waiting_to_write_) loop_.unwatch(fd);
    waiting_to_write_ = false;
    if (close_after_writing_) process_.close_stdin();
  }
}

void TrainerProcess::stop(std::string reason, std::uint64_t grace_ms) {
  if (finished_ || ending_) return;
  ending_ = Error{Code::kCancelled, "the trainer was ended: " + reason, true};
  send("{\"type\":\"close\"}");
  close_after_writing_ = true;
  flush();
  loop_.cancel(timer_);
  timer_ = loop_.after(grace_ms, [this] { process_.send_signal(SIGKILL); });
}

void TrainerProcess::give_up(Error error) {
  if (!ending_) ending_ = std::move(error);
  loop_.cancel(timer_);
  process_.send_signal(SIGKILL);
}

void TrainerProcess::read_stdout(int most_chunks) {
  for (int chunk_number = 0; chunk_number < most_chunks; ++chunk_number) {
    auto chunk = read_available(process_.stdout_fd());
    if (!chunk.ok() || chunk->end) {
      loop_.unwatch(process_.stdout_fd());
      return;
    }
    if (chunk->data.empty()) return;
    const bool short_read = chunk->data.size() < 64 * 1024;
    unread_ += chunk->data;
    std::size_t at = 0;
    for (std::size_t end; (end = unread_.find('\n', at)) != std::string::npos; at = end + 1) {
      take_line(std::string_view(unread_).substr(at, end - at));
      if (finished_) return;
    }
    unread_.erase(0, at);
    if (unread_.size() > kMaxLine) {
      unread_.clear();
      return give_up({Code::kResourceExhausted, "the trainer wrote a line of more than 1 MiB", false});
    }
    if (short_read) return;
  }
}

void TrainerProcess::read_stderr() {
  auto chunk = read_available(process_.stderr_fd());
  if (!chunk.ok() || chunk->end) {
    loop_.unwatch(process_.stderr_fd());
    return;
  }
  if (first_stderr_.size() < 400) first_stderr_ += chunk->data.substr(0, 400 - first_stderr_.size());
  log(chunk->data);
}

void TrainerProcess::log(std::string_view text) {
  if (text.empty()) return;
  if (!log_ || log_bytes_ > kLogBytes) {
    if (log_) ::rename(launch_.log_path.c_str(), (launch_.log_path + ".1").c_str());
    log_.reset();
    auto file = File::open(launch_.log_path, OpenMode::kAppend);
    if (!file.ok()) return;
    log_bytes_ = file->size().ok() ? *file->size() : 0;
    log_.emplace(*std::move(file));
  }
  (void)log_->append(as_bytes_of(text));
  log_bytes_ += text.size();
}

void TrainerProcess::take_line(std::string_view line) {
  if (line.empty()) return;
  const json message = line.front() == '{' ? json::parse(line, nullptr, false) : json();
  if (!message.is_object() || text_member(message, "type").empty()) return log(std::string(line) + "\n");
  take_message(message);
}

void TrainerProcess::take_message(const json& message) {
  const std::string type = text_member(message, "type");
  if (type == "progress") {
    const auto now = EventLoop::now_ms();
    if (now - last_progress_ms_ < kLeastProgressMs) return;
    last_progress_ms_ = now;
    events_.progress({"", text_member(message, "task"), count_member(message, "step"), count_member(message, "of"), number_member(message, "loss")});
  } else if (type == "done") {
    TrainerDone done;
    done.task_id = text_member(message, "task");
    done.result.steps = count_member(message, "steps");
    done.result.examples = count_member(message, "examples");
    done.result.tokens = count_member(message, "tokens");
    if (const auto metrics = message.find("metrics"); metrics != message.end() && metrics->is_object())
      for (const auto& item : metrics->items())
        if (item.value().is_number() && done.result.metrics.size() < 256) done.result.metrics[item.key()] = item.value().get<double>();
    events_.done(std::move(done));
  } else if (type == "hello" && !greeted_) {
    if (count_member(message, "protocol") != 1)
      return give_up({Code::kUnimplemented, "the trainer speaks protocol " + std::to_string(count_member(message, "protocol")) +
                                                ", this daemon speaks 1", false});
    greeted_ = true;
    if (const auto warnings = message.find("warnings"); warnings != message.end() && warnings->is_array())
      for (const auto& warning : *warnings)
        if (warning.is_string()) events_.note(Note::Level::kWarning, "trainer: " + warning.get<std::string>());
    expect_within(launch_.open_timeout_ms, "open its data");
    send(launch_.open_line);
  } else if (type == "opened" && greeted_ && !opened_) {
    opened_ = true;
    loop_.cancel(timer_);
    std::map<std::string, std::uint64_t> examples;
    if (const auto found = message.find("examples"); found != message.end() && found->is_object())
      for (const auto& item : found->items())
        if (item.value().is_number_unsigned()) examples[item.key()] = item.value().get<std::uint64_t>();
    events_.ready(std::move(examples), count_member(message, "resumed_step"));
  } else if (type == "error") {
    Error error{code_of(text_member(message, "code")), text_member(message, "message"), false};
    error.retryable = error.code == Code::kUnavailable;  // it lacks something that may come back: a worker of its island
    const auto fatal = message.find("fatal");
    if (!opened_ || (fatal != message.end() && fatal->is_boolean() && fatal->get<bool>())) return give_up(std::move(error));
    events_.error({"", text_member(message, "task"), std::move(error)});
  } else if (type == "cancelled") {
    events_.cancelled({"", text_member(message, "task")});
  } else if (type == "fragment") {
    events_.emitted(text_member(message, "task"), text_member(message, "fragment"), count_member(message, "base"));
  } else if (type == "merged") {
    events_.merged({"", text_member(message, "task"), count_member(message, "exchange"), text_member(message, "fragment")});
  } else if (type != "checkpointed") {
    log("message of unknown type: " + type + "\n");
  }
}

void TrainerProcess::child_ended() {
  const auto status = process_.try_wait();
  if (!status || finished_) return;
  loop_.cancel(timer_);
  loop_.unwatch(process_.exit_fd());
  read_stderr();
  if (process_.stdout_fd() >= 0) read_stdout(kLastChunks);  // its last words may still be in the pipe
  loop_.unwatch(process_.stdout_fd());
  loop_.unwatch(process_.stderr_fd());
  if (process_.stdin_fd() >= 0) loop_.unwatch(process_.stdin_fd());
  finished_ = true;
  Error error = ending_ ? *ending_ : Error{Code::kAborted, "the trainer " + to_string(*status), true};
  if (!greeted_ && launch_.sandboxed && first_stderr_.starts_with("bwrap:"))
    error = failed_precondition(first_stderr_.substr(0, first_stderr_.find('\n')) + "; " + sandbox_advice(launch_.policy_path));
  else if (!ending_ && !first_stderr_.empty() && !greeted_)
    error.message += "; it said: " + first_stderr_.substr(0, first_stderr_.find('\n'));
  else if (status->signal == SIGKILL && !ending_)
    error.message += "; perhaps it needed more memory than there is";
  // The last call: the owner may delete this object in it.
  const auto exited = events_.exited;
  exited(std::move(error));
}

std::string task_line(const v1::Task& task, const TaskPaths& paths, std::string_view counted, std::uint64_t progress_ms, bool checkpoint) {
  json reads = json::object();
  for (const auto& [fragment, source] : paths.read) reads[fragment] = {{"path", source.path}, {"version", source.version}};
  json line = {{"task", task.task_id()}, {"read", std::move(reads)}};
  if (task.kind() == v1::TASK_EVALUATE) {
    line["type"] = "evaluate";
    line["split"] = task.split();
  } else {
    line["type"] = "train";
    line["write"] = paths.write;
    for (const auto& [fragment, to] : paths.emit)
      line["emit"].push_back({{"fragment", fragment},
                              {"exchange", task.exchange()},
                              {"at_step", task.steps()},
                              {"path", to.path},
                              {"base_path", to.base_path}});
    for (const auto& plan : task.merge())
      line["merge"].push_back({{"fragment", plan.fragment()},
                               {"exchange", plan.exchange()},
                               {"at_step", plan.at_step()},
                               {"rule", plan.rule()},
                               {"alpha", plan.alpha()},
                               {"on_late", plan.block() ? "block" : "on-arrival"}});
    if (!task.after().empty()) line["after"] = task.after();
    line["steps"] = task.steps();
    line["epochs"] = task.epochs();
    line["seed"] = task.seed();
    line["first_step"] = task.first_step();
    if (!counted.empty()) line["counted"] = counted;
    line["progress_ms"] = progress_ms;
    if (!checkpoint) line["checkpoint"] = false;
  }
  return line.dump();
}

std::string merge_line(std::uint64_t exchange, const std::string& fragment, const ReadPath& version) {
  return json{{"type", "merge"}, {"exchange", exchange}, {"fragment", fragment}, {"path", version.path}, {"version", version.version}}.dump();
}

std::string cancel_line(std::string_view task_id) { return json{{"type", "cancel"}, {"task", task_id}}.dump(); }

std::string open_line(const OpenRequest& request) {
  json data = {{"kind", request.data_kind},
               {"schema", json::parse(request.data_schema_json)},
               {"path", request.data_path},
               {"splits", json::parse(request.data_splits_json)}};
  if (!request.data_indices.empty()) data["indices"] = request.data_indices;
  if (!request.tokenizer.empty()) data["tokenizer"] = request.tokenizer;
  if (request.documents) data["packing"] = "documents";
  return json{{"type", "open"},
              {"run", request.run_id},
              {"work_dir", request.work_dir},
              {"state_dir", request.state_dir},
              {"threads", request.threads},
              {"seed", request.seed},
              {"checkpoint_ms", request.checkpoint_ms},
              {"model", json::parse(request.model_json)},
              {"training", json::parse(request.training_json)},
              {"data", std::move(data)}}
      .dump();
}

}  // namespace skerry::client
