#include "server/store/store.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "common/base/encoding_text.h"
#include "server/store/schema.h"
#include "server/store/store_internal.h"

namespace skerry::server {
namespace {

const std::string kIfRestored =
    "; if this home was restored from a backup, start once with --restored, else restore a newer backup";

std::string database_path(const std::string& home) { return join_path(home, "skerry.db"); }

std::uint64_t to_number(const std::string& text) {
  std::uint64_t number = 0;
  (void)std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

/// A new epoch after `previous` ("" at first): a serial, and something random, because two restores of one backup must not
/// have the same. The serial of a restore is above those that were used since the backup was made: the time in seconds.
std::string next_epoch(const std::string& previous, std::int64_t now_ms, Random& random) {
  std::uint64_t serial = to_number(previous.substr(0, previous.find('-'))) + 1;
  if (!previous.empty()) serial = std::max(serial, static_cast<std::uint64_t>(now_ms / 1000));
  return std::to_string(serial) + "-" + random_hex(random, 4);
}

/// Compares what is in the database with what was acknowledged last.
Result<void> check_against_anchor(sqlite::Database& database, const ChainHead& head, const ChainHead& acknowledged) {
  if (acknowledged.sequence > head.sequence) {
    return data_loss("skerry.db ends at receipt " + std::to_string(head.sequence) + ", but receipt " +
                     std::to_string(acknowledged.sequence) + " was acknowledged: the newest rows are lost" + kIfRestored);
  }
  if (acknowledged.sequence == 0) return {};
  SKERRY_ASSIGN(auto row, database.query("SELECT hash FROM receipts WHERE sequence = ?", acknowledged.sequence));
  SKERRY_ASSIGN(bool found, row.next());
  if (!found || row.blob_view(0) != acknowledged.hash) {
    return data_loss("receipt " + std::to_string(acknowledged.sequence) +
                     " in skerry.db is not the one that was acknowledged" + kIfRestored);
  }
  return {};
}

}  // namespace

Store::Store(sqlite::Database database, std::unique_ptr<State> state)
    : StoreReader(std::move(database)), state_(std::move(state)) {}
Store::Store(Store&&) noexcept = default;
Store& Store::operator=(Store&&) noexcept = default;
Store::~Store() = default;

Result<Store> Store::open(const std::string& home, Random& random, const StoreOptions& options) {
  SKERRY_TRY(make_directories(home));
  const bool fresh = !path_exists(database_path(home));
  sqlite::OpenOptions database_options;
  database_options.synchronous = options.synchronous;
  database_options.accept_lost_commits = options.restored;
  auto opened = sqlite::Database::open(database_path(home), database_options);
  if (!opened.ok()) {
    Error error = std::move(opened).error();
    if (error.code == Code::kDataLoss) error.message += kIfRestored;
    return error;
  }
  sqlite::Database database = *std::move(opened);
  SKERRY_TRY(database.migrate(kMigrations));
  SKERRY_ASSIGN(std::string epoch, read_meta(database, "epoch"));
  // A process that ended before its first commit leaves a database without an epoch: that is as good as a new one.
  SKERRY_ASSIGN(ChainAnchor anchor, ChainAnchor::open(home, fresh || epoch.empty() || options.restored));

  ChainHead from;
  SKERRY_ASSIGN(std::string checkpoint, read_meta(database, "checkpoint"));
  if (!checkpoint.empty()) {
    from.sequence = to_number(checkpoint);
    SKERRY_ASSIGN(from.hash, from_hex(checkpoint.substr(checkpoint.find(' ') + 1)));
  }
  const std::uint64_t checkpoint_sequence = from.sequence;
  const OnDamage refuse = [](Error error) -> Result<void> { return error; };
  SKERRY_ASSIGN(ChainHead head, check_chain(database, from, refuse));
  SKERRY_TRY(check_versions(database, checkpoint_sequence, false, refuse));
  SKERRY_TRY(check_accepted(database, refuse));

  if (epoch.empty() && !options.restored) {
    SKERRY_ASSIGN(ChainHead acknowledged, anchor.read());
    SKERRY_TRY(check_against_anchor(database, head, acknowledged));
  }
  if (options.restored || epoch.empty()) {
    const std::string previous = epoch;
    epoch = next_epoch(previous, options.now_ms, random);
    SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database));
    SKERRY_TRY(write_meta(database, "epoch", epoch));
    SKERRY_TRY(database.run("INSERT INTO audit (time_ms, who, action, subject, detail) VALUES (?, 'server', ?, ?, ?)",
                            options.now_ms, previous.empty() ? "store.create" : "store.restore", epoch,
                            previous.empty() ? "" : "the epoch before was " + previous));
    SKERRY_TRY(transaction.commit());
    SKERRY_TRY(anchor.reset(head));
  } else if (options.synchronous == sqlite::Synchronous::kFull) {
    SKERRY_ASSIGN(ChainHead acknowledged, anchor.read());
    SKERRY_TRY(check_against_anchor(database, head, acknowledged));
  }

  auto state = std::make_unique<State>(home, std::move(anchor));
  state->epoch = epoch;
  state->head = head;
  state->checkpoint = checkpoint_sequence;
  state->synchronous = options.synchronous;
  return Store(std::move(database), std::move(state));
}

Result<void> check_schema(sqlite::Database& database) {
  SKERRY_ASSIGN(auto row, database.query("PRAGMA user_version"));
  SKERRY_TRY(row.next());
  const std::int64_t schema = row.int64(0);
  constexpr auto kKnown = static_cast<std::int64_t>(std::size(kMigrations));
  if (schema == kKnown) return {};
  return failed_precondition(database.path() + " has schema " + std::to_string(schema) + ", this program writes schema " +
                             std::to_string(kKnown) +
                             (schema < kKnown ? "; start the coordinator once, that brings it up to date"
                                              : "; use the newer skerry-server that wrote it"));
}

Result<StoreReader> Store::open_reader() const {
  sqlite::OpenOptions options;
  options.read_only = true;
  options.cache_kib = 512;
  SKERRY_ASSIGN(auto database, sqlite::Database::open(database_path(state_->home), options));
  return StoreReader(std::move(database));
}

const std::string& Store::epoch() const { return state_->epoch; }
std::string Store::chain_head() const { return to_hex(state_->head.hash); }
std::uint64_t Store::chain_length() const { return state_->head.sequence; }

Result<CollectReport> Store::collect(CargoStore& cargo) {
  // The tasks of the spool first: an upload that begins later is not looked at.
  const std::vector<std::string> spooled = cargo.spool_tasks();
  SKERRY_ASSIGN(LiveFiles live, live_files());
  for (const std::string& task_id : spooled) {
    if (task_id.empty() || live.tasks.count(task_id) != 0) continue;
    SKERRY_ASSIGN(auto decided, task(task_id));
    SKERRY_ASSIGN(auto owner, run(task_id.substr(0, task_id.rfind('.'))));
    // A task whose run is not known by that name may belong to one all the same; only its end or a decision is certain.
    const bool run_ended = owner && owner->ended_ms != 0;
    if (decided || run_ended) live.ended_tasks.insert(task_id);
  }
  return cargo.collect(live);
}

}  // namespace skerry::server
