// Changes that become durable together, and what may be said only then.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/base/result.h"
#include "common/os/clock.h"
#include "server/store/store.h"

namespace skerry::server {

/// Collects the operations of many events into one transaction. Receipts may wait a few milliseconds for company, so that a
/// round costs at most two syncs; everything else is committed as soon as the core has no more work. Used by the core's
/// thread alone.
class CommitGroup {
 public:
  /// How long a receipt may wait.
  static constexpr std::uint64_t kLingerMs = 10;

  CommitGroup(Store& store, CargoStore& cargo, const Clock& clock) : store_(store), cargo_(cargo), clock_(clock) {}

  /// For operations without a receipt. They are urgent.
  Batch& batch();

  /// As Batch::accept, count and discard; `then` gets the receipt chain's head after it, once it is durable. An acceptance
  /// whose task is decided in the same commit is not told: the decision is.
  using WithChain = std::function<void(const std::string& chain)>;
  void accept(UpdateRecord update, std::int64_t now_ms, WithChain then);
  void count(std::string task_id, std::string run_id, std::string node, std::uint64_t exchange, std::uint64_t version,
             std::int64_t now_ms, WithChain then);
  void discard(std::string task_id, std::string run_id, std::string node, std::uint64_t exchange, std::string reason,
               std::int64_t now_ms, WithChain then);

  /// Runs after what was added so far is durable; at once, at the end of the core's work, where there is nothing to commit.
  void after(std::function<void()> action);

  /// Called once right before the next commit, to add what changed in the meantime; one call for each `key`.
  void before(const std::string& key, std::function<void(Batch&)> contribute, bool urgent);

  /// Commits if it is time. Returns the milliseconds it may still wait, 0 if nothing is pending. A full disk or a locked
  /// database keeps everything and tries again; any other failure of the store is `fatal()`.
  std::uint64_t settle();

  /// Commits what waits, if that can be, and lets go of all that would have followed. For the end.
  void finish();

  /// The last commit failed for a full disk: no more work should be taken in.
  bool stuck() const { return stuck_; }
  const std::optional<Error>& fatal() const { return fatal_; }
  std::uint64_t commits() const { return commits_; }

 private:
  Batch& lingering();
  void expect(WithChain then);
  void decide(const std::string& task_id, WithChain then);

  Store& store_;
  CargoStore& cargo_;
  const Clock& clock_;
  Batch batch_;
  std::vector<WithChain> receipts_;
  std::unordered_map<std::string, std::size_t> accepted_;  // by task: its place in receipts_
  std::vector<std::function<void()>> after_;
  std::set<std::string> before_keys_;
  std::vector<std::function<void(Batch&)>> before_;
  bool urgent_ = false;
  std::uint64_t linger_until_ = 0;
  bool stuck_ = false;
  std::optional<Error> fatal_;
  std::uint64_t commits_ = 0;
};

}  // namespace skerry::server
