#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "common/crypto/content_id.h"
#include "server/store/cargo_store.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::server;

namespace {

std::unique_ptr<CargoStore> open_cargo(const test::TempDir& dir, const CargoLimits& limits = {}) {
  auto cargo = CargoStore::open(dir.path(), limits);
  REQUIRE(cargo.ok());
  return std::move(cargo).value();
}

std::string put(CargoStore& cargo, std::string_view bytes) {
  auto id = cargo.put_bytes(as_bytes_of(bytes));
  REQUIRE(id.ok());
  return *id;
}

}  // namespace

TEST_CASE("bytes that were put are there under their content id, sealed, also after a restart") {
  test::TempDir dir;
  std::string id = put(*open_cargo(dir), "island");
  CHECK(id == content_id(std::string_view("island")));
  auto cargo = open_cargo(dir);
  auto file = cargo->open_cargo(id);
  REQUIRE(file.ok());
  CHECK(file->size == 6);
  std::string text(6, '\0');
  REQUIRE(file->file.pread_exact(std::as_writable_bytes(std::span(text.data(), text.size())), 0).ok());
  CHECK(text == "island");
  struct stat info {};
  REQUIRE(::stat(cargo->cargo_path(id).c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0440);
  CHECK(cargo->verify_cargo(id).ok());
}

TEST_CASE("cargo that is not there is NOT_FOUND, a name that is no content id INVALID_ARGUMENT") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  CHECK(cargo->open_cargo(content_id(std::string_view("nothing"))).error().code == Code::kNotFound);
  CHECK(cargo->open_cargo("../../etc/passwd").error().code == Code::kInvalidArgument);
  CHECK(cargo->map_cargo("").error().code == Code::kInvalidArgument);
}

TEST_CASE("a finished result is adopted without a copy") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  std::string scratch = cargo->scratch_path();
  REQUIRE(write_file_atomic(scratch, "result").ok());
  std::string id = content_id(std::string_view("result"));
  REQUIRE(cargo->adopt_file(scratch, id).ok());
  CHECK_FALSE(path_exists(scratch));
  CHECK(*cargo->cargo_size(id) == 6);
  std::string state = cargo->scratch_path();
  REQUIRE(write_file_atomic(state, "momentum").ok());
  REQUIRE(cargo->adopt_state(state, "r-1.whole.1").ok());
  CHECK(*read_file(cargo->state_path("r-1.whole.1"), 100) == "momentum");
  CHECK_FALSE(cargo->adopt_state(state, "../escape").ok());
}

TEST_CASE("results that were never finished are gone after a restart") {
  test::TempDir dir;
  std::string scratch = open_cargo(dir)->scratch_path();
  REQUIRE(write_file_atomic(scratch, "half").ok());
  open_cargo(dir);
  CHECK_FALSE(path_exists(scratch));
}

TEST_CASE("one flipped byte in cargo is found and the file named") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  std::string id = put(*cargo, std::string(100'000, 'x'));
  REQUIRE(cargo->verify_cargo(id).ok());
  REQUIRE(::chmod(cargo->cargo_path(id).c_str(), 0600) == 0);
  auto file = File::open(cargo->cargo_path(id), OpenMode::kReadWrite);
  REQUIRE(file->pwrite(as_bytes_of("y"), 50'000).ok());
  auto damaged = cargo->verify_cargo(id);
  REQUIRE_FALSE(damaged.ok());
  CHECK(damaged.error().code == Code::kDataLoss);
  CHECK_THAT(damaged.error().message, Catch::Contains(id));
}

TEST_CASE("a collection removes what nobody refers to and nothing else") {
  test::TempDir dir;
  std::string live, dead;
  {
    auto cargo = open_cargo(dir);
    live = put(*cargo, "live");
    dead = put(*cargo, "dead");
    std::string scratch = cargo->scratch_path();
    REQUIRE(write_file_atomic(scratch, "state").ok());
    REQUIRE(cargo->adopt_state(scratch, "old").ok());
  }
  auto cargo = open_cargo(dir);
  LiveFiles files;
  files.cargo = {live};
  auto report = cargo->collect(files);
  REQUIRE(report.ok());
  CHECK(report->files == 2);
  CHECK(report->bytes == 9);
  CHECK(cargo->cargo_size(live).ok());
  CHECK_FALSE(cargo->cargo_size(dead).ok());
  CHECK_FALSE(path_exists(cargo->state_path("old")));
}

TEST_CASE("a collection spares what this process put and has not released yet, until it was live once") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  std::string id = put(*cargo, "new");
  CHECK(cargo->collect({})->files == 0);
  CHECK(cargo->cargo_size(id).ok());
  LiveFiles released;
  released.cargo = {id};
  CHECK(cargo->collect(released)->files == 0);
  CHECK(cargo->collect({})->files == 1);
  CHECK_FALSE(cargo->cargo_size(id).ok());
}

TEST_CASE("a large file is gone at once where it stood, and from the disk when the store is closed") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  std::string id = put(*cargo, std::string(3 << 20, 'x'));
  REQUIRE(cargo->remove_cargo(id).ok());
  CHECK_FALSE(path_exists(cargo->cargo_path(id)));
  CHECK(put(*cargo, std::string(3 << 20, 'x')) == id);
  CHECK(cargo->verify_cargo(id).ok());
  cargo.reset();
  CHECK(list_directory(dir / "cargo/scratch")->empty());
}

TEST_CASE("cargo that is removed stays readable for those who have it open") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  std::string id = put(*cargo, "island");
  auto mapped = cargo->map_cargo(id);
  REQUIRE(mapped.ok());
  REQUIRE(cargo->remove_cargo(id).ok());
  CHECK(as_text(mapped->bytes()) == "island");
  CHECK_FALSE(cargo->cargo_size(id).ok());
  CHECK(cargo->remove_cargo(id).ok());
}
