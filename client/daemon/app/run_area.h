// Everything the daemon keeps of one run beside what the machine decides: spec, places, cached fragments, trainer.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "client/daemon/data/catalogue.h"
#include "client/daemon/supervise/trainer_process.h"
#include "client/daemon/update/fragment_cache.h"
#include "common/config/run_spec.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::client {

struct RunArea {
  v1::RunAnnouncement announcement;
  std::optional<RunSpec> spec;      ///< where it could be understood
  std::optional<DataSet> data_set;  ///< that matched, where accepted

  // Used by one task at a time: by the loop, or by the worker that fetches or computes for it.
  std::optional<FragmentCache> cache;
  std::map<std::string, std::uint64_t> bases;  ///< what the trainer trains on: fragment → version
  bool fetching = false;            ///< a worker has the cache, perhaps for a task that was abandoned
  std::optional<v1::Task> waiting;  ///< its fetch begins when that worker is done

  std::string work_dir;
  std::unique_ptr<TrainerProcess> trainer;
  bool needs_everything = false;  ///< a trainer without a checkpoint has no fragment yet
  bool has_frozen = false;        ///< the trainer was given the frozen fragment in this life of its
  std::optional<bool> remembers;  ///< whether a task begins with more than it reads; once a task came
  std::uint64_t task_started_ms = 0;
  std::uint64_t last_checkpoint_ms = 0;
};

}  // namespace skerry::client
