// What the coordinator's database holds, as plain values. docs/storage.md has the tables.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace skerry::server {

struct RunRecord {
  std::string run_id;
  std::string name;
  std::string strategy;
  std::string spec_hash;  ///< hex SHA-256 of spec_json
  std::string spec_json;
  std::string status;  ///< waiting, running, paused, completed, stopped, failed
  std::string status_reason;
  std::int64_t created_ms = 0;  ///< Unix time
  std::int64_t ended_ms = 0;    ///< 0: not yet
  std::uint64_t bytes_up = 0;
  std::uint64_t bytes_down = 0;
};

/// The life of an update; the numbers of skerry.v1.UpdateState.
enum class UpdateState : std::uint8_t { kUnknown = 0, kStored = 1, kAccepted = 2, kCounted = 3, kDiscarded = 4 };

/// One fragment's payload of an update that lies in the spool. Inline payloads are part of UpdateRecord::body.
struct SpooledPayload {
  std::string fragment;
  std::string content_id;
  std::uint64_t size = 0;
};

/// An update as it was accepted. It is what a reduction after a restart starts from.
struct UpdateRecord {
  std::string task_id;
  std::string run_id;
  std::string node;
  int kind = 1;  ///< skerry.v1.TaskKind
  std::uint64_t exchange = 0;
  double weight = 0;
  std::uint64_t examples = 0;
  std::string metrics_json;
  std::string body;       ///< the serialized UpdateBody as it was signed, inline payloads and all; empty once decided
  std::string signature;  ///< kept after the decision, with body_sha256: who shows the body again shows what was signed
  std::string body_sha256;  ///< hex; filled by the store
  std::vector<SpooledPayload> spooled;
};

/// What became of a task's update.
struct TaskRecord {
  std::string task_id;
  std::string run_id;
  std::string node;
  UpdateState state = UpdateState::kUnknown;
  std::uint64_t exchange = 0;
  std::uint64_t version = 0;  ///< COUNTED: the version that contains it
  std::string reason;         ///< DISCARDED
  std::string chain;          ///< hex SHA-256: the head of the receipt chain after its last receipt
};

/// One link of the chain: an acceptance, a decision, or a release (then `subject` is the fragment, `node` is empty and
/// `reason` the digest of what was released).
struct ReceiptRecord {
  std::uint64_t sequence = 0;  ///< from 1, without gaps
  std::string kind;            ///< "ACCEPTED", "COUNTED", "DISCARDED", "RELEASED"
  std::string run_id;
  std::string subject;  ///< the task's id, or the fragment's name
  std::string node;
  std::uint64_t exchange = 0;
  std::uint64_t version = 0;
  std::string reason;
  std::int64_t time_ms = 0;  ///< Unix time
  std::string hash;          ///< hex SHA-256(hash of the link before ‖ the fields above)
};

/// Bytes by content: in the row where they are small, else in cargo.
struct StoredBlob {
  std::string content_id;  ///< empty: there is none
  std::uint64_t size = 0;
  std::string bytes;  ///< of `size` if they are kept in the row, else empty
};

/// One fragment at one released version.
struct VersionRecord {
  std::string run_id;
  std::string fragment;
  std::uint64_t version = 0;
  std::uint64_t exchange = 0;  ///< the one that made it; 0 for the initial model
  StoredBlob whole;            ///< the fragment's safetensors file
  StoredBlob step;             ///< the encoded outer step; none for version 0 and for encoding f32
  std::string step_encoding;
  /// The outer optimizer's state after this version: the name of a state file of the cargo store, or the bytes
  /// themselves. Both empty: none. Only the newest two versions and the kept ones have it.
  std::string state_name;
  std::string state_bytes;
  std::uint64_t state_size = 0;
  std::vector<std::string> counted;  ///< task ids, in the order of summation; stored as a digest (counted_digest)
  std::string counted_digest;        ///< hex SHA-256 over `counted`; filled by the store
  std::string chain;                 ///< the chain's head at its release; filled by the store
  std::int64_t time_ms = 0;          ///< Unix time
  bool kept = false;                 ///< never pruned: every n-th, the best, what the operator marked
};

/// What kind of reason this is: numbers as '#' and what is quoted as '…', so that updates can be counted by reason without
/// one count for each.
std::string kind_of_reason(std::string_view reason);

struct MetricValue {
  std::string name;
  double value = 0;
};

/// One exchange or one evaluation.
struct MetricRecord {
  std::string run_id;
  std::string kind;      ///< "exchange" or "evaluation"
  std::string fragment;  ///< empty: the whole model
  std::uint64_t exchange = 0;
  std::uint64_t version = 0;
  std::int64_t time_ms = 0;
  std::uint32_t updates = 0;
  std::vector<MetricValue> metrics;  ///< not-a-number and infinities are kept as such
  std::string node;                  ///< one node's evaluation; empty: all together
};

/// Who did what: operators' actions, invitations, revocations, restores.
struct AuditRecord {
  std::int64_t time_ms = 0;
  std::string who;     ///< "operator/ada", "server"
  std::string action;  ///< "run.submit", "node.invite", …
  std::string subject;
  std::string detail;
};

struct TrafficRecord {
  std::string run_id;
  std::string node;
  std::uint64_t bytes_up = 0;
  std::uint64_t bytes_down = 0;
};

}  // namespace skerry::server
