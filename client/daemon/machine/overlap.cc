// Overlapped exchange: versions that are delivered while a task which plans to merge them is at hand.
#include "client/daemon/machine/client_machine.h"

#include "client/daemon/machine/shared.h"

#include <algorithm>
#include <utility>

namespace skerry::client {

bool ClientMachine::planned(const Run& run, const MergeKey& key) {
  const auto merged = run.merged.find(key.second);
  const bool before = merged != run.merged.end() && key.first <= merged->second;
  return std::any_of(run.tasks.begin(), run.tasks.end(), [&](const ActiveTask& active) {
    // Whoever reads the fragment begins anew, perhaps with a trainer that remembers nothing.
    const auto& read = active.task.read();
    const bool reads = std::any_of(read.begin(), read.end(), [&](const v1::FragmentVersion& fragment) {
      return fragment.fragment() == key.second;
    });
    if (active.phase == Phase::kCancelling || (before && !reads)) return false;
    return std::any_of(active.task.merge().begin(), active.task.merge().end(), [&](const v1::MergePlan& plan) {
      return plan.exchange() == key.first && plan.fragment() == key.second;
    });
  });
}

void ClientMachine::on_message(const v1::Delivery& delivery) {
  Run* run = find_run(delivery.run_id());
  const MergeKey key(delivery.exchange(), delivery.version().fragment());
  // Repeated after each reconnect, perhaps for a task that is gone.
  if (run == nullptr || run->ended || !planned(*run, key)) return;
  const auto [found, fresh] = run->merges.try_emplace(key);
  const auto& known = found->second.delivery.version();
  const bool same = known.version() == delivery.version().version() &&
                    known.whole().content_id() == delivery.version().whole().content_id();
  // What the trainer has been handed it merges, even if a newer version would do as well.
  if (!fresh && (same || run->tasks.front().handed.count(key) != 0)) return;
  found->second = Merge{delivery};
  out_.emplace_back(FetchMerge{delivery});
}

void ClientMachine::on(const MergeFetched& event) {
  Run* run = find_run(event.run_id);
  if (run == nullptr) return;
  const auto found = run->merges.find({event.exchange, event.fragment});
  if (found != run->merges.end()) found->second.ready = true;
}

void ClientMachine::on(const MergeFailed& event) {
  Run* run = find_run(event.run_id);
  if (run == nullptr) return;
  const MergeKey key(event.exchange, event.fragment);
  const auto found = run->merges.find(key);
  if (found == run->merges.end()) return;
  if (event.error.retryable) {
    found->second.retry_at = now_ + 1 + backoff(found->second.failures++, options_.backoff_base_ms, options_.backoff_cap_ms);
    return note(Note::Level::kWarning, "fragment " + event.fragment + " of exchange " + std::to_string(event.exchange) +
                                           " could not be fetched and is tried again: " + to_string(event.error));
  }
  // Those that plan it cannot be done; the coordinator lets this node read everything instead.
  const Error failure = error_of(event.error.code, "a version to merge cannot be had: " + event.error.message, true);
  for (std::size_t index = run->tasks.size(); index-- > 0;) {
    const auto& plans = run->tasks[index].task.merge();
    if (std::any_of(plans.begin(), plans.end(), [&](const v1::MergePlan& plan) {
          return plan.exchange() == key.first && plan.fragment() == key.second;
        }))
      cancel_task(*run, index, &failure);
  }
}

void ClientMachine::on(const TrainerMerged& event) {
  Run* run = find_front(event.task_id);
  if (run != nullptr) run->tasks.front().merged.emplace(event.exchange, event.fragment);
}

/// Fetches again what failed for a while, and forgets what no task wants.
void ClientMachine::watch_merges() {
  for (auto& [id, run] : runs_) {
    for (auto it = run.merges.begin(); it != run.merges.end();) {
      auto& [key, merge] = *it;
      if (run.ended || !planned(run, key)) {
        out_.emplace_back(ForgetMerge{id, key.first, key.second});
        it = run.merges.erase(it);
        continue;
      }
      if (merge.retry_at != 0 && now_ >= merge.retry_at) {
        merge.retry_at = 0;
        out_.emplace_back(FetchMerge{merge.delivery});
      }
      ++it;
    }
  }
}

void ClientMachine::hand_out_merges() {
  for (auto& [id, run] : runs_) {
    if (run.merges.empty() || run.tasks.front().phase != Phase::kRunning) continue;
    auto& front = run.tasks.front();
    for (const auto& plan : front.task.merge()) {
      const MergeKey key(plan.exchange(), plan.fragment());
      const auto found = run.merges.find(key);
      if (found == run.merges.end() || !found->second.ready || !front.handed.insert(key).second) continue;
      out_.emplace_back(MergeFragment{id, key.first, key.second});
    }
  }
}

}  // namespace skerry::client
