// The coordinator: sessions of daemons on one side, runs on the other, one thread of decisions between them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/identity/authenticate.h"
#include "common/os/clock.h"
#include "common/os/random.h"
#include "server/aggregate/engine.h"
#include "server/coordinator/commit_group.h"
#include "server/coordinator/core_loop.h"
#include "server/coordinator/run_host.h"
#include "server/coordinator/session.h"
#include "server/identity/members.h"
#include "server/metrics/metrics.h"
#include "server/net/port.h"
#include "server/store/store.h"
#include "skerry/v1/control.pb.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::server {

struct CoordinatorOptions {
  std::string name = "coordinator";
  std::string ticket_key;              ///< load_ticket_key()
  std::uint32_t heartbeat_ms = 15'000; ///< asked of daemons; one that is silent for three of these is disconnected
  std::uint32_t dry_run_ms = 3'000;    ///< how long a dry run waits for the daemons' answers
  unsigned threads = 0;                ///< of the aggregation engine; 0: one a core
  strategies::RuleCatalogue rules;     ///< aggregation rules that runs may name
  /// End of the coordinator's own certificate, Unix ms; for the status.
  std::function<std::int64_t()> certificate_expires_ms;
};

/// Everything it works on; outlives it.
struct CoordinatorParts {
  const Clock& clock;
  Random& random;
  Store& store;
  CargoStore& cargo;
  Members& members;
  Authenticator& authenticator;
  Metrics& metrics;
};

/// Public functions are safe from any thread unless they say otherwise; `done` is called on the core's thread.
class Coordinator final : public SessionEvents {
 public:
  Coordinator(CoordinatorOptions options, CoordinatorParts parts);
  ~Coordinator() override;

  /// Takes up every run of the store and begins to work. One whose aggregation rule is not offered (a plug-in that is gone or
  /// other bytes) is set aside as it is, shown as paused with the reason. DATA_LOSS where a run cannot be restored.
  Result<void> start();

  /// Stops taking work, commits what is pending and ends its threads.
  void stop();

  /// Connections are ended through it when a member is revoked. Call it before the first session.
  void attach(Port& port) { port_ = &port; }

  /// A member enrolled anew: its older certificate is worth nothing any more.
  void replaced(const std::string& thumbprint);

  /// For the port.
  CargoAccess cargo_access();

  /// Called on the core's thread when the store failed for good: the process must end, a restart recovers.
  void on_fatal(std::function<void(const Error&)> handler) { fatal_handler_ = std::move(handler); }

  // SessionEvents
  void opened(std::shared_ptr<Session> session) override;
  void received(const std::shared_ptr<Session>& session, v1::FromNode message) override;
  void ended(const std::shared_ptr<Session>& session) override;

  // ---- what operators ask (server/coordinator/control_service.h, server/web) ----

  template <typename T>
  using Done = std::function<void(Result<T>)>;

  /// The aggregation rules that runs may name; any thread.
  const strategies::RuleCatalogue& rules() const { return options_.rules; }

  void status(Done<v1::CoordinatorStatus> done);
  void submit(v1::SubmitRunRequest request, std::string who, Done<v1::SubmitRunReply> done);
  void list_runs(Done<v1::ListRunsReply> done);
  void get_run(std::string run, Done<v1::RunDetail> done);
  void change_run(v1::ChangeRunRequest request, std::string who, Done<v1::RunDetail> done);
  void run_metrics(std::string run, Done<v1::RunMetrics> done);
  void list_versions(std::string run, Done<v1::ListVersionsReply> done);
  void invite(v1::InviteMemberRequest request, std::string who, Done<v1::InviteMemberReply> done);
  void revoke(v1::RevokeMemberRequest request, std::string who, Done<v1::RevokeMemberReply> done);
  void list_members(std::string role, Done<v1::ListMembersReply> done);

  /// Calls `update` on the core's thread now and whenever the run changed, at most twice a second, until it returns false.
  /// `failed` where there is no such run.
  void watch(std::string run, std::function<bool(const v1::RunDetail&)> update, std::function<void(Error)> failed);

 private:
  struct Live {  // a node's session after its Hello
    std::shared_ptr<Session> session;
    std::string incarnation;
    v1::Hello hello;
    bool paused = false;
    std::uint64_t heard_ms = 0;
    unsigned refusals = 0;  // since refusals_since_ms
    std::uint64_t refusals_since_ms = 0;
    std::set<std::string> joined;  // runs whose machine knows this session
  };
  struct DryRun {
    v1::SubmitRunReply reply;
    std::set<std::string> waiting;
    std::map<std::string, v1::RunAnswer> answers;
    Done<v1::SubmitRunReply> done;
  };
  struct Watcher {
    std::string run_id;
    std::function<bool(const v1::RunDetail&)> update;
  };

  std::optional<std::string> why_set_aside(const RunRecord& record) const;
  std::uint64_t settle();
  void every(std::uint64_t period_ms, std::function<void()> work);
  void sweep();
  void sweep_spool();
  void misbehaved(const std::string& node);
  void end(const std::shared_ptr<Session>& session, Error reason);


  void message(const std::shared_ptr<Session>& session, v1::FromNode message);
  void greet(const std::shared_ptr<Session>& session, v1::Hello hello);
  void answered(Live& live, const std::string& node, v1::RunAnswer answer);
  void queried(const std::string& node, const v1::ReceiptQuery& query);
  void update(const std::string& node, v1::UpdateBody body, v1::SignedUpdate message);
  void left(const std::string& node, bool for_good);
  void announce(const RunHost& run, Session& session);

  RunHost* find_run(const std::string& run_id);
  RunHost* run_of_task(const std::string& task);
  Result<RunRecord> resolve_run(const std::string& reference);
  Result<v1::RunDetail> detail_of(const std::string& reference);
  void add_run(RunPlan plan, std::vector<VersionRecord> initial, std::string who, v1::SubmitRunReply reply,
               Done<v1::SubmitRunReply> done);
  void dry_run(const RunPlan& plan, v1::SubmitRunReply reply, Done<v1::SubmitRunReply> done);
  void finish_dry_run(const std::string& id);
  void publish_cargo(const RunHost& run);
  void count_sent_cargo();
  void notify_watchers();
  std::int64_t unix_now() const { return static_cast<std::int64_t>(parts_.clock.unix_ms()); }

  const CoordinatorOptions options_;
  CoordinatorParts parts_;
  std::uint64_t started_ms_;
  Port* port_ = nullptr;
  std::function<void(const Error&)> fatal_handler_;

  AggregationEngine engine_;
  CommitGroup commit_;
  std::map<std::string, std::unique_ptr<RunHost>> runs_;  // that are not over; ended ones until the next restart
  std::map<std::string, std::string> set_aside_;          // runs that cannot go on until a restart, and why
  std::map<std::string, Live> nodes_;                     // by name
  std::map<std::string, std::string> last_incarnation_;   // by node, of this process's life
  std::vector<std::weak_ptr<Session>> unread_;            // waiting for room on the disk
  std::map<std::string, DryRun> dry_runs_;
  std::vector<Watcher> watchers_;
  std::set<std::string> changed_;
  bool settling_ = false;
  std::vector<std::shared_ptr<Session>> queued_;          // of messages that leave when the commit is settled
  std::set<const Session*> greeting_;                     // opened, no Hello yet
  std::vector<std::weak_ptr<Session>> ending_;            // told to end
  bool stopped_ = false;


  mutable std::mutex cargo_mutex_;
  std::unordered_map<std::string, std::set<std::string>> cargo_runs_;  // content id → runs it is of
  std::map<std::pair<std::string, std::string>, std::uint64_t> cargo_sent_;  // (run, node) → bytes, not yet told the run
  std::map<std::string, std::set<std::string>> run_members_;           // run → nodes whose holders consented

  RunServices services_;
  CoreLoop bulk_;  // declared after what its work uses, so that it ends first
  CoreLoop core_;
};

}  // namespace skerry::server
