// What the store's sources share. Internal to server/store.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/sqlite/database.h"
#include "server/store/chain.h"
#include "server/store/store.h"

namespace skerry::server {

/// The newest link of how many is remembered as checked, so that opening need not start at the first.
inline constexpr std::uint64_t kCheckpointEvery = 4096;

struct Store::State {
  State(std::string home_path, ChainAnchor chain_anchor)
      : home(std::move(home_path)), anchor(std::move(chain_anchor)) {}

  std::string home;
  std::string epoch;
  ChainHead head;
  std::uint64_t checkpoint = 0;  ///< sequence of the last checkpoint
  ChainAnchor anchor;
  sqlite::Synchronous synchronous = sqlite::Synchronous::kFull;
};

/// "42 metrics" as JSON text and back; numbers that JSON lacks are kept.
std::string metrics_to_json(const std::vector<MetricValue>& metrics);
std::vector<MetricValue> metrics_from_json(std::string_view text);

std::string spooled_to_json(const std::vector<SpooledPayload>& spooled);
std::vector<SpooledPayload> spooled_from_json(std::string_view text);

/// Columns of a receipt in the order that read_receipt wants: all but the hash, which comes last.
inline constexpr std::string_view kReceiptColumns =
    "sequence, kind, run_id, subject, node, exchange, version, reason, time_ms, hash";
/// `hash` is raw, 32 bytes.
ReceiptRecord read_receipt(const sqlite::Statement& row);

/// Columns of a version in the order that read_version wants.
inline constexpr std::string_view kVersionColumns =
    "run_id, fragment, version, exchange, whole_id, whole_size, whole_bytes, step_id, step_size, step_bytes, "
    "step_encoding, "
    "state_name, state_size, state_bytes, counted_digest, chain, time_ms, kept";
VersionRecord read_version(const sqlite::Statement& row, bool with_bytes);

/// A value of the table meta; empty if there is none.
Result<std::string> read_meta(sqlite::Database& database, const std::string& key);
Result<void> write_meta(sqlite::Database& database, const std::string& key, const std::string& value);

/// Told of each row that is wrong; an error from it ends the check.
using OnDamage = std::function<Result<void>(Error)>;

/// Recomputes the chain after `from` up to its end, checks tasks and releases against its links, and returns its head.
Result<ChainHead> check_chain(sqlite::Database& database, ChainHead from, const OnDamage& damaged);

/// Checks every released version that is stored against its link, and the newest of each fragment for being there.
/// `all_bytes`: also that inline bytes have their content id, for all rather than the newest ones.
Result<void> check_versions(sqlite::Database& database, std::uint64_t from_sequence, bool all_bytes, const OnDamage& damaged);

/// Accepted updates of open exchanges: there, and as they were signed.
Result<void> check_accepted(sqlite::Database& database, const OnDamage& damaged);

}  // namespace skerry::server
