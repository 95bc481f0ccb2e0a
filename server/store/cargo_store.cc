#include "server/store/cargo_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <map>
#include <mutex>
#include <utility>

#include "common/crypto/content_id.h"
#include "server/store/reaper.h"
#include "server/store/upload.h"

namespace skerry::server {
namespace {

constexpr unsigned kSealed = 0440;
constexpr std::uint64_t kVerifiedForSending = std::uint64_t{256} << 20;
constexpr std::size_t kContentIdBytes = 67;

/// An upload's place in the spool: its task (or, for an operator's, "+" and who), then the content id.
using UploadKey = std::pair<std::string, std::string>;

bool plain_name(std::string_view text) {
  return !text.empty() && text.size() <= 200 && text != "." && text != ".." &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
                  c == '-';
         });
}

std::string owner_of(const UploadRequest& request) {
  if (!request.task.empty()) return request.task;
  std::string owner = "+" + request.node;
  std::replace(owner.begin(), owner.end(), '/', '+');
  return owner;
}

std::string run_of(const std::string& task) { return task.substr(0, task.rfind('.')); }

Result<void> check_request(const UploadRequest& request) {
  SKERRY_TRY(check_content_id(request.content_id));
  if (request.size == 0) return invalid_argument("an upload must have at least 1 byte");
  if (!request.task.empty() && !plain_name(request.task)) return invalid_argument("an upload's task has no valid name");
  std::string node = request.node;
  std::replace(node.begin(), node.end(), '/', '-');
  if (!plain_name(node)) return invalid_argument("an upload's node has no valid name");
  return {};
}

Result<void> seal(const std::string& path, bool synced) {
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kRead));
  SKERRY_TRY(file.set_permissions(kSealed));
  if (!synced) SKERRY_TRY(file.fsync());
  return {};
}

Error quota_error(const std::string& what, std::uint64_t used, std::uint64_t asked, std::uint64_t limit) {
  return resource_exhausted(what + ": " + std::to_string(used) + " in use and " + std::to_string(asked) +
                            " asked for, " + std::to_string(limit) +
                            " allowed; try again when earlier updates are counted");
}

std::string_view without_suffix(std::string_view name, std::string_view suffix) {
  return name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : std::string_view();
}

}  // namespace

struct CargoStore::State {
  explicit State(const std::string& home_path)
      : home(home_path),
        cargo(join_path(home, "cargo")),
        states(join_path(cargo, "state")),
        scratch(join_path(cargo, "scratch")),
        spool(join_path(home, "spool")),
        reaper(scratch) {}

  const std::string home, cargo, states, scratch, spool;
  mutable Reaper reaper;
  CargoLimits limits;
  std::atomic<std::uint64_t> scratch_serial{0};

  mutable std::mutex mutex;
  std::map<UploadKey, std::shared_ptr<Upload>> uploads;
  std::map<std::string, std::uint64_t> node_bytes, run_bytes;
  std::set<std::string> fresh_cargo, fresh_states;  // put by this process and not yet seen live
  std::set<std::string> trusted;                    // paths whose bytes this process wrote or compared with their id
  std::mutex verifying;                             // taken before `mutex`: one file at a time, which has all cores

  std::string sealed_path(const UploadRequest& request) const {
    return join_path(spool, owner_of(request) + "." + request.content_id);
  }

  // All of these with `mutex` held.

  void charge(const UploadRequest& request) {
    node_bytes[request.node] += request.size;
    run_bytes[run_of(request.task)] += request.size;
  }

  void refund(const UploadRequest& request) {
    auto give_back = [&](std::map<std::string, std::uint64_t>& bytes, const std::string& name) {
      auto entry = bytes.find(name);
      if (entry == bytes.end()) return;
      entry->second -= std::min(entry->second, request.size);
      if (entry->second == 0) bytes.erase(entry);
    };
    give_back(node_bytes, request.node);
    give_back(run_bytes, run_of(request.task));
  }

  static std::uint64_t look_up(const std::map<std::string, std::uint64_t>& bytes, const std::string& name) {
    auto entry = bytes.find(name);
    return entry == bytes.end() ? 0 : entry->second;
  }

  std::uint64_t partial_uploads_of(const std::string& node) const {
    std::uint64_t count = 0;
    for (const auto& entry : uploads) {
      if (entry.second->request.node != node) continue;
      std::lock_guard lock(entry.second->mutex);
      if (!entry.second->complete) ++count;
    }
    return count;
  }

  Result<void> check_quotas(const UploadRequest& request) const {
    if (std::uint64_t used = look_up(node_bytes, request.node); used + request.size > limits.bytes_per_node) {
      return quota_error("node " + request.node + " has no room for this upload (bytes)", used, request.size,
                         limits.bytes_per_node);
    }
    if (std::uint64_t used = look_up(run_bytes, run_of(request.task)); used + request.size > limits.bytes_per_run) {
      return quota_error("the run has no room for this upload (bytes)", used, request.size, limits.bytes_per_run);
    }
    if (std::uint64_t used = partial_uploads_of(request.node); used >= limits.partial_uploads_per_node) {
      return quota_error("node " + request.node + " has too many unfinished uploads", used, 1,
                         limits.partial_uploads_per_node);
    }
    SKERRY_ASSIGN(std::uint64_t free_bytes, free_disk_bytes(spool));
    if (free_bytes < limits.minimum_free_bytes || free_bytes - limits.minimum_free_bytes < request.size) {
      return resource_exhausted("the coordinator's disk has " + std::to_string(free_bytes) + " bytes free and keeps " +
                                std::to_string(limits.minimum_free_bytes) + " of them; an upload of " +
                                std::to_string(request.size) + " has no room now, try again later");
    }
    return {};
  }

  void forget(const std::shared_ptr<Upload>& upload) {
    auto entry = uploads.find({owner_of(upload->request), upload->request.content_id});
    if (entry == uploads.end() || entry->second != upload) return;
    refund(upload->request);
    uploads.erase(entry);
  }

  /// The upload of a request, known or new; not prepared yet.
  Result<std::shared_ptr<Upload>> find_or_make(const UploadRequest& request) {
    std::lock_guard lock(mutex);
    auto entry = uploads.find({owner_of(request), request.content_id});
    if (entry != uploads.end()) {
      const UploadRequest& known = entry->second->request;
      if (known.size != request.size) {
        return invalid_argument("the upload of " + request.content_id + " was begun with " +
                                std::to_string(known.size) + " bytes, now it says " + std::to_string(request.size));
      }
      return entry->second;
    }
    SKERRY_TRY(check_quotas(request));
    auto upload = std::make_shared<Upload>();
    upload->request = request;
    upload->sealed_path = sealed_path(request);
    charge(request);
    uploads.emplace(UploadKey{owner_of(request), request.content_id}, upload);
    return upload;
  }

  Result<std::shared_ptr<Upload>> ready_upload(const UploadRequest& request) {
    SKERRY_TRY(check_request(request));
    SKERRY_ASSIGN(auto upload, find_or_make(request));
    if (auto prepared = prepare_upload(*upload); !prepared.ok()) {
      // A file that cannot be made or read must not hold its quota for ever.
      drop(upload);
      return prepared.error();
    }
    return upload;
  }

  /// Ends an upload that is not in `uploads` any more; what cannot be removed now is found by the next collection.
  void end(Upload& upload) {
    end_upload(upload, [this](const std::string& path) { (void)reaper.remove(path).ok(); });
    std::lock_guard lock(mutex);
    trusted.erase(upload.sealed_path);
  }

  void trust(const std::string& path) {
    std::lock_guard lock(mutex);
    trusted.insert(path);
  }

  void drop(const std::shared_ptr<Upload>& upload) {
    {
      std::lock_guard lock(mutex);
      forget(upload);
    }
    end(*upload);
  }

  /// What an earlier process left: partial uploads with their description, and sealed ones.
  Result<void> take_up_spool() {
    SKERRY_ASSIGN(auto entries, list_directory(spool));
    for (const DirectoryEntry& entry : entries) {
      const std::string path = join_path(spool, entry.name);
      std::string base(without_suffix(entry.name, ".info"));
      if (base.empty()) {
        std::string part_of(without_suffix(entry.name, ".part"));
        bool orphan = !part_of.empty() && !path_exists(join_path(spool, part_of + ".info"));
        if (orphan) SKERRY_TRY(remove_file(path));
        continue;
      }
      auto request = read_upload_info(path);
      auto upload = std::make_shared<Upload>();
      if (request.ok()) {
        upload->request = *request;
        upload->sealed_path = sealed_path(*request);
      }
      // A power cut may have taken the description: its bytes are then worth nothing, unless they are sealed already.
      const bool usable = request.ok() && upload->info_path() == path &&
                          (path_exists(upload->part_path()) || path_exists(upload->sealed_path));
      if (!usable) {
        SKERRY_TRY(remove_file(path));
        SKERRY_TRY(remove_file(join_path(spool, base + ".part")));
        continue;
      }
      auto sealed_size = file_size(upload->sealed_path);
      upload->complete = sealed_size.ok() && *sealed_size == request->size;
      charge(*request);
      uploads.emplace(UploadKey{owner_of(*request), request->content_id}, upload);
    }
    return {};
  }

  Result<UploadStatus> complete(CargoStore& store, const std::shared_ptr<Upload>& upload);
};

CargoStore::CargoStore(std::unique_ptr<State> state) : state_(std::move(state)) {}
CargoStore::~CargoStore() = default;

Result<std::unique_ptr<CargoStore>> CargoStore::open(const std::string& home, const CargoLimits& limits) {
  auto state = std::make_unique<State>(home);
  state->limits = limits;
  for (const std::string& directory : {state->cargo, state->states, state->scratch, state->spool}) {
    SKERRY_TRY(make_directories(directory));
  }
  SKERRY_ASSIGN(auto left_over, list_directory(state->scratch));
  for (const DirectoryEntry& entry : left_over) SKERRY_TRY(remove_tree(join_path(state->scratch, entry.name)));
  SKERRY_TRY(state->take_up_spool());
  return std::unique_ptr<CargoStore>(new CargoStore(std::move(state)));
}

// ---- cargo ----

std::string CargoStore::cargo_path(const std::string& content_id) const {
  return join_path(join_path(state_->cargo, content_id.substr(3, 2)), content_id);
}

Result<std::string> CargoStore::put_bytes(std::span<const std::byte> bytes) {
  std::string id = content_id(bytes);
  if (auto present = cargo_size(id); present.ok() && *present == bytes.size()) {
    std::lock_guard lock(state_->mutex);
    state_->fresh_cargo.insert(id);
    // Looked at again with the lock held: a collection may have removed it before it knew that the file is wanted.
    if (path_exists(cargo_path(id))) return id;
  }
  const std::string path = scratch_path();
  auto write = [&]() -> Result<void> {
    SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreate));
    SKERRY_TRY(file.pwrite(bytes, 0));
    SKERRY_TRY(file.fsync());
    return adopt_file(path, id, true);
  };
  if (auto written = write(); !written.ok()) {
    (void)remove_file(path).ok();
    return written.error();
  }
  return id;
}

Result<void> CargoStore::adopt_file(const std::string& path, const std::string& content_id, bool synced) {
  SKERRY_TRY(check_content_id(content_id));
  SKERRY_TRY(seal(path, synced));
  {
    std::lock_guard lock(state_->mutex);
    state_->fresh_cargo.insert(content_id);
  }
  const std::string target = cargo_path(content_id);
  const std::string directory = parent_directory(target);
  if (!path_exists(directory)) {
    SKERRY_TRY(make_directories(directory));
    SKERRY_TRY(fsync_directory(state_->cargo));
  }
  SKERRY_TRY(rename_durable(path, target));
  state_->trust(target);
  return {};
}

Result<CargoFile> CargoStore::open_cargo(const std::string& content_id) const {
  SKERRY_TRY(check_content_id(content_id));
  auto file = File::open(cargo_path(content_id), OpenMode::kRead);
  if (!file.ok()) {
    if (file.error().code == Code::kNotFound) return not_found("there is no cargo " + content_id);
    return file.error();
  }
  SKERRY_ASSIGN(std::uint64_t size, file->size());
  return CargoFile{std::move(file).value(), size};
}

Result<MappedFile> CargoStore::map_cargo(const std::string& content_id) const {
  SKERRY_ASSIGN(const std::uint64_t size, cargo_size(content_id));
  if (size <= kVerifiedForSending) SKERRY_TRY(verify_once(cargo_path(content_id)));
  return MappedFile::open(cargo_path(content_id));
}

Result<std::uint64_t> CargoStore::cargo_size(const std::string& content_id) const {
  SKERRY_TRY(check_content_id(content_id));
  return file_size(cargo_path(content_id));
}

namespace {

Result<void> compare_with_id(const std::string& path, std::string_view content_id) {
  SKERRY_ASSIGN(MappedFile file, MappedFile::open(path));
  file.expect_sequential();
  const std::string found = skerry::content_id(file.bytes(), 0);
  SKERRY_TRY(file.check());
  if (found == content_id) return {};
  return Error{Code::kDataLoss, path + " is damaged: its bytes have the content id " + found + "; restore it from a backup", true};
}

}  // namespace

Result<void> CargoStore::verify_cargo(const std::string& content_id) const {
  SKERRY_TRY(check_content_id(content_id));
  return compare_with_id(cargo_path(content_id), content_id);
}

Result<void> CargoStore::verify_once(const std::string& path) const {
  if (path.size() < kContentIdBytes) return {};
  const std::string_view id = std::string_view(path).substr(path.size() - kContentIdBytes);
  if (!check_content_id(id).ok()) return {};
  std::lock_guard one_at_a_time(state_->verifying);
  {
    std::lock_guard lock(state_->mutex);
    if (state_->trusted.count(path) != 0) return {};
  }
  SKERRY_TRY(compare_with_id(path, id));
  state_->trust(path);
  return {};
}

Result<void> CargoStore::remove_cargo(const std::string& content_id) {
  SKERRY_TRY(check_content_id(content_id));
  std::lock_guard lock(state_->mutex);
  state_->fresh_cargo.erase(content_id);
  state_->trusted.erase(cargo_path(content_id));
  return state_->reaper.remove(cargo_path(content_id));
}

// ---- states ----

std::string CargoStore::state_path(const std::string& name) const { return join_path(state_->states, name); }

Result<void> CargoStore::adopt_state(const std::string& path, const std::string& name, bool synced) {
  if (!plain_name(name)) return invalid_argument("'" + name + "' is not a name for an optimizer's state");
  SKERRY_TRY(seal(path, synced));
  {
    std::lock_guard lock(state_->mutex);
    state_->fresh_states.insert(name);
  }
  return rename_durable(path, state_path(name));
}

Result<void> CargoStore::remove_state(const std::string& name) {
  if (!plain_name(name)) return invalid_argument("'" + name + "' is not a name for an optimizer's state");
  std::lock_guard lock(state_->mutex);
  state_->fresh_states.erase(name);
  return state_->reaper.remove(state_path(name));
}

std::string CargoStore::scratch_path() {
  return join_path(state_->scratch,
                   std::to_string(::getpid()) + "-" + std::to_string(state_->scratch_serial.fetch_add(1)));
}

// ---- uploads ----

Result<UploadStatus> CargoStore::begin_upload(const UploadRequest& request) {
  if (request.task.empty() && check_content_id(request.content_id).ok()) {
    auto size = cargo_size(request.content_id);
    if (size.ok() && *size == request.size) return UploadStatus{true, {}};
  }
  SKERRY_ASSIGN(auto upload, state_->ready_upload(request));
  return state_->complete(*this, upload);  // all chunks may be there from before a restart
}

Result<UploadStatus> CargoStore::upload_status(const UploadRequest& request) {
  SKERRY_TRY(check_request(request));
  {
    std::lock_guard lock(state_->mutex);
    const bool known = state_->uploads.count({owner_of(request), request.content_id}) != 0;
    if (!known && !request.task.empty()) return UploadStatus{false, {{0, request.size - 1}}};
    if (!known) {
      auto size = cargo_size(request.content_id);
      const bool there = size.ok() && *size == request.size;
      return there ? UploadStatus{true, {}} : UploadStatus{false, {{0, request.size - 1}}};
    }
  }
  return begin_upload(request);
}

Result<ChunkWriter> CargoStore::write_upload(const UploadRequest& request, std::uint64_t offset) {
  if (offset % kChunkBytes != 0 || offset >= request.size) {
    return invalid_argument("an upload's offset must be a multiple of " + std::to_string(kChunkBytes) +
                            " below its size " + std::to_string(request.size) + ", not " + std::to_string(offset));
  }
  SKERRY_ASSIGN(auto upload, state_->ready_upload(request));
  auto completion = [this](const std::shared_ptr<Upload>& whole) { return state_->complete(*this, whole); };
  return ChunkWriter(std::make_unique<ChunkWriter::State>(std::move(upload), completion, offset));
}

/// Once all chunks are there: compares the root, syncs and seals. One thread does it; others wait for its result.
Result<UploadStatus> CargoStore::State::complete(CargoStore& store, const std::shared_ptr<Upload>& upload) {
  std::lock_guard work(upload->work_mutex);
  std::vector<ChunkHash> leaves;
  std::shared_ptr<File> part;
  {
    std::lock_guard lock(upload->mutex);
    if (upload->ended) {
      return Error{Code::kAborted, "the upload of " + upload->request.content_id + " was ended: its task is decided",
                   true};
    }
    if (upload->ready && upload->present_count == upload->chunks() && !upload->complete) {
      leaves = upload->leaves;
      part = upload->part;
    }
  }
  if (!part) return status_of(*upload);

  auto finish = [&]() -> Result<void> {
    SKERRY_ASSIGN(std::string root, content_id_of_chunks(upload->request.size, leaves));
    if (root != upload->request.content_id) {
      return data_loss("the bytes uploaded as " + upload->request.content_id + " are those of " + root +
                       "; the upload was dropped, send it again from the start");
    }
    SKERRY_TRY(part->set_permissions(kSealed));
    SKERRY_TRY(part->fsync());
    // An operator's upload becomes cargo at once; a task's stays in the spool, with its description, until it is
    // decided.
    if (upload->request.task.empty()) return store.adopt_file(upload->part_path(), upload->request.content_id, true);
    return rename_durable(upload->part_path(), upload->sealed_path);
  };
  auto finished = finish();
  if (!finished.ok()) {
    // Also after a failed sync: the kernel may have dropped the pages it could not write, so they have to be sent
    // again.
    drop(upload);
    return finished.error();
  }
  trust(upload->sealed_path);
  bool ended = false;
  {
    std::lock_guard lock(upload->mutex);
    upload->complete = true;
    upload->part.reset();
    upload->info.reset();
    ended = upload->ended;
  }
  if (ended || upload->request.task.empty()) drop(upload);  // ended meanwhile: what was renamed must go as well
  if (ended)
    return Error{Code::kAborted, "the upload of " + upload->request.content_id + " was ended: its task is decided",
                 true};
  return UploadStatus{true, {}};
}

Result<std::string> CargoStore::spool_file(const std::string& task, const std::string& content_id) const {
  UploadRequest request{task, "", content_id, 0};
  SKERRY_TRY(check_content_id(content_id));
  if (!plain_name(task)) return invalid_argument("an upload's task has no valid name");
  {
    std::lock_guard lock(state_->mutex);
    auto entry = state_->uploads.find({task, content_id});
    if (entry != state_->uploads.end()) {
      std::lock_guard upload_lock(entry->second->mutex);
      if (entry->second->complete) return entry->second->sealed_path;
    }
  }
  // A sealed file whose description was lost in a power cut is still good: the database vouches for it.
  std::string path = state_->sealed_path(request);
  if (path_exists(path)) return path;
  return not_found("the update of task " + task + " is not in the spool: its upload of " + content_id +
                   " is not complete");
}

void CargoStore::end_task(const std::string& task) {
  if (!plain_name(task)) return;
  std::vector<std::shared_ptr<Upload>> ended;
  {
    std::lock_guard lock(state_->mutex);
    for (auto entry = state_->uploads.lower_bound({task, ""});
         entry != state_->uploads.end() && entry->first.first == task;) {
      ended.push_back(entry->second);
      state_->refund(entry->second->request);
      entry = state_->uploads.erase(entry);
    }
  }
  for (const auto& upload : ended) state_->end(*upload);
}

std::size_t CargoStore::end_idle_uploads(std::int64_t idle_seconds) {
  std::vector<std::shared_ptr<Upload>> idle;
  {
    std::lock_guard lock(state_->mutex);
    for (const auto& entry : state_->uploads) {
      struct stat info {};
      const bool partial = ::stat(entry.second->part_path().c_str(), &info) == 0;
      if (partial && std::time(nullptr) - info.st_mtime >= idle_seconds) idle.push_back(entry.second);
    }
  }
  for (const auto& upload : idle) state_->drop(upload);
  return idle.size();
}

std::vector<std::string> CargoStore::spool_tasks() const {
  std::set<std::string> tasks;
  std::lock_guard lock(state_->mutex);
  for (const auto& entry : state_->uploads) tasks.insert(entry.second->request.task);
  return {tasks.begin(), tasks.end()};
}

std::uint64_t CargoStore::spool_bytes_of(const std::string& node) const {
  std::lock_guard lock(state_->mutex);
  return State::look_up(state_->node_bytes, node);
}

// ---- the whole ----

namespace {

/// Removes the files of a directory that are neither live nor fresh.
Result<void> collect_directory(const std::string& directory, const std::set<std::string>& live,
                               const std::set<std::string>& fresh, CollectReport& report) {
  SKERRY_ASSIGN(auto entries, list_directory(directory));
  for (const DirectoryEntry& entry : entries) {
    if (entry.is_directory || live.count(entry.name) != 0 || fresh.count(entry.name) != 0) continue;
    SKERRY_TRY(remove_file(join_path(directory, entry.name)));
    ++report.files;
    report.bytes += entry.size;
  }
  return {};
}

}  // namespace

Result<CollectReport> CargoStore::collect(const LiveFiles& live) {
  CollectReport report;
  std::vector<std::shared_ptr<Upload>> ended;
  {
    std::lock_guard lock(state_->mutex);  // nothing is put, and so nothing becomes fresh, while we remove
    for (const std::string& id : live.cargo) state_->fresh_cargo.erase(id);
    for (const std::string& name : live.states) state_->fresh_states.erase(name);
    SKERRY_ASSIGN(auto directories, list_directory(state_->cargo));
    for (const DirectoryEntry& entry : directories) {
      if (!entry.is_directory || entry.name.size() != 2) continue;
      SKERRY_TRY(collect_directory(join_path(state_->cargo, entry.name), live.cargo, state_->fresh_cargo, report));
    }
    SKERRY_TRY(collect_directory(state_->states, live.states, state_->fresh_states, report));
    for (const auto& entry : state_->uploads) {
      const std::string& task = entry.second->request.task;
      if (live.ended_tasks.count(task) != 0) ended.push_back(entry.second);
    }
  }
  for (const auto& upload : ended) {
    report.files += 1;
    report.bytes += upload->request.size;
    state_->drop(upload);
  }
  // Sealed updates that no upload owns, because their description was lost in a power cut or their task has just ended.
  SKERRY_ASSIGN(auto entries, list_directory(state_->spool));
  for (const DirectoryEntry& entry : entries) {
    std::size_t dot = entry.name.rfind('.');
    if (dot == std::string::npos || !check_content_id(std::string_view(entry.name).substr(dot + 1)).ok()) continue;
    const std::string task = entry.name.substr(0, dot);
    std::lock_guard lock(state_->mutex);
    if (live.tasks.count(task) != 0 || state_->uploads.count({task, entry.name.substr(dot + 1)}) != 0) continue;
    SKERRY_TRY(remove_file(join_path(state_->spool, entry.name)));
    ++report.files;
    report.bytes += entry.size;
  }
  return report;
}

Result<std::uint64_t> CargoStore::free_bytes() const { return free_disk_bytes(state_->home); }

const std::string& CargoStore::home() const { return state_->home; }

}  // namespace skerry::server
