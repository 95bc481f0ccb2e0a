// Everything the daemon keeps of one run beside what the machine decides: spec, places, cached fragments, trainer.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "client/daemon/data/catalogue.h"
#include "client/daemon/supervise/trainer_process.h"
#include "client/daemon/update/fragment_cache.h"
#include "client/daemon/update/residual.h"
#include "common/config/run_spec.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::client {

/// Versions to bring into a run's cache.
struct FetchJob {
  std::string name;  ///< to abandon it by
  std::vector<v1::FragmentVersion> wanted;
  std::function<void(Result<void>)> done;             ///< on the loop; not called where it was abandoned
  std::shared_ptr<std::atomic<bool>> cancelled = {};  ///< shared with the worker
};

struct RunArea {
  /// Whether its trainer gives fragments away and takes them in while it trains on.
  bool overlapped() const { return spec && spec->exchange.overlap > 0; }

  v1::RunAnnouncement announcement;
  std::optional<RunSpec> spec;      ///< where it could be understood
  std::optional<DataSet> data_set;  ///< that matched, where accepted

  std::optional<FragmentCache> cache;
  std::map<std::string, std::uint64_t> bases;  ///< what the trainer trains on: fragment → version
  std::set<std::pair<std::string, std::uint64_t>> reading;  ///< what the latest task that reads was fetched for
  std::deque<FetchJob> fetches;  ///< one after another: a version may be made of the one before it
  bool fetching = false;         ///< a worker does the first of them

  // Of overlapped exchange.
  std::map<std::pair<std::uint64_t, std::string>, ReadPath> delivered;  ///< by exchange and fragment
  std::map<std::string, std::map<std::string, std::uint64_t>> emitted;  ///< by task and fragment: the base's version

  std::string work_dir;
  std::unique_ptr<TrainerProcess> trainer;
  bool needs_everything = false;  ///< a trainer without a checkpoint has no fragment yet
  bool has_frozen = false;        ///< the trainer was given the frozen fragment in this life of its
  std::optional<bool> remembers;  ///< whether a task begins with more than it reads; once a task came
  std::uint64_t task_started_ms = 0;
  std::uint64_t last_checkpoint_ms = 0;
};

/// Error feedback of one run. Works on its residuals are done one after another, each on a worker.
struct RunFeedback {
  using Work = std::function<std::function<void()>(std::map<std::string, Residual>)>;

  double share = 0;       ///< β
  std::string directory;  ///< of the residuals' files
  ModelLayout layout;
  std::map<std::string, Residual> residuals;  ///< in force, by fragment
  bool verified = false;                      ///< their files were compared with their names in this life
  bool busy = false;                          ///< a worker has them
  std::deque<Work> waiting;
};

}  // namespace skerry::client
