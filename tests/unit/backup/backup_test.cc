// A backup is whole or not there; what is restored from it is what was backed up, in another epoch.
#include <sys/stat.h>

#include <atomic>
#include <thread>

#include "common/crypto/content_id.h"
#include "server/backup/backup.h"
#include "server/identity/certificate_authority.h"
#include "tests/unit/store/store_fixture.h"

using namespace skerry;
using namespace skerry::server;

namespace {

Result<void> quiet(const BackupProgress&) { return {}; }

void damage(const std::string& path, std::uint64_t offset) {
  REQUIRE(::chmod(path.c_str(), 0600) == 0);
  auto file = File::open(path, OpenMode::kReadWrite);
  std::byte byte[1];
  REQUIRE(file->pread_exact(byte, offset).ok());
  byte[0] ^= std::byte{4};
  REQUIRE(file->pwrite(byte, offset).ok());
}

unsigned mode_of(const std::string& path) {
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 0777;
}

/// A coordinator at work: a released version whose model is cargo, an optimizer's state, an accepted update in the spool.
struct World : StoreFixture {
  std::string model = std::string(100'000, 'm');
  std::string model_id;
  std::string update = std::string(70'000, 'u');
  std::string update_id = content_id(std::string_view(update));

  World() {
    InitOptions options;
    options.federation = "harbour";
    options.hosts = {"localhost"};
    options.address = "localhost:7440";
    options.operator_name = "ada";
    options.now_ms = 1'700'000'000'000;
    REQUIRE(init_home(dir.path(), options).ok());
    REQUIRE(write_file_atomic(dir / "server.toml", "federation = \"harbour\"\n").ok());
    Batch run;
    run.put_run(a_run());
    commit(run);
    release(1);
    auto writer = cargo->write_upload({"r-1.7", "ada", update_id, update.size()}, 0);
    REQUIRE(writer.ok());
    REQUIRE(writer->write(as_bytes_of(update)).ok());
    REQUIRE(writer->finish()->complete);
    Batch accepted;
    UpdateRecord record = an_update("r-1.7", "ada", 2);
    record.spooled = {{"whole", update_id, update.size()}};
    accepted.accept(record, 300);
    commit(accepted);
  }

  /// A version whose model and state are files of their own.
  void release(std::uint64_t version) {
    model_id = *cargo->put_bytes(as_bytes_of(model + std::to_string(version)));
    const std::string state = cargo->scratch_path();
    REQUIRE(write_file_atomic(state, "momentum " + std::to_string(version)).ok());
    VersionRecord record = a_version(version);
    record.state_name = "r-1.whole." + std::to_string(version);
    record.state_bytes.clear();
    record.state_size = *file_size(state);
    REQUIRE(cargo->adopt_state(state, record.state_name).ok());
    record.whole = {model_id, model.size() + std::to_string(version).size(), ""};
    Batch batch;
    batch.release(record);
    batch.prune_versions("r-1", "whole", 2, {});
    const CommitReport report = commit(batch);
    for (const std::string& id : report.unreferenced_cargo) REQUIRE(cargo->remove_cargo(id).ok());
    for (const std::string& name : report.unreferenced_states) REQUIRE(cargo->remove_state(name).ok());
  }

  test::TempDir elsewhere;
  std::string backup() const { return elsewhere / "backup"; }
  Result<BackupSummary> make(BackupOptions options = {}) { return make_backup(dir.path(), backup(), options); }
  Result<RestoredHome> restore(std::int64_t now_ms = 0) {
    return restore_backup(backup(), elsewhere / "home", random, now_ms, quiet);
  }
};

}  // namespace

TEST_CASE("what was committed and the files it refers to come back from a backup of a running coordinator") {
  World world;
  auto made = world.make({.with_keys = true, .now_ms = 1000});
  if (!made.ok()) FAIL(to_string(made.error()));
  CHECK(made->federation == "harbour");
  CHECK(made->receipts == 2);
  CHECK(made->chain_head == world.store->chain_head());
  Batch later;
  later.discard("r-1.9", "r-1", "ada", 2, "after the backup", 400);
  world.commit(later);

  auto restored = world.restore();
  if (!restored.ok()) FAIL(to_string(restored.error()));
  CHECK(restored->missing.empty());
  const std::string home = world.elsewhere / "home";
  auto store = Store::open(home, world.random);
  if (!store.ok()) FAIL(to_string(store.error()));
  auto cargo = CargoStore::open(home);
  CHECK(store->chain_length() == 2);
  CHECK(store->verify(**cargo).ok());
  CHECK((*store->latest_version("r-1", "whole"))->whole.content_id == world.model_id);
  CHECK(*read_file((*cargo)->state_path("r-1.whole.1"), 100) == "momentum 1");
  CHECK(store->accepted_updates("r-1")->size() == 1);
  CHECK(*read_file(*(*cargo)->spool_file("r-1.7", world.update_id), 1 << 20) == world.update);
  CHECK(CertificateAuthority::open(home).ok());
}

TEST_CASE("a restored home begins a new epoch, above every one that could have been used since") {
  World world;
  REQUIRE(world.make().ok());
  auto restored = world.restore(1'790'000'000'000);
  REQUIRE(restored.ok());
  CHECK(restored->backup.epoch == world.store->epoch());
  CHECK(restored->epoch.rfind("1790000000-", 0) == 0);
}

TEST_CASE("a backup holds private keys only if that was asked for, readable by its owner alone") {
  World world;
  SECTION("without") {
    REQUIRE(world.make().ok());
    for (const char* file : {"ca/issuing.key", "server.key", "ticket.key", "operator"}) CHECK_FALSE(path_exists(world.backup() + "/" + file));
    CHECK(path_exists(world.backup() + "/ca/root.crt"));
    auto restored = world.restore();
    REQUIRE(restored.ok());
    CHECK(restored->missing == std::vector<std::string>{"ca/issuing.key", "server.key", "ticket.key"});
  }
  SECTION("with") {
    REQUIRE(world.make({.with_keys = true}).ok());
    for (const char* file : {"ca/issuing.key", "ca/root.key", "server.key", "ticket.key", "operator/key.pem", "skerry.db"})
      CHECK(mode_of(world.backup() + "/" + file) == 0600);
    REQUIRE(world.restore().ok());
    CHECK(mode_of(world.elsewhere / "home/server.key") == 0600);
  }
}

TEST_CASE("a backup of damaged files is refused, names them and leaves nothing") {
  World world;
  std::string named;
  SECTION("cargo") { damage(named = world.cargo->cargo_path(world.model_id), 5000); }
  SECTION("an accepted update") { damage(named = *world.cargo->spool_file("r-1.7", world.update_id), 5000); }
  SECTION("the database") {
    world.close();
    damage(named = world.dir / "skerry.db", 3 * 4096 + 100);
  }
  SECTION("cargo that is missing") {
    world.close();
    REQUIRE(remove_file(named = world.cargo->cargo_path(world.model_id)).ok());
  }
  auto made = world.make();
  REQUIRE_FALSE(made.ok());
  CHECK(made.error().code == Code::kDataLoss);
  CHECK_THAT(made.error().message, Catch::Contains(named));
  CHECK(list_directory(world.elsewhere.path())->empty());
  CHECK(list_directory(world.dir / "cargo/scratch")->empty());
}

TEST_CASE("an interrupted backup or restore leaves nothing") {
  World world;
  const OnBackupProgress interrupt = [](const BackupProgress& progress) -> Result<void> {
    if (progress.done_bytes == 0) return {};
    return Error{Code::kCancelled, "interrupted", false};
  };
  BackupOptions options;
  options.progress = interrupt;
  CHECK(world.make(options).error().code == Code::kCancelled);
  CHECK(list_directory(world.elsewhere.path())->empty());
  REQUIRE(world.make().ok());
  CHECK(restore_backup(world.backup(), world.elsewhere / "home", world.random, 0, interrupt).error().code == Code::kCancelled);
  CHECK(list_directory(world.elsewhere.path())->size() == 1);
}

TEST_CASE("what a killed backup left does not hinder the next one") {
  World world;
  REQUIRE(make_directories(world.backup() + ".partial/cargo").ok());
  REQUIRE(write_file_atomic(world.backup() + ".partial/skerry.db", "half").ok());
  REQUIRE(world.make().ok());
  CHECK(list_directory(world.elsewhere.path())->size() == 1);
}

TEST_CASE("neither a backup nor a restore overwrites what is there") {
  World world;
  REQUIRE(world.make().ok());
  CHECK(world.make().error().code == Code::kAlreadyExists);
  REQUIRE(world.restore().ok());
  CHECK(world.restore().error().code == Code::kAlreadyExists);
  CHECK(restore_backup(world.elsewhere.path(), world.elsewhere / "other", world.random, 0, quiet).error().code == Code::kNotFound);
}

TEST_CASE("a damaged backup is not restored, and each damaged file is named") {
  World world;
  REQUIRE(world.make({.with_keys = true}).ok());
  CHECK(check_backup(world.backup(), quiet)->findings.empty());
  const std::string id = world.model_id;
  const std::string cargo = world.backup() + "/cargo/" + id.substr(3, 2) + "/" + id;
  SECTION("two files") {
    damage(cargo, 77);
    REQUIRE(remove_file(world.backup() + "/ca/root.crt").ok());
    auto checked = check_backup(world.backup(), quiet);
    REQUIRE(checked->findings.size() == 2);
    CHECK_THAT(checked->findings[0] + checked->findings[1], Catch::Contains(cargo) && Catch::Contains("ca/root.crt"));
    CHECK_FALSE(world.restore().ok());
  }
  SECTION("any byte of the manifest") {
    const std::uint64_t size = *file_size(world.backup() + "/manifest.json");
    const std::string good = *read_file(world.backup() + "/manifest.json", size);
    for (std::uint64_t offset = 0; offset + 1 < size; offset += 13) {
      damage(world.backup() + "/manifest.json", offset);
      INFO("offset " << offset);
      auto checked = check_backup(world.backup(), quiet);
      // A blank that became another kind of blank says the same.
      const bool harmless = checked.ok() && checked->findings.empty() && (good[offset] == ' ' || good[offset] == '\n');
      CHECK((!checked.ok() || !checked->findings.empty() || harmless));
      REQUIRE(write_file_atomic(world.backup() + "/manifest.json", good).ok());
    }
  }
  CHECK_FALSE(path_exists(world.elsewhere / "home"));
}

TEST_CASE("files that go while they are backed up are held") {
  World world;
  std::vector<Result<BackupSummary>> made;
  std::atomic<bool> done{false};
  // The store belongs to one thread; the backup works beside it, as another process does.
  std::thread backups([&] {
    for (int i = 0; i < 10; ++i) made.push_back(make_backup(world.dir.path(), world.elsewhere / ("backup-" + std::to_string(i)), {}));
    done = true;
  });
  std::uint64_t version = 1;
  while (!done) world.release(++version);
  backups.join();
  CHECK(version > 10);
  for (const Result<BackupSummary>& backup : made) {
    if (!backup.ok()) FAIL(to_string(backup.error()));
    CHECK(check_backup(backup->path, quiet)->findings.empty());
  }
}
