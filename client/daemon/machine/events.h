// What the daemon's machine hears and what it commands.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "common/base/result.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::client {

/// Milliseconds of a monotonic clock; only differences mean anything.
using Instant = std::uint64_t;

/// Bytes of an update that are too large to ride in the message and go ahead of it as cargo.
struct PendingUpload {
  std::string content_id;
  std::uint64_t size = 0;
};

/// An update as the outbox holds it: everything that is needed to offer it again after a crash.
struct StoredUpdate {
  v1::Task task;                       ///< for its ids and ticket
  v1::SignedUpdate message;
  std::vector<PendingUpload> uploads;  ///< empty where every blob is inline
};

/// What a trainer says of a finished task.
struct TrainerResult {
  std::uint64_t steps = 0;
  std::uint64_t examples = 0;
  std::uint64_t tokens = 0;
  double seconds = 0;
  std::map<std::string, double> metrics;
};

// ---- events ----

/// The program begins (first event, once): reconnects, re-offers what the outbox held.
struct Started {};
/// The transport's stream is open; nothing was said on it yet.
struct Connected {};
/// The stream ended or could not be opened. `error.message` already holds the explanation asked over HTTPS, if any.
struct Disconnected {
  Error error;
};
/// A message of the coordinator.
struct Received {
  v1::ToNode message;
};
/// The holder's verdict on an announced run, the answer to JudgeRun.
struct RunJudged {
  v1::RunAnswer answer;
  bool one_by_one = false;  ///< no train task begins while the fate of the run's latest update is open
  bool overlapped = false;  ///< train tasks go on from one another, and take in versions while they are under way
};
/// The run's trainer answered `open`, the answer to StartTrainer.
struct TrainerReady {
  std::string run_id;
};
struct TrainerProgress {
  std::string run_id;
  std::string task_id;
  std::uint64_t step = 0;
  std::uint64_t of = 0;
  double loss = 0;
};
struct TrainerDone {
  std::string run_id;
  std::string task_id;
  TrainerResult result;
};
/// The trainer refused or failed a task but lives on.
struct TrainerError {
  std::string run_id;
  std::string task_id;
  Error error;
};
/// The answer to CancelTask.
struct TrainerCancelled {
  std::string run_id;
  std::string task_id;
};
/// The running task has merged a delivered fragment.
struct TrainerMerged {
  std::string run_id;
  std::string task_id;
  std::uint64_t exchange = 0;
  std::string fragment;
};
/// The trainer process is gone (crash, kill, could not start, or after StopTrainer).
struct TrainerExited {
  std::string run_id;
  Error error;
};
/// Every fragment that the task reads lies in the run's cache, the answer to Fetch.
struct FetchDone {
  std::string task_id;
};
struct FetchFailed {
  std::string task_id;
  Error error;
};
/// A delivered version lies in the run's cache, the answer to FetchMerge.
struct MergeFetched {
  std::string run_id;
  std::uint64_t exchange = 0;
  std::string fragment;
};
struct MergeFailed {
  std::string run_id;
  std::uint64_t exchange = 0;
  std::string fragment;
  Error error;
};
/// The update is computed, signed and durable, the answer to StoreUpdate.
struct OutboxStored {
  StoredUpdate update;
};
/// The update could not be made (not finite, too large, the holder's floors, disk full).
struct StoreFailed {
  std::string task_id;
  Error error;
};
struct UploadDone {
  std::string task_id;
};
struct UploadFailed {
  std::string task_id;
  Error error;
};
/// Time passed; send one when WakeAt's instant has come (earlier or later is harmless).
struct Tick {};
/// The holder pauses: no new task begins, and with `now` the running ones are cancelled.
struct Pause {
  bool now = false;
};
struct Resume {};
/// The holder leaves the federation: says farewell, drops every run; ends with Exit.
struct Leave {
  std::string reason;
};
/// The program ends (SIGTERM): says farewell, stops the trainers, keeps the outbox; ends with Exit.
struct Shutdown {};
/// Whether the holder's hours and daily limits allow work at this time. Initially they do.
struct Availability {
  bool open = true;
  std::string reason;  ///< why not
};
/// The policy or the data-set catalogue changed: every known run is judged again, the session's Hello is repeated.
struct PolicyChanged {
  std::uint32_t max_trainers = 1;
  std::uint64_t max_task_ms = 0;  ///< 0: no limit
  std::vector<v1::DataSetSummary> data_sets;
  std::uint32_t threads = 0;
  std::uint64_t memory_bytes = 0;
};
/// The certificate was renewed: a session that was refused is worth another attempt at once.
struct IdentityRenewed {};

using Event = std::variant<Started, Connected, Disconnected, Received, RunJudged, TrainerReady, TrainerProgress, TrainerDone,
                           TrainerError, TrainerCancelled, TrainerMerged, TrainerExited, FetchDone, FetchFailed, MergeFetched,
                           MergeFailed, OutboxStored, StoreFailed, UploadDone, UploadFailed, Tick, Pause, Resume, Leave, Shutdown, Availability, PolicyChanged,
                           IdentityRenewed>;

// ---- commands, in the order in which they must be carried out ----

/// Open a session after `delay_ms`; answered by Connected or Disconnected. A later ConnectAfter replaces an earlier one.
struct ConnectAfter {
  std::uint64_t delay_ms = 0;
};
/// Close the open session; no Disconnected is expected for it.
struct CloseSession {
  std::string reason;
};
struct Send {
  v1::FromNode message;
};
/// Compare the run with policy and catalogue; answered by RunJudged.
struct JudgeRun {
  v1::RunAnnouncement run;
};
/// Answered by TrainerReady or TrainerExited.
struct StartTrainer {
  std::string run_id;
};
/// End the run's trainer (close, then kill); answered by TrainerExited.
struct StopTrainer {
  std::string run_id;
  std::string reason;
};
/// Hand the task to the run's ready trainer; answered by TrainerDone, TrainerError or TrainerExited.
struct TrainerRequest {
  v1::Task task;
};
/// Stop the task at its next step; answered by TrainerCancelled (or TrainerDone where it came too late).
struct CancelTask {
  std::string run_id;
  std::string task_id;
};
/// Bring the fragments that `task.read` names into the run's cache; answered by FetchDone or FetchFailed.
struct Fetch {
  v1::Task task;
};
/// Bring a delivered version into the run's cache and keep it until ForgetMerge; answered by MergeFetched or MergeFailed.
struct FetchMerge {
  v1::Delivery delivery;
};
/// Tell the trainer of the running task that this version is here. Repeated to a trainer that was started again.
struct MergeFragment {
  std::string run_id;
  std::uint64_t exchange = 0;
  std::string fragment;
};
/// No task wants the delivered version any more, or it was never fetched.
struct ForgetMerge {
  std::string run_id;
  std::uint64_t exchange = 0;
  std::string fragment;
};
/// Give up a Fetch or Upload that is under way; no answer is expected.
struct Abandon {
  std::string task_id;
};
/// Compute, sign and store the update durably together with its egress row; answered by OutboxStored or StoreFailed. One
/// at a time for each run, in the order in which their tasks ended.
struct StoreUpdate {
  v1::Task task;
  TrainerResult result;
};
/// Send the update's cargo (only the missing parts); answered by UploadDone or UploadFailed.
struct Upload {
  StoredUpdate update;
};
/// The update's fate is final: it may leave the outbox.
struct ForgetUpdate {
  std::string run_id;
  std::string task_id;
  v1::TaskKind kind = v1::TASK_KIND_UNSPECIFIED;
  v1::UpdateState state = v1::UPDATE_STATE_UNSPECIFIED;
  std::string reason;
};
/// The run is over for this node: remove its trainer's state and cache.
struct DropRun {
  std::string run_id;
};
/// Send Tick at this instant. Replaces an earlier WakeAt.
struct WakeAt {
  Instant at = 0;
};
/// For the holder's log.
struct Note {
  enum class Level { kInfo, kWarning, kError } level = Level::kInfo;
  std::string text;
};
/// The program ends, after what was commanded before.
struct Exit {};

using Command = std::variant<ConnectAfter, CloseSession, Send, JudgeRun, StartTrainer, StopTrainer, TrainerRequest, CancelTask,
                             Fetch, FetchMerge, MergeFragment, ForgetMerge, Abandon, StoreUpdate, Upload, ForgetUpdate, DropRun, WakeAt, Note, Exit>;

}  // namespace skerry::client
