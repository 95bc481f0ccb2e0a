// A store in a directory of its own, and records that are easy to write down.
#pragma once

#include <cstring>

#include <catch2/catch.hpp>

#include "common/crypto/content_id.h"
#include "server/store/store.h"
#include "tests/support/temp_dir.h"

namespace skerry::server {

/// Counts instead of drawing: epochs in tests can be written down.
class CountingRandom final : public Random {
 public:
  void fill(std::span<std::byte> out) override {
    for (std::byte& value : out) value = std::byte{next_++};
  }

 private:
  unsigned char next_ = 0;
};

struct StoreFixture {
  test::TempDir dir;
  CountingRandom random;
  std::optional<Store> store;
  std::unique_ptr<CargoStore> cargo;

  StoreFixture() {
    auto opened = CargoStore::open(dir.path());
    REQUIRE(opened.ok());
    cargo = std::move(opened).value();
    reopen();
  }

  void close() { store.reset(); }

  Result<void> try_open(StoreOptions options = {}) {
    close();
    SKERRY_ASSIGN(Store opened, Store::open(dir.path(), random, options));
    store.emplace(std::move(opened));
    return {};
  }

  void reopen(StoreOptions options = {}) {
    auto opened = try_open(options);
    if (!opened.ok()) FAIL(to_string(opened.error()));
  }

  CommitReport commit(const Batch& batch) {
    auto report = store->commit(batch);
    if (!report.ok()) FAIL(to_string(report.error()));
    return std::move(report).value();
  }

  /// Changes the database behind the store's back.
  void tamper(const std::string& sql) {
    close();
    auto database = sqlite::Database::open(dir / "skerry.db");
    REQUIRE(database.ok());
    REQUIRE(database->execute(sql).ok());
  }
};

inline RunRecord a_run(const std::string& run_id = "r-1") {
  RunRecord run;
  run.run_id = run_id;
  run.name = "digits";
  run.strategy = "fedavg";
  run.spec_hash = "abcd";
  run.spec_json = "{}";
  run.status = "running";
  run.created_ms = 1000;
  return run;
}

inline UpdateRecord an_update(const std::string& task, const std::string& node = "ada", std::uint64_t exchange = 1) {
  UpdateRecord update;
  update.task_id = task;
  update.run_id = "r-1";
  update.node = node;
  update.exchange = exchange;
  update.weight = 2.5;
  update.examples = 600;
  update.metrics_json = "{}";
  update.body = std::string("body of ") + task + std::string(3, '\0');
  update.signature = "signature";
  return update;
}

inline StoredBlob inline_blob(const std::string& bytes) {
  return {content_id(std::string_view(bytes)), bytes.size(), bytes};
}

inline VersionRecord a_version(std::uint64_t version, std::vector<std::string> counted = {}) {
  VersionRecord record;
  record.run_id = "r-1";
  record.fragment = "whole";
  record.version = version;
  record.exchange = version;
  record.whole = inline_blob("model " + std::to_string(version));
  record.state_bytes = "state " + std::to_string(version);
  record.state_size = record.state_bytes.size();
  record.counted = std::move(counted);
  record.time_ms = 5000;
  return record;
}

/// One whole exchange: two updates accepted, counted and released as `version`.
inline void exchange(StoreFixture& world, std::uint64_t version) {
  const std::string number = std::to_string(version);
  Batch accepted;
  accepted.accept(an_update("r-1." + number + "a", "ada", version), 100);
  accepted.accept(an_update("r-1." + number + "b", "bob", version), 101);
  world.commit(accepted);
  Batch released;
  released.count("r-1." + number + "a", "r-1", "ada", version, version, 200);
  released.count("r-1." + number + "b", "r-1", "bob", version, version, 200);
  released.release(a_version(version, {"r-1." + number + "a", "r-1." + number + "b"}));
  world.commit(released);
}

}  // namespace skerry::server
