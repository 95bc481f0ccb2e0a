// Flipped bits and cuts in every file of a coordinator's home and of a daemon's: found and named, or without any effect.
//
// A federation is stopped in the middle of an exchange by SIGKILL. Each seed damages one file of a copy of what it left, and
// everything a coordinator (a daemon) reads of it at its start and later is read. Either that fails, naming what is damaged,
// or every row and every file reads as it does in the undamaged home: then the damaged bytes are used by nobody.
// SKERRY_SEED replays one seed, SKERRY_SEEDS sets their number.
#include <catch2/catch.hpp>

#include <sys/stat.h>

#include <cstdlib>
#include <map>
#include <random>

#include "client/daemon/data/catalogue.h"
#include "client/daemon/egress/client_database.h"
#include "common/base/encoding_text.h"
#include "common/crypto/content_id.h"
#include "common/crypto/sha256.h"
#include "common/identity/profile.h"
#include "common/os/files.h"
#include "common/os/random.h"
#include "server/aggregate/outer_state.h"
#include "server/backup/backup.h"
#include "server/identity/certificate_authority.h"
#include "server/store/store.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMost = std::uint64_t{1} << 30;

/// What a reader of a home finds, by name; equal maps are equal answers.
using Answers = std::map<std::string, std::string>;

/// Every row of every table.
Result<void> read_tables(sqlite::Database& database, Answers& answers) {
  std::vector<std::string> tables;
  {
    SKERRY_ASSIGN(auto row, database.query("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"));
    for (;;) {
      SKERRY_ASSIGN(const bool more, row.next());
      if (!more) break;
      tables.push_back(row.text(0));
    }
  }
  for (const std::string& table : tables) {
    SKERRY_ASSIGN(auto names, database.query("SELECT count(*) FROM pragma_table_info(?)", table));
    SKERRY_TRY(names.next());
    const int columns = static_cast<int>(names.int64(0));
    SKERRY_ASSIGN(auto row, database.query("SELECT * FROM " + table));
    Sha256 hash;
    for (;;) {
      SKERRY_ASSIGN(const bool more, row.next());
      if (!more) break;
      for (int column = 0; column < columns; ++column) {
        hash.update(std::to_string(row.blob_view(column).size()) + ":");
        hash.update(row.blob_view(column));
      }
    }
    answers["table " + table] = to_hex(as_text(hash.finish()));
  }
  return {};
}

/// An optimizer's state as the engine takes it: its header and every chunk against its checksum.
Result<void> check_state(const std::string& bytes, const std::string& path) {
  using namespace server;
  const auto state = as_bytes_of(bytes);
  SKERRY_ASSIGN(const OuterStateHeader header, decode_outer_state_header(state, path));
  const ChunkPartition chunks{header.data_offset, header.elements};
  std::uint64_t sum_at = outer_state_checksums_offset(header);
  for (std::size_t vector = 0; vector < header.vectors.size(); ++vector) {
    for (std::uint64_t chunk = chunks.first_chunk(); chunk < chunks.chunks(); ++chunk, sum_at += 8) {
      const std::uint64_t first = outer_state_vector_offset(header, vector) + 4 * chunks.begin(chunk);
      const std::uint64_t length = 4 * (chunks.end(chunk) - chunks.begin(chunk));
      std::uint64_t sum = 0;
      for (int i = 7; i >= 0; --i) sum = sum << 8 | std::to_integer<std::uint64_t>(state[sum_at + static_cast<std::uint64_t>(i)]);
      if (state_checksum(state.subspan(first, length)) != sum) return data_loss(path + " is damaged");
    }
  }
  return {};
}

/// All that a coordinator reads of its home at its start and later.
Result<Answers> read_server(const std::string& home) {
  using namespace server;
  Answers answers;
  SKERRY_TRY(check_identity(home));
  SKERRY_ASSIGN(const CertificateAuthority authority, CertificateAuthority::open(home));
  answers["ca"] = authority.ca_pem();
  for (const char* key : {"ca/root.key", "ca/issuing.key", "server.key"}) {
    // Loading proves that the private half is the public half's, and there is only one such.
    SKERRY_ASSIGN(const PrivateKey loaded, PrivateKey::load(join_path(home, key)));
    answers[key] = loaded.public_key().fingerprint();
  }
  SKERRY_ASSIGN(answers["ticket.key"], load_ticket_key(home));
  SKERRY_ASSIGN(const std::string server_pem, read_file(home + "/server.crt", kMost));
  SKERRY_ASSIGN(const std::vector<Certificate> chain, parse_chain(server_pem));
  for (const Certificate& certificate : chain) answers["server.crt"] += certificate.thumbprint();
  SKERRY_ASSIGN(const Profile profile, load_profile(home + "/operator"));
  answers["operator"] = profile.name + profile.thumbprint;  // a wrong address reaches nobody who has the CA's certificate

  SystemRandom random;
  SKERRY_ASSIGN(Store store, Store::open(home, random));
  SKERRY_ASSIGN(const std::unique_ptr<CargoStore> cargo, CargoStore::open(home));
  SKERRY_TRY(store.check_files(*cargo));
  SKERRY_TRY(read_tables(store.database(), answers));
  SKERRY_ASSIGN(const std::vector<RunRecord> runs, store.runs());
  for (const RunRecord& run : runs) {
    SKERRY_ASSIGN(const std::vector<VersionRecord> versions, store.versions(run.run_id, true));
    for (const VersionRecord& version : versions) {
      for (const StoredBlob* blob : {&version.whole, &version.step}) {
        if (blob->content_id.empty() || !blob->bytes.empty()) continue;
        SKERRY_TRY(cargo->map_cargo(blob->content_id));
        SKERRY_ASSIGN(answers[blob->content_id], read_file(cargo->cargo_path(blob->content_id), kMost));
      }
      if (version.state_name.empty()) continue;
      const std::string path = cargo->state_path(version.state_name);
      SKERRY_ASSIGN(answers[version.state_name], read_file(path, kMost));
      SKERRY_TRY(check_state(answers[version.state_name], path));
    }
    SKERRY_ASSIGN(const std::vector<UpdateRecord> accepted, store.accepted_updates(run.run_id));
    for (const UpdateRecord& update : accepted)
      for (const SpooledPayload& payload : update.spooled) {
        SKERRY_ASSIGN(const std::string path, cargo->spool_file(update.task_id, payload.content_id));
        SKERRY_TRY(cargo->verify_once(path));
        SKERRY_ASSIGN(answers[update.task_id + payload.fragment], read_file(path, kMost));
      }
  }
  return answers;
}

/// The same of a daemon.
Result<Answers> read_client(const std::string& home) {
  using namespace client;
  Answers answers;
  SKERRY_ASSIGN(const Profile profile, load_profile(home));
  answers["profile"] = profile.name + profile.thumbprint;
  SKERRY_ASSIGN(const TrustAnchors anchors, TrustAnchors::from_pem(profile.ca_pem));
  for (const Certificate& root : anchors.roots()) answers["roots"] += root.thumbprint();  // peers send the others
  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::load(profile.key_path()));
  answers["key"] = key.public_key().fingerprint();
  SKERRY_ASSIGN(const Catalogue catalogue, Catalogue::load(home + "/catalogue.json"));
  for (const DataSet& set : catalogue.sets())
    answers["data"] += set.name + set.kind + set.path + set.schema_json + set.indices + set.splits_json() + std::to_string(set.total) +
                       std::to_string(set.files) + std::to_string(set.checked_ms);
  SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(home));
  SKERRY_ASSIGN(const std::vector<StoredUpdate> outbox, database.load_outbox());
  answers["outbox"] = std::to_string(outbox.size());
  for (const StoredUpdate& update : outbox)
    for (const PendingUpload& upload : update.uploads) {
      const std::string path = home + "/outbox/" + update.task.task_id() + "." + upload.content_id;
      if (!path_exists(path)) continue;
      SKERRY_ASSIGN(answers[path.substr(home.size())], read_file(path, kMost));
      // Who receives it compares it: a damaged one is refused, and the task done again.
      if (content_id(std::string_view(answers[path.substr(home.size())])) != upload.content_id) return data_loss(path + " is damaged");
    }
  SKERRY_ASSIGN(const LedgerReport ledger, database.verify_ledger());
  if (!ledger.finding.empty()) return data_loss("the egress ledger: " + ledger.finding);
  sqlite::OpenOptions options;
  options.read_only = true;
  SKERRY_ASSIGN(auto tables, sqlite::Database::open(home + "/client.db", options));
  SKERRY_TRY(read_tables(tables, answers));
  return answers;
}

void copy_tree(const std::string& from, const std::string& to) {
  REQUIRE(remove_tree(to).ok());
  REQUIRE(run_program({"/bin/cp", "-a", from, to}).ok());
}

/// Files below a home that its program writes and trusts, by path.
std::vector<std::string> files_below(const std::string& home, const std::string& below = "") {
  std::vector<std::string> files;
  const auto entries = list_directory(join_path(home, below));
  for (const DirectoryEntry& entry : *entries) {
    const std::string path = below.empty() ? entry.name : below + "/" + entry.name;
    if (entry.is_directory) {
      for (std::string& file : files_below(home, path)) files.push_back(std::move(file));
      continue;
    }
    // Locks and shared memory are made anew; the settings and the policy are texts of people, whose keys and values are
    // checked when they are read; runs/ has caches, whose files are compared with their names before use.
    const bool passing = entry.name == "lock" || entry.name.ends_with("-shm") || entry.name == "control.sock" || entry.size == 0;
    const bool of_people = path == "server.toml" || path == "policy.toml" || path == "ready" || path.rfind("runs/", 0) == 0;
    if (!passing && !of_people) files.push_back(path);
  }
  return files;
}

/// One damage: a bit, or everything from an offset on.
std::string damage(const std::string& home, const std::string& file, std::mt19937_64& random) {
  const std::string path = join_path(home, file);
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  REQUIRE(::chmod(path.c_str(), 0600) == 0);
  auto opened = File::open(path, OpenMode::kReadWrite);
  const std::uint64_t offset = random() % static_cast<std::uint64_t>(info.st_size);
  const bool cut = random() % 8 == 0;
  const unsigned bit = random() % 8;
  if (cut) {
    REQUIRE(opened->resize(offset).ok());
  } else {
    std::byte byte[1];
    REQUIRE(opened->pread_exact(byte, offset).ok());
    byte[0] ^= static_cast<std::byte>(1U << bit);
    REQUIRE(opened->pwrite(byte, offset).ok());
  }
  REQUIRE(::chmod(path.c_str(), info.st_mode & 07777) == 0);
  return file + (cut ? " cut at " : " bit " + std::to_string(bit) + " of byte ") + std::to_string(offset) + " of " + std::to_string(info.st_size);
}

/// A federation that was stopped by SIGKILL in its third exchange: one update in the spool, one still to come.
struct Scene {
  Federation federation;
  std::string run;

  Scene() {
    for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true});
    RunText spec;
    spec.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [130, 130]\noutputs = 2\n";
    spec.outer = "optimizer = \"nesterov\"\nlearning_rate = 0.7\nmomentum = 0.9\n";
    spec.rounds = 4;
    federation.node("birch").script({{"task_ms", 300}});
    run = federation.submit(spec);
    federation.wait_for(run, "round 2", [](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= 2; });
    federation.node("birch").script({{"hold", true}});
    federation.wait_for(run, "an update in the spool", [](const json& detail) {
      return Federation::number(detail.at("summary").at("round")) >= 2 && detail.at("fragments").at(0).at("accepted") == 1;
    });
    federation.kill_server();
    for (const char* node : {"alder", "birch"}) federation.node(node).kill();
  }
};

struct Tally {
  unsigned detected = 0, harmless = 0, missed = 0;
};

std::uint64_t from_environment(const char* name, std::uint64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 10);
}

/// Damages copies of `home` by many seeds and reads them; every file gets its share.
template <typename Read>
void damage_everywhere(const std::string& home, const TempDir& scratch, Read read) {
  const std::string copy = scratch / "copy";
  copy_tree(home, copy);
  const Result<Answers> whole = read(copy);
  if (!whole.ok()) FAIL(to_string(whole.error()));
  copy_tree(home, copy);
  REQUIRE(*read(copy) == *whole);

  const std::vector<std::string> files = files_below(home);
  REQUIRE(files.size() > 5);
  std::map<std::string, Tally> tallies;
  const std::uint64_t seeds = from_environment("SKERRY_SEEDS", 240);
  const std::uint64_t only = from_environment("SKERRY_SEED", seeds);
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    if (only != seeds && seed != only) continue;
    std::mt19937_64 random(seed);
    const std::string& file = files[seed % files.size()];
    copy_tree(home, copy);
    const std::string what = damage(copy, file, random);
    const Result<Answers> found = read(copy);
    Tally& tally = tallies[file];
    if (!found.ok()) {
      ++tally.detected;
      INFO("seed " << seed << ": " << what << "\n" << found.error().message);
      CHECK(found.error().message.size() > 20);
    } else if (*found == *whole) {
      ++tally.harmless;
    } else {
      ++tally.missed;
      std::string differing;
      for (const auto& [name, answer] : *whole)
        if (found->count(name) == 0 || found->at(name) != answer) differing += " " + name;
      FAIL_CHECK("seed " << seed << " was missed: " << what << " changed" << differing);
    }
  }
  for (const auto& [file, tally] : tallies)
    WARN(file << ": " << tally.detected << " detected, " << tally.harmless << " harmless, " << tally.missed << " missed");
}

}  // namespace

TEST_CASE("damage anywhere in a coordinator's or a daemon's home is found or has no effect") {
  Scene scene;
  TempDir scratch;
  const std::string server = scene.federation.server_home();
  const std::string client = scene.federation.node("alder").home();
  SECTION("the coordinator's, killed: the newest commits are in the database's log") { damage_everywhere(server, scratch, read_server); }
  SECTION("the coordinator's, stopped: all is in the database") {
    REQUIRE(read_server(server).ok());
    damage_everywhere(server, scratch, read_server);
  }
  SECTION("the daemon's, killed") { damage_everywhere(client, scratch, read_client); }
  SECTION("the daemon's, stopped") {
    REQUIRE(read_client(client).ok());
    damage_everywhere(client, scratch, read_client);
  }
}

}  // namespace skerry::test
