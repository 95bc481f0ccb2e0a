#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>

#include <catch2/catch.hpp>

#include "common/os/clock.h"
#include "common/os/files.h"
#include "common/os/random.h"
#include "tests/support/temp_dir.h"

using namespace skerry;

namespace {

unsigned mode_of(const std::string& path) {
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 07777;
}

/// Limits the size of any file that this process writes while it lives: the next best thing to a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    rlimit limit{bytes, before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, SIG_DFL);
  }

 private:
  rlimit before_{};
};

}  // namespace

TEST_CASE("an atomic write replaces the whole file, with its mode, and leaves nothing else behind") {
  test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "a", "first", 0640).ok());
  REQUIRE(write_file_atomic(dir / "a", "second", 0600).ok());
  CHECK(*read_file(dir / "a", 100) == "second");
  CHECK(mode_of(dir / "a") == 0600);
  CHECK(list_directory(dir.path())->size() == 1);
}

TEST_CASE("a file longer than allowed is refused, not read in part") {
  test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "a", std::string(10'000, 'x')).ok());
  CHECK(read_file(dir / "a", 10'000)->size() == 10'000);
  auto refused = read_file(dir / "a", 9'999);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kResourceExhausted);
  CHECK_FALSE(refused.error().retryable);
}

TEST_CASE("a missing file is NOT_FOUND and its path is named") {
  auto missing = read_file("/nowhere/at/all", 10);
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.error().code == Code::kNotFound);
  CHECK_THAT(missing.error().message, Catch::Contains("/nowhere/at/all"));
}

TEST_CASE("a write that finds no space is RESOURCE_EXHAUSTED and names the path") {
  test::TempDir dir;
  FileSizeLimit limit(64 * 1024);
  auto refused = write_file_atomic(dir / "big", std::string(100 * 1024, 'x'));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kResourceExhausted);
  CHECK(refused.error().retryable);
  CHECK_THAT(refused.error().message, Catch::Contains(dir / "big"));
  CHECK(list_directory(dir.path())->empty());
}

TEST_CASE("no space left is RESOURCE_EXHAUSTED with the bytes that are free") {
  Error error = file_error(ENOSPC, "write", "/tmp");
  CHECK(error.code == Code::kResourceExhausted);
  CHECK_THAT(error.message, Catch::Contains("bytes are free there"));
}

TEST_CASE("reading beyond the end of a file is DATA_LOSS where all bytes are wanted") {
  test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "a", "12345").ok());
  auto file = File::open(dir / "a", OpenMode::kRead);
  REQUIRE(file.ok());
  std::array<std::byte, 4> buffer{};
  CHECK(file->pread_exact(buffer, 1).ok());
  auto cut = file->pread_exact(buffer, 2);
  REQUIRE_FALSE(cut.ok());
  CHECK(cut.error().code == Code::kDataLoss);
}

TEST_CASE("a created file has its mode whatever the umask, and an existing one is not created again") {
  test::TempDir dir;
  mode_t before = ::umask(077);
  REQUIRE(File::open(dir / "a", OpenMode::kCreate, 0664).ok());
  ::umask(before);
  CHECK(mode_of(dir / "a") == 0664);
  auto again = File::open(dir / "a", OpenMode::kCreate);
  REQUIRE_FALSE(again.ok());
  CHECK(again.error().code == Code::kAlreadyExists);
}

TEST_CASE("descriptors are closed on exec") {
  test::TempDir dir;
  auto file = File::open(dir / "a", OpenMode::kCreateOrOpen);
  REQUIRE(file.ok());
  CHECK((::fcntl(file->fd(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("a mapped file that is cut under us reads as zeros and check() names it") {
  test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "a", std::string(64 * 1024, 'x')).ok());
  auto mapped = MappedFile::open(dir / "a");
  REQUIRE(mapped.ok());
  CHECK(mapped->bytes()[60'000] == std::byte{'x'});
  CHECK(mapped->check().ok());
  REQUIRE(::truncate((dir / "a").c_str(), 4096) == 0);
  CHECK(mapped->bytes()[60'000] == std::byte{0});
  auto cut = mapped->check();
  REQUIRE_FALSE(cut.ok());
  CHECK(cut.error().code == Code::kDataLoss);
  CHECK_THAT(cut.error().message, Catch::Contains(dir / "a"));
  CHECK(mapped->bytes()[100] == std::byte{'x'});
}

TEST_CASE("an empty file can be mapped, and dropped pages can be read again") {
  test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "empty", "").ok());
  auto empty = MappedFile::open(dir / "empty");
  REQUIRE(empty.ok());
  CHECK(empty->bytes().empty());
  REQUIRE(write_file_atomic(dir / "a", std::string(16 * 1024, 'x')).ok());
  auto mapped = MappedFile::open(dir / "a");
  REQUIRE(mapped.ok());
  mapped->drop(0, mapped->size());
  CHECK(as_text(mapped->bytes()) == std::string(16 * 1024, 'x'));
  CHECK(mapped->check().ok());
}

TEST_CASE("directories are made with their parents and removed with their content, links not followed") {
  test::TempDir dir;
  REQUIRE(make_directories(dir / "a/b/c").ok());
  REQUIRE(make_directories(dir / "a/b/c").ok());
  REQUIRE(write_file_atomic(dir / "a/b/file", "x").ok());
  REQUIRE(write_file_atomic(dir / "outside", "x").ok());
  REQUIRE(::symlink((dir / "outside").c_str(), (dir / "a/link").c_str()) == 0);
  REQUIRE(remove_tree(dir / "a").ok());
  CHECK_FALSE(path_exists(dir / "a"));
  CHECK(path_exists(dir / "outside"));
  CHECK(remove_tree(dir / "a").ok());
}

TEST_CASE("the parent of a path is what stands before its last part") {
  CHECK(parent_directory("/a/b/c") == "/a/b");
  CHECK(parent_directory("/a/b/") == "/a");
  CHECK(parent_directory("/a") == "/");
  CHECK(parent_directory("/") == "/");
  CHECK(parent_directory("a") == ".");
  CHECK(parent_directory("a/b") == "a");
}

TEST_CASE("a home that is in use is refused, naming the process that has it, and free again afterwards") {
  test::TempDir dir;
  {
    auto first = HomeLock::acquire(dir.path());
    REQUIRE(first.ok());
    auto second = HomeLock::acquire(dir.path());
    REQUIRE_FALSE(second.ok());
    CHECK(second.error().code == Code::kFailedPrecondition);
    CHECK_THAT(second.error().message, Catch::Contains("process " + std::to_string(::getpid())));
  }
  CHECK(HomeLock::acquire(dir.path()).ok());
}

TEST_CASE("random names differ and have two digits a byte") {
  SystemRandom random;
  std::string a = random_hex(random, 8), b = random_hex(random, 8);
  CHECK(a.size() == 16);
  CHECK(a != b);
}

TEST_CASE("the monotonic clock does not go back and the other one knows the century") {
  SystemClock clock;
  auto before = clock.monotonic_ms();
  CHECK(clock.monotonic_ms() >= before);
  CHECK(clock.unix_ms() > 1'600'000'000'000);
}
