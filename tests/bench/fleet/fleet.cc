#include "tests/bench/fleet/fleet.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/os/files.h"
#include "tests/bench/fleet/enrolment.h"
#include "tests/bench/fleet/member.h"
#include "tests/bench/fleet/process_watch.h"

namespace skerry::bench {
namespace {

constexpr std::uint64_t kEndingMs = 10'000;  // for the last members to be told that a run is over
constexpr std::uint64_t kLookMs = 20;
constexpr std::uint64_t kMaxSpecBytes = 1u << 20;

void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

class Fleet {
 public:
  Fleet(const FleetOptions& options, std::unique_ptr<client::EventLoop> loop)
      : options_(options), loop_(std::move(loop)), updates_(options.seed), log_(options.verbose) {}

  Result<nlohmann::json> run() {
    SKERRY_TRY(make_directories(join_path(options_.home, "cargo")));
    SKERRY_ASSIGN(std::vector<Profile> profiles, enrol());
    shared_.emplace(FleetShared{*loop_, workers_, updates_, log_, join_path(options_.home, "cargo"), options_.train_ms,
                                [this] { greeted(); }, 0, {}});
    for (std::size_t i = 0; i < profiles.size(); ++i) {
      SKERRY_ASSIGN(auto member, Member::create(*shared_, std::move(profiles[i]), static_cast<std::uint32_t>(i)));
      members_.push_back(std::move(member));
    }
    std::string spec;
    if (!options_.submit.empty()) {
      SKERRY_ASSIGN(spec, read_file(options_.submit, kMaxSpecBytes));
    }
    spec_ = std::move(spec);
    began_ms_ = client::EventLoop::now_ms();
    loop_->post([this] {
      for (unsigned i = 0; i < std::max(1u, options_.connecting); ++i) start_next();
      look();
    });
    loop_->run();
    if (failed_) return *failed_;
    nlohmann::json report = log_.json();
    report["clients"] = members_.size();
    report["connect_seconds"] = connect_seconds_;
    report["timed_out"] = timed_out_;
    report["memory_bytes"] = memory_bytes_;
    report["cpu_seconds"] = cpu_seconds_of(getpid());
    if (watch_) {
      watch_->stop();
      report["watched"] = {{"peak_resident_bytes", watch_->peak().resident_bytes},
                           {"peak_anonymous_bytes", watch_->peak().anonymous_bytes},
                           {"resident_bytes_before", before_.resident_bytes},
                           {"anonymous_bytes_before", before_.anonymous_bytes},
                           {"cpu_seconds", watch_->cpu_seconds()}};
    }
    return report;
  }

 private:
  Result<std::vector<Profile>> enrol() {
    if (!options_.profile.empty()) {
      SKERRY_ASSIGN(Operator opened, Operator::open(options_.profile));
      operator_.emplace(std::move(opened));
    }
    const std::string members = join_path(options_.home, "members");
    if (!options_.tokens.empty()) return enrol_with_tokens(options_.tokens, members);
    if (!operator_) return invalid_argument("give an operator's --profile or a file of --tokens");
    return enrol_fleet(*operator_, members, options_.prefix, options_.clients);
  }

  void start_next() {
    if (started_ < members_.size()) members_[started_++]->start();
  }

  // A member's first session stands: the next one dials.
  void greeted() {
    start_next();
    if (++greeted_ < members_.size()) return;
    connect_seconds_ = static_cast<double>(client::EventLoop::now_ms() - began_ms_) / 1000.0;
    memory_bytes_ = memory_of(getpid()).resident_bytes;
    std::fprintf(stderr, "%zu clients are connected after %.2f s\n", members_.size(), connect_seconds_);
    if (options_.watch_pid > 0) {
      before_ = memory_of(options_.watch_pid);
      watch_.emplace(options_.watch_pid);
    }
    if (spec_.empty()) return;
    workers_.run([this] {
      auto submitted = std::make_shared<Result<std::string>>(operator_->submit(spec_));
      loop_->post([this, submitted] {
        if (submitted->ok()) return;
        failed_ = submitted->error();
        end();
      });
    });
  }

  // Whether it is over, asked now and then.
  void look() {
    const std::uint64_t now = client::EventLoop::now_ms();
    const bool late = options_.seconds > 0 && now - began_ms_ >= options_.seconds * 1000;
    if (!ending_ && late) {
      const std::uint64_t wanted = runs_wanted();
      timed_out_ = greeted_ < members_.size() || log_.runs_ended() < wanted;
      return end();
    }
    if (!ending_ && runs_wanted() > 0 && log_.runs_ended() >= runs_wanted()) {
      const bool all_told = std::all_of(log_.runs().begin(), log_.runs().end(),
                                        [this](const auto& run) { return run.second.outcome.empty() || run.second.told >= log_.connected_now(); });
      if (over_at_ms_ == 0) over_at_ms_ = now;
      if (all_told || now - over_at_ms_ >= kEndingMs) return end();
    }
    loop_->after(kLookMs, [this] { look(); });
  }

  void end() {
    ending_ = true;
    over_at_ms_ = client::EventLoop::now_ms();
    if (watch_) watch_->stop();
    for (std::size_t i = 0; i < started_; ++i) members_[i]->stop();
    wait_for_streams();
  }

  // Streams that have not ended would still speak to the loop: it lasts until they have.
  void wait_for_streams() {
    if (shared_->streams == 0) return loop_->stop();
    loop_->after(kLookMs, [this] { wait_for_streams(); });
  }

  std::uint64_t runs_wanted() const { return options_.runs > 0 ? options_.runs : options_.submit.empty() ? 0 : 1; }

  const FleetOptions& options_;
  std::unique_ptr<client::EventLoop> loop_;
  SyntheticUpdates updates_;
  FleetLog log_;
  std::optional<Operator> operator_;
  std::optional<FleetShared> shared_;
  std::vector<std::unique_ptr<Member>> members_;
  client::Workers workers_{options_.workers};  // ends before the members: its jobs use them
  std::string spec_;
  std::size_t started_ = 0;
  std::size_t greeted_ = 0;
  std::uint64_t began_ms_ = 0;
  std::uint64_t over_at_ms_ = 0;
  double connect_seconds_ = 0;
  std::uint64_t memory_bytes_ = 0;
  bool ending_ = false;
  bool timed_out_ = false;
  std::optional<Error> failed_;
  ProcessMemory before_;
  std::optional<ProcessWatch> watch_;
};

}  // namespace

Result<nlohmann::json> run_fleet(const FleetOptions& options) {
  raise_descriptor_limit();
  SKERRY_ASSIGN(auto loop, client::EventLoop::create());
  Fleet fleet(options, std::move(loop));
  return fleet.run();
}

}  // namespace skerry::bench
