// What is looked at when a store is opened, and all the rest that verify() looks at.
#include <map>
#include <set>

#include "common/base/encoding_text.h"
#include "common/crypto/content_id.h"
#include "common/crypto/sha256.h"
#include "server/store/store_internal.h"

namespace skerry::server {
namespace {

constexpr std::uint64_t kComparedAtStart = std::uint64_t{32} << 20;

const std::string kRestore = "; the database was altered or damaged, restore it from a backup";

std::string name_of(const VersionRecord& version) {
  return "version " + std::to_string(version.version) + " of fragment " + version.fragment + " of run " +
         version.run_id;
}

std::string state_kind(std::int64_t state) {
  switch (static_cast<UpdateState>(state)) {
    case UpdateState::kAccepted:
      return "ACCEPTED";
    case UpdateState::kCounted:
      return "COUNTED";
    case UpdateState::kDiscarded:
      return "DISCARDED";
    default:
      return "of an unknown state";
  }
}

/// A task's row must say what its last receipt says.
Result<void> check_task(sqlite::Database& database, const ReceiptRecord& link) {
  SKERRY_ASSIGN(auto row, database.query(
                              "SELECT state, run_id, node, exchange, version, reason, body_sha256, sequence FROM tasks "
                              "WHERE task_id = ?",
                              link.subject));
  SKERRY_ASSIGN(bool found, row.next());
  if (!found)
    return data_loss("task " + link.subject + " has receipt " + std::to_string(link.sequence) + " but no row" +
                     kRestore);
  if (row.uint64(7) > link.sequence) return {};  // a later link is compared instead
  const bool accepted = link.kind == "ACCEPTED";
  const bool same = state_kind(row.int64(0)) == link.kind && row.text_view(1) == link.run_id &&
                    row.text_view(2) == link.node && row.uint64(3) == link.exchange && row.uint64(4) == link.version &&
                    (accepted ? row.text_view(6) : row.text_view(5)) == link.reason && row.uint64(7) == link.sequence;
  if (!same) {
    return data_loss("the row of task " + link.subject + " (" + state_kind(row.int64(0)) + ", exchange " + row.text(3) +
                     ", version " + row.text(4) + ") is not what receipt " + std::to_string(link.sequence) + " says (" +
                     link.kind + ", exchange " + std::to_string(link.exchange) + ", version " +
                     std::to_string(link.version) + ")" + kRestore);
  }
  return {};
}

Result<void> check_inline(const VersionRecord& version, const StoredBlob& blob, const char* what) {
  if (blob.bytes.empty()) return {};
  if (blob.bytes.size() != blob.size || content_id(std::string_view(blob.bytes)) != blob.content_id) {
    return data_loss("the " + std::string(what) + " of " + name_of(version) +
                     " is damaged: its bytes are not those of " + blob.content_id + kRestore);
  }
  return {};
}

Result<void> check_size(Result<std::uint64_t> found, std::uint64_t size, const VersionRecord& version,
                        const std::string& path) {
  if (!found.ok() && found.error().code != Code::kNotFound) return found.error();
  if (found.ok() && *found == size) return {};
  return data_loss(name_of(version) + " refers to " + path + " of " + std::to_string(size) + " bytes, " +
                   (found.ok() ? "which has " + std::to_string(*found) : std::string("which is missing")) +
                   "; restore it from a backup");
}

/// What the stored versions keep outside the database: in each record `content_id` is empty where that is in the row.
template <typename Use>
Result<void> for_each_version_with_files(sqlite::Database& database, Use use) {
  SKERRY_ASSIGN(
      auto row,
      database.query(
          "SELECT run_id, fragment, version, exchange, iif(whole_bytes IS NULL, whole_id, ''), whole_size, x'', "
          "iif(step_bytes IS NULL, step_id, ''), step_size, x'', step_encoding, state_name, state_size, x'', "
          "counted_digest, chain, time_ms, kept "
          "FROM versions WHERE whole_bytes IS NULL OR step_bytes IS NULL OR state_name <> '' ORDER BY run_id, "
          "fragment, version"));
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return {};
    SKERRY_TRY(use(read_version(row, false)));
  }
}

/// What a version keeps in files is there with its size.
Result<void> check_version_files(const VersionRecord& version, const CargoStore& cargo) {
  for (const StoredBlob* blob : {&version.whole, &version.step}) {
    if (blob->content_id.empty()) continue;
    SKERRY_TRY(check_size(cargo.cargo_size(blob->content_id), blob->size, version, cargo.cargo_path(blob->content_id)));
  }
  if (version.state_name.empty()) return {};
  const std::string path = cargo.state_path(version.state_name);
  return check_size(file_size(path), version.state_size, version, path);
}

/// The spool files of accepted updates that are not decided.
template <typename Use>
Result<void> for_each_spooled(sqlite::Database& database, Use use) {
  SKERRY_ASSIGN(auto row, database.query("SELECT task_id, spooled FROM tasks WHERE state = 2 AND spooled <> '[]' ORDER BY task_id"));
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return {};
    for (const SpooledPayload& payload : spooled_from_json(row.text_view(1))) SKERRY_TRY(use(row.text(0), payload));
  }
}

}  // namespace

Result<ChainHead> check_chain(sqlite::Database& database, ChainHead from, const OnDamage& damaged) {
  ChainHead head = std::move(from);
  if (head.sequence != 0) {
    SKERRY_ASSIGN(auto row, database.query("SELECT hash FROM receipts WHERE sequence = ?", head.sequence));
    SKERRY_ASSIGN(bool found, row.next());
    if (!found || row.blob_view(0) != head.hash) {
      return data_loss("receipt " + std::to_string(head.sequence) + " is not the one of the last checkpoint" +
                       kRestore);
    }
  }
  SKERRY_ASSIGN(auto row, database.query("SELECT " + std::string(kReceiptColumns) +
                                             " FROM receipts WHERE sequence > ? ORDER BY sequence",
                                         head.sequence));
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return head;
    const ReceiptRecord link = read_receipt(row);
    if (link.sequence != head.sequence + 1) {
      SKERRY_TRY(damaged(data_loss("receipt " + std::to_string(head.sequence + 1) + " is lost: after " +
                       std::to_string(head.sequence) + " comes " + std::to_string(link.sequence) + kRestore)));
    } else if (link_hash(head.hash, link) != link.hash) {
      SKERRY_TRY(damaged(data_loss("receipt " + std::to_string(link.sequence) + " (" + link.kind + " " + link.subject +
                                   ") does not have the hash of its content" + kRestore)));
    }
    if (link.kind != "RELEASED")
      if (auto task = check_task(database, link); !task.ok()) SKERRY_TRY(damaged(task.error()));
    head = {link.sequence, link.hash};
  }
}

Result<void> check_versions(sqlite::Database& database, std::uint64_t from_sequence, bool all_bytes, const OnDamage& damaged) {
  // The newest release of each fragment among the links looked at must be stored.
  {
    SKERRY_ASSIGN(auto row, database.query("SELECT run_id, subject, max(version) FROM receipts WHERE sequence > ? AND "
                                           "kind = 'RELEASED' GROUP BY run_id, subject",
                                           from_sequence));
    for (;;) {
      SKERRY_ASSIGN(bool more, row.next());
      if (!more) break;
      SKERRY_ASSIGN(auto stored,
                    database.query("SELECT 1 FROM versions WHERE run_id = ? AND fragment = ? AND version = ?",
                                   row.text(0), row.text(1), row.int64(2)));
      SKERRY_ASSIGN(bool found, stored.next());
      if (!found)
        SKERRY_TRY(damaged(data_loss("version " + row.text(2) + " of fragment " + row.text(1) + " of run " + row.text(0) +
                                     " was released but its row is lost" + kRestore)));
    }
  }
  SKERRY_ASSIGN(
      auto row,
      database.query(
          "SELECT v.run_id, v.fragment, v.version, v.exchange, whole_id, whole_size, iif(?1 OR v.version = "
          "newest.version, whole_bytes, x''), "
          "step_id, step_size, iif(?1 OR v.version = newest.version, step_bytes, x''), step_encoding, state_name, "
          "state_size, x'', "
          "counted_digest, chain, v.time_ms, kept, r.kind, r.reason, r.hash FROM versions AS v "
          "JOIN (SELECT run_id, fragment, max(version) AS version FROM versions GROUP BY run_id, fragment) AS newest "
          "ON newest.run_id = v.run_id AND newest.fragment = v.fragment LEFT JOIN receipts AS r ON r.sequence = "
          "v.sequence",
          all_bytes));
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return {};
    const VersionRecord version = read_version(row, true);
    if (row.text_view(18) != "RELEASED" || row.text_view(19) != release_digest(version) ||
        to_hex(row.blob_view(20)) != version.chain) {
      SKERRY_TRY(damaged(data_loss("the row of " + name_of(version) + " is not what was released" + kRestore)));
    }
    if (auto whole = check_inline(version, version.whole, "model"); !whole.ok()) SKERRY_TRY(damaged(whole.error()));
    if (auto step = check_inline(version, version.step, "step"); !step.ok()) SKERRY_TRY(damaged(step.error()));
  }
}

Result<void> check_accepted(sqlite::Database& database, const OnDamage& damaged) {
  SKERRY_ASSIGN(auto row, database.query("SELECT task_id, body_sha256, body IS NULL, body FROM tasks LEFT JOIN bodies "
                                         "ON bodies.task = tasks.id WHERE state = 2"));
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return {};
    if (row.int64(2) != 0 || sha256_hex(row.blob_view(3)) != row.text_view(1)) {
      SKERRY_TRY(damaged(data_loss("the accepted update of task " + row.text(0) + " is " +
                                   (row.int64(2) != 0 ? "lost" : "not what was signed") + kRestore)));
    }
  }
}

Result<void> Store::check_files(const CargoStore& cargo) {
  std::map<std::pair<std::string, std::string>, VersionRecord> newest;  // by run and fragment
  SKERRY_TRY(for_each_version_with_files(database_, [&](const VersionRecord& version) -> Result<void> {
    newest[{version.run_id, version.fragment}] = version;  // they come in their order
    return check_version_files(version, cargo);
  }));
  // What the next exchanges start from, while that takes no time; the rest is compared before its first use.
  std::uint64_t left = kComparedAtStart;
  auto compare = [&](const std::string& path, std::uint64_t size) -> Result<void> {
    if (size > left) return {};
    left -= size;
    return cargo.verify_once(path);
  };
  SKERRY_TRY(for_each_spooled(database_, [&](const std::string& task, const SpooledPayload& payload) -> Result<void> {
    SKERRY_ASSIGN(const std::string path, cargo.spool_file(task, payload.content_id));
    return compare(path, payload.size);
  }));
  for (const auto& entry : newest) {
    const StoredBlob& whole = entry.second.whole;
    if (!whole.content_id.empty()) SKERRY_TRY(compare(cargo.cargo_path(whole.content_id), whole.size));
  }
  return {};
}

std::vector<std::string> find_damage(sqlite::Database& database, const CargoStore* cargo, const OnProgress& progress) {
  std::vector<std::string> findings;
  const OnDamage collect = [&findings](Error error) -> Result<void> {
    findings.push_back(std::move(error.message));
    return {};
  };
  // One part that cannot be read to its end does not hide what the others have to say.
  const auto part = [&](const char* name, const auto& check) {
    progress(name);
    if (auto checked = check(); !checked.ok()) (void)collect(checked.error());
  };
  part("pages", [&] { return database.check_integrity(); });
  part("receipts", [&] { return check_chain(database, {}, collect); });
  part("tasks", [&]() -> Result<void> {
    SKERRY_ASSIGN(auto row, database.query("SELECT task_id FROM tasks LEFT JOIN receipts USING (sequence) "
                                           "WHERE subject IS NULL OR subject <> task_id"));
    for (;;) {
      SKERRY_ASSIGN(bool more, row.next());
      if (!more) return {};
      SKERRY_TRY(collect(data_loss("the row of task " + row.text(0) + " has no receipt" + kRestore)));
    }
  });
  part("versions", [&] { return check_versions(database, 0, true, collect); });
  part("accepted updates", [&] { return check_accepted(database, collect); });
  if (cargo == nullptr) return findings;
  part("cargo", [&]() -> Result<void> {
    std::set<std::string> checked;
    return for_each_version_with_files(database, [&](const VersionRecord& version) -> Result<void> {
      if (auto there = check_version_files(version, *cargo); !there.ok()) return collect(there.error());
      for (const StoredBlob* blob : {&version.whole, &version.step}) {
        if (blob->content_id.empty() || !checked.insert(blob->content_id).second) continue;
        auto verified = cargo->verify_cargo(blob->content_id);
        if (!verified.ok()) SKERRY_TRY(collect(with_context(verified.error(), name_of(version))));
        progress("cargo");
      }
      return {};
    });
  });
  part("spool", [&] {
    return for_each_spooled(database, [&](const std::string& task, const SpooledPayload& payload) -> Result<void> {
      auto path = cargo->spool_file(task, payload.content_id);
      const Result<void> compared = path.ok() ? cargo->verify_once(*path) : Result<void>(path.error());
      if (compared.ok()) return {};
      return collect(with_context(compared.error(), "the accepted update of task " + task));
    });
  });
  return findings;
}

Result<void> Store::verify(const CargoStore& cargo) {
  std::vector<std::string> findings = find_damage(database_, &cargo);
  if (!findings.empty()) return data_loss(std::move(findings.front()));
  return {};
}

}  // namespace skerry::server
