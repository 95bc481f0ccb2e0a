#include "client/daemon/app/daemon_loop.h"

#include "client/daemon/session/cargo_client.h"
#include "common/model/layout.h"
#include "common/os/files.h"

#include <nlohmann/json.hpp>

#include <optional>
#include <set>
#include <utility>

namespace skerry::client {
namespace {

constexpr std::uint64_t kSmallElements = 64 * 1024;  // fragments up to this size are made on the loop itself
constexpr const char* kEmittedDirectory = "/emitted/";  // in a run's work directory: one for each task

/// Small fragments whose bytes came along need no worker; nothing: this needs one.
std::optional<Result<void>> bring_here(FragmentCache& cache, const std::vector<v1::FragmentVersion>& versions) {
  for (const auto& wanted : versions) {
    const auto known = cache.find(wanted.fragment(), wanted.version());
    if (known != nullptr && known->content_id == wanted.whole().content_id()) continue;
    const bool comes_along = !wanted.whole().inline_data().empty() || !wanted.step().inline_data().empty();
    if (!comes_along || wanted.whole().size() > 4 * kSmallElements + 65536) return std::nullopt;
  }
  const Download none = [](const std::string&, std::uint64_t, const std::string&) -> Result<void> {
    return unavailable("the bytes did not come along");
  };
  for (const auto& wanted : versions) {
    auto brought = cache.bring(wanted, none);
    if (!brought.ok() && brought.error().code == Code::kUnavailable) return std::nullopt;
    if (!brought.ok()) return brought;
  }
  return Result<void>();
}

std::string merge_name(const std::string& run_id, std::uint64_t exchange, const std::string& fragment) {
  return "merge of " + run_id + "/" + std::to_string(exchange) + "/" + fragment;
}

}  // namespace

Download DaemonLoop::downloader(std::shared_ptr<std::atomic<bool>> cancelled) {
  // One client, so one connection, for all fragments of a task.
  auto client = cargo_.borrow(profile_, options_.proxy, cancelled.get());
  const std::uint64_t limit = policy_.disk_mb * 1'000'000;
  return [client, cancelled, limit, home = home_](const std::string& id, std::uint64_t size, const std::string& path) -> Result<void> {
    const std::uint64_t used = directory_bytes(home.runs()) + directory_bytes(home.outbox());
    if (used + size > limit)
      return Error{Code::kResourceExhausted, std::to_string(size) + " bytes more would exceed limits.disk_mb in " + home.policy() + " (" +
                                                 std::to_string(used / 1'000'000) + " MB are used)", true};
    return client->download(id, size, path);
  };
}

std::shared_ptr<std::atomic<bool>> DaemonLoop::cancel_flag(const std::string& task_id) {
  auto flag = std::make_shared<std::atomic<bool>>(false);
  cancelled_[task_id] = flag;
  return flag;
}

void DaemonLoop::abandon(const std::string& name) {
  const auto found = cancelled_.find(name);
  if (found == cancelled_.end()) return;
  *found->second = true;
  cancelled_.erase(found);
}

void DaemonLoop::execute(Abandon& command) { abandon(command.task_id); }

Result<void> DaemonLoop::open_cache(RunArea& area) const {
  if (area.cache) return {};
  if (!area.spec) return internal_error("the run is not known");
  SKERRY_ASSIGN(ModelLayout layout, build_layout(nlohmann::json::parse(area.spec->model_json)));
  SKERRY_ASSIGN(FragmentCache cache, FragmentCache::open(home_.cache(area.announcement.run_id(), policy_.work_dir), std::move(layout)));
  area.cache.emplace(std::move(cache));
  return {};
}

void DaemonLoop::execute(Fetch& command) {
  const v1::Task& task = command.task;
  const auto area = area_of(task.run_id());
  const auto opened = area == nullptr ? Result<void>(internal_error("the run is not known")) : open_cache(*area);
  if (!opened.ok()) return feed(FetchFailed{task.task_id(), told(opened.error())});
  area->reading.clear();
  for (const auto& wanted : task.read()) area->reading.emplace(wanted.fragment(), wanted.version());
  fetch(area, {task.task_id(), {task.read().begin(), task.read().end()}, [this, task_id = task.task_id()](const Result<void>& result) {
                 if (result.ok()) return feed(FetchDone{task_id});
                 log(Note::Level::kWarning, "task " + task_id + ": " + to_string(result.error()));
                 feed(FetchFailed{task_id, told(result.error())});
               }});
}

void DaemonLoop::fetch(const std::shared_ptr<RunArea>& area, FetchJob job) {
  abandon(job.name);  // a newer version took its place
  job.cancelled = cancel_flag(job.name);
  area->fetches.push_back(std::move(job));
  if (!area->fetching && area->fetches.size() == 1) fetch_next(area);
}

void DaemonLoop::fetch_next(const std::shared_ptr<RunArea>& area) {
  const auto end = [this, area](const Result<void>& result) {
    const FetchJob job = std::move(area->fetches.front());
    area->fetches.pop_front();
    if (*job.cancelled) return;
    cancelled_.erase(job.name);
    job.done(result);
  };
  while (!area->fetching && !area->fetches.empty()) {
    const FetchJob& job = area->fetches.front();
    auto keep = area->reading;
    for (const auto& base : area->bases) keep.insert(base);
    for (const auto& [key, path] : area->delivered) keep.emplace(key.second, path.version);
    for (const auto& wanted : job.wanted) keep.emplace(wanted.fragment(), wanted.version());
    area->cache->trim(keep);
    auto here = *job.cancelled ? Result<void>() : bring_here(*area->cache, job.wanted);
    if (here) {
      end(*here);
      continue;
    }
    area->fetching = true;
    workers_.run([this, area, end, wanted = job.wanted, download = downloader(job.cancelled)] {
      Result<void> result;
      for (const auto& one : wanted) {
        result = area->cache->bring(one, download);
        if (!result.ok()) break;
      }
      loop_->post([this, area, end, result] {
        area->fetching = false;
        end(result);
        fetch_next(area);
      });
    });
  }
}

// ---- overlapped exchange ----

void DaemonLoop::execute(FetchMerge& command) {
  const std::string& run_id = command.delivery.run_id();
  const std::uint64_t exchange = command.delivery.exchange();
  const v1::FragmentVersion& version = command.delivery.version();
  const auto done = [this, run_id, exchange, fragment = version.fragment(), number = version.version()](Result<void> result) {
    const auto area = area_of(run_id);
    const auto entry = result.ok() && area != nullptr ? area->cache->find(fragment, number) : nullptr;
    if (result.ok() && entry == nullptr) result = internal_error("the fetched version is not here");
    if (!result.ok()) {
      log(Note::Level::kWarning, "run " + run_id + ": " + to_string(result.error()));
      return feed(MergeFailed{run_id, exchange, fragment, told(result.error())});
    }
    area->delivered[{exchange, fragment}] = {entry->path, number};
    feed(MergeFetched{run_id, exchange, fragment});
  };
  const auto area = area_of(run_id);
  const auto opened = area == nullptr ? Result<void>(internal_error("the run is not known")) : open_cache(*area);
  if (!opened.ok()) return done(opened);
  fetch(area, {merge_name(run_id, exchange, version.fragment()), {version}, done});
}

void DaemonLoop::execute(MergeFragment& command) {
  const auto area = area_of(command.run_id);
  if (area == nullptr || area->trainer == nullptr) return;
  const auto found = area->delivered.find({command.exchange, command.fragment});
  if (found != area->delivered.end()) area->trainer->send(merge_line(command.exchange, command.fragment, found->second));
}

void DaemonLoop::execute(ForgetMerge& command) {
  abandon(merge_name(command.run_id, command.exchange, command.fragment));
  if (const auto area = area_of(command.run_id); area != nullptr) area->delivered.erase({command.exchange, command.fragment});
}

EmitPaths DaemonLoop::emit_paths(const RunArea& area, const std::string& task_id, const std::string& fragment) {
  const std::string directory = area.work_dir + kEmittedDirectory + task_id;
  return {directory + "/trained-" + fragment + ".safetensors", directory + "/base-" + fragment + ".safetensors"};
}

/// What tasks emitted that are not at hand any more goes; a task that comes again may find its files.
Result<void> DaemonLoop::prepare_emissions(RunArea& area, const std::string& task_id) {
  std::set<std::string> wanted;
  for (const auto& run : machine_->status().runs)
    for (const auto& task : run.tasks) wanted.insert(task.task_id);
  std::erase_if(area.emitted, [&](const auto& task) { return !wanted.contains(task.first) || task.first == task_id; });
  SKERRY_TRY(make_directories(area.work_dir + kEmittedDirectory + task_id));
  SKERRY_ASSIGN(const auto found, list_directory(area.work_dir + kEmittedDirectory));
  for (const auto& entry : found)
    if (!wanted.contains(entry.name)) SKERRY_TRY(remove_tree(area.work_dir + kEmittedDirectory + entry.name));
  return {};
}

}  // namespace skerry::client
