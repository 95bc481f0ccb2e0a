#include "client/daemon/app/daemon_loop.h"

#include "client/daemon/app/rest.h"
#include "common/identity/authenticate.h"
#include "common/os/files.h"
#include "common/os/random.h"
#include "common/os/service_manager.h"

#include <nlohmann/json.hpp>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <span>

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::uint64_t kAvailabilityEveryMs = 30'000;
constexpr std::uint64_t kRestAfterMs = 1'000;
constexpr std::uint64_t kLeaveMs = 15'000;

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  SystemRandom().fill(std::as_writable_bytes(std::span(&seed, 1)));
  return seed;
}

}  // namespace

void DaemonLoop::feed(Event event) {
  events_.push_back(std::move(event));
  drain();
}

void DaemonLoop::drain() {
  if (draining_) return;
  draining_ = true;
  while (!events_.empty()) {
    const Event event = std::move(events_.front());
    events_.pop_front();
    auto commands = machine_->handle(event, EventLoop::now_ms());
    for (auto& command : commands) std::visit([this](auto& what) { execute(what); }, command);
  }
  draining_ = false;
}

// What a turn wrote becomes durable in one commit; only then does anything leave.
void DaemonLoop::end_turn() {
  if (machine_->incarnation() != known_incarnation_ || machine_->paused() != known_paused_) {
    known_incarnation_ = machine_->incarnation();
    known_paused_ = machine_->paused();
    const auto remember = [&]() -> Result<void> {
      SKERRY_TRY(database_.begin());
      SKERRY_TRY(database_.set_value("incarnation", known_incarnation_));
      return database_.set_value("paused", known_paused_ ? "1" : "");
    };
    if (auto done = remember(); !done.ok()) return fail_for_good(done.error());
  }
  if (database_.in_transaction()) {
    if (auto done = database_.commit(); !done.ok()) return fail_for_good(done.error());
  }
  for (auto& begin : std::exchange(after_commit_, {})) begin();
  auto outgoing = std::move(outgoing_);
  outgoing_.clear();
  for (auto& item : outgoing) {
    if (session_ == nullptr) break;
    if (auto* message = std::get_if<v1::FromNode>(&item)) {
      session_->send(std::move(*message));
    } else {
      session_->close();
      session_.reset();
      ++generation_;
    }
  }
}

void DaemonLoop::fail_for_good(const Error& error) {
  log(Note::Level::kError, "the daemon cannot keep its records and ends; nothing is lost: " + to_string(error));
  database_.rollback();
  outgoing_.clear();
  after_commit_.clear();
  end_ = DaemonEnd::kFailed;
  loop_->stop();
}

void DaemonLoop::execute(WakeAt& command) {
  loop_->cancel(wake_timer_);
  const auto now = EventLoop::now_ms();
  wake_timer_ = loop_->after(command.at > now ? command.at - now : 0, [this] { feed(Tick{}); });
}

void DaemonLoop::execute(Exit&) {
  if (end_ == DaemonEnd::kStopped && options_.leave) end_ = DaemonEnd::kLeft;
  // The turn's end sends the farewell; then the stream gets a moment to carry it out.
  loop_->after(session_ != nullptr ? 150 : 0, [this] { loop_->stop(); });
}

void DaemonLoop::rest_soon() {
  loop_->cancel(rest_timer_);
  rest_timer_ = loop_->after(kRestAfterMs, [this] {
    for (const auto& [id, area] : runs_)
      if (area->trainer != nullptr) return;  // the end of its run comes back here
    cargo_.clear();
    give_back_memory();
  });
}

// ---- beginning and end ----

Result<void> DaemonLoop::begin() {
  SKERRY_ASSIGN(Profile profile, load_profile(home_.path));
  stored_profile_ = std::make_shared<const Profile>(std::move(profile));
  SKERRY_TRY(load_policy_and_catalogue());
  SKERRY_TRY(make_directories(home_.outbox()));
  SKERRY_TRY(make_directories(home_.runs()));
  if (options_.proxy.empty()) {
    SKERRY_ASSIGN(options_.proxy, database_.value("proxy"));
  }

  const PolicyChanged policy = policy_event();
  ClientMachineOptions machine;
  machine.software = "skerry-client " SKERRY_VERSION;
  machine.seed = random_seed();
  machine.max_trainers = policy.max_trainers;
  machine.max_task_ms = policy.max_task_ms;
  machine.threads = policy.threads;
  machine.memory_bytes = policy.memory_bytes;
  machine.data_sets = policy.data_sets;
  SKERRY_ASSIGN(machine.outbox, database_.load_outbox());
  SKERRY_ASSIGN(machine.previous_incarnation, database_.value("incarnation"));
  SKERRY_ASSIGN(const std::string paused, database_.value("paused"));
  machine.paused = !paused.empty();
  known_incarnation_ = machine.previous_incarnation;
  known_paused_ = machine.paused;

  // Payloads whose update was never stored are of no use to anyone.
  SKERRY_ASSIGN(const auto payloads, list_directory(home_.outbox()));
  for (const auto& entry : payloads) {
    const bool wanted = std::any_of(machine.outbox.begin(), machine.outbox.end(), [&](const StoredUpdate& update) {
      return std::any_of(update.uploads.begin(), update.uploads.end(), [&](const PendingUpload& upload) {
        return entry.name == update.task.task_id() + "." + upload.content_id;
      });
    });
    if (!wanted) SKERRY_TRY(remove_file(join_path(home_.outbox(), entry.name)));
  }
  for (const auto& update : machine.outbox)
    if (!update.uploads.empty()) with_payloads_.insert(update.task.task_id());
  machine_ = std::make_unique<ClientMachine>(std::move(machine));

  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  signals_ = FileDescriptor(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) return file_error(errno, "open", "a signal descriptor");
  SKERRY_TRY(loop_->watch(signals_.get(), EPOLLIN, [this](std::uint32_t) {
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
      if (info.ssi_signo == SIGHUP) reload("SIGHUP");
      else shut_down(false, "a signal");
    }
  }));

  changes_ = FileDescriptor(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (changes_ && ::inotify_add_watch(changes_.get(), home_.path.c_str(), IN_CLOSE_WRITE | IN_MOVED_TO) >= 0) {
    SKERRY_TRY(loop_->watch(changes_.get(), EPOLLIN, [this](std::uint32_t) {
      alignas(inotify_event) char buffer[4096];
      bool ours = false;
      for (ssize_t got; (got = ::read(changes_.get(), buffer, sizeof buffer)) > 0;) {
        for (ssize_t at = 0; at < got;) {
          const auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
          const std::string_view name = event->len > 0 ? std::string_view(event->name) : std::string_view();
          ours = ours || name == "policy.toml" || name == "catalogue.json";
          at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
        }
      }
      if (ours) reload("a file changed");
    }));
  } else {
    log(Note::Level::kWarning, "changes of policy.toml cannot be watched here; send SIGHUP after a change");
  }

  SKERRY_ASSIGN(control_, ControlServer::listen(*loop_, home_.socket(), [this](const json& request) {
    try {
      return control(request);
    } catch (const json::exception& error) {
      return json{{"ok", false}, {"message", std::string("the request is not understood: ") + error.what()}};
    }
  }));
  loop_->set_turn_end([this] { end_turn(); });
  return {};
}

DaemonEnd DaemonLoop::run() {
  log(Note::Level::kInfo, "node " + profile_->name + " of federation " + profile_->federation + ", coordinator " + profile_->address + ": ready");
  const std::function<void()> look = [this, &look] {
    watch_availability();
    loop_->after(kAvailabilityEveryMs, look);
  };
  const ServiceManager manager = ServiceManager::from_environment();
  const std::function<void()> live = [this, &live, &manager] {
    manager.alive();
    loop_->after(manager.alive_every_ms(), live);
  };
  loop_->post([this, &look, &live, &manager] {
    manager.ready();
    if (manager.alive_every_ms() > 0) live();
    look();
    schedule_renewal();
    feed(Started{});
    rest_soon();
  });
  if (options_.leave)
    loop_->after(kLeaveMs, [this] {
      if (shutting_down_) return;
      end_ = DaemonEnd::kNotReached;
      loop_->stop();
    });
  loop_->run();
  manager.stopping();
  stopping_workers_ = true;
  for (auto& [id, flag] : cancelled_) *flag = true;
  if (session_ != nullptr) session_->close(200);
  {
    // gRPC's threads still call back until each stream has ended.
    std::unique_lock lock(live_mutex_);
    if (!live_changed_.wait_for(lock, std::chrono::seconds(3), [this] { return live_sessions_ == 0; })) {
      (void)database_.commit();
      ::_exit(1);
    }
  }
  session_.reset();
  (void)database_.commit();
  control_.reset();
  for (auto& [id, area] : runs_) area->trainer.reset();
  log(Note::Level::kInfo, "ended");
  return end_;
}

Result<std::string> root_fingerprint(const std::string& ca_pem) {
  SKERRY_ASSIGN(const TrustAnchors anchors, TrustAnchors::from_pem(ca_pem));
  return anchors.roots().front().thumbprint();
}

std::uint64_t renewal_delay_ms(std::int64_t not_before_ms, std::int64_t expires_ms, std::int64_t now_ms) {
  const std::int64_t due = not_before_ms + (expires_ms - not_before_ms) / 3 * 2;
  return due <= now_ms ? 0 : static_cast<std::uint64_t>(due - now_ms) + 1;
}

Result<std::unique_ptr<Daemon>> Daemon::create(DaemonOptions options) {
  if (!has_profile(options.home.path))
    return not_found("there is no node in " + options.home.path + "; join a federation first: `skerry-client join TOKEN`");
  SKERRY_ASSIGN(HomeLock lock, HomeLock::acquire(options.home.path));
  SKERRY_ASSIGN(auto loop, EventLoop::create());
  SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(options.home.path));
  SKERRY_ASSIGN(PrivateKey key, PrivateKey::load(options.home.path + "/key.pem"));
  auto daemon = std::make_unique<DaemonLoop>(std::move(options), std::move(lock), std::move(loop), std::move(database), std::move(key));
  SKERRY_TRY(daemon->begin());
  return std::unique_ptr<Daemon>(std::move(daemon));
}

}  // namespace skerry::client
