#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <random>
#include <thread>

#include <catch2/catch.hpp>

#include "common/crypto/content_id.h"
#include "server/store/cargo_store.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::server;

namespace {

/// Three chunks: two whole ones and 1,000 bytes.
constexpr std::uint64_t kSize = 2 * kChunkBytes + 1000;

const std::string& content() {
  static const std::string bytes = [] {
    std::mt19937_64 generator(7);
    std::string text(kSize, '\0');
    for (char& c : text) c = static_cast<char>(generator());
    return text;
  }();
  return bytes;
}

UploadRequest request_for(const std::string& task = "r-1-1.5", const std::string& node = "ada") {
  return {task, node, content_id(std::string_view(content())), kSize};
}

std::unique_ptr<CargoStore> open_cargo(const test::TempDir& dir, const CargoLimits& limits = {}) {
  auto cargo = CargoStore::open(dir.path(), limits);
  REQUIRE(cargo.ok());
  return std::move(cargo).value();
}

/// Sends `length` bytes from `offset` as one body in pieces of `piece` bytes.
Result<UploadStatus> send(CargoStore& cargo, const UploadRequest& request, std::uint64_t offset, std::uint64_t length,
                          std::size_t piece = 65'536, const std::string& bytes = content()) {
  SKERRY_ASSIGN(ChunkWriter writer, cargo.write_upload(request, offset));
  for (std::uint64_t done = 0; done < length; done += piece) {
    auto step = static_cast<std::size_t>(std::min<std::uint64_t>(piece, length - done));
    SKERRY_TRY(writer.write(as_bytes_of(std::string_view(bytes).substr(offset + done, step))));
  }
  return writer.finish();
}

std::string spooled(CargoStore& cargo, const UploadRequest& request) {
  auto path = cargo.spool_file(request.task, request.content_id);
  REQUIRE(path.ok());
  auto bytes = read_file(*path, kSize);
  REQUIRE(bytes.ok());
  return *bytes;
}

}  // namespace

TEST_CASE("an upload in one body is complete, sealed and what was sent") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  auto status = send(*cargo, request_for(), 0, kSize);
  REQUIRE(status.ok());
  CHECK(status->complete);
  CHECK(status->missing.empty());
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("the size of the pieces does not matter") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  CHECK(send(*cargo, request_for("r.1"), 0, kSize, 1'000'003)->complete);
  CHECK(send(*cargo, request_for("r.2"), 0, kSize, kSize)->complete);
  CHECK(spooled(*cargo, request_for("r.1")) == content());
  CHECK(spooled(*cargo, request_for("r.2")) == content());
}

TEST_CASE("chunks may come out of order, and what is missing is told in whole ranges") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  CHECK(cargo->upload_status(request_for())->missing.size() == 1);
  auto status = send(*cargo, request_for(), kChunkBytes, kChunkBytes);
  REQUIRE(status.ok());
  REQUIRE(status->missing.size() == 2);
  CHECK(status->missing[0].first == 0);
  CHECK(status->missing[0].last == kChunkBytes - 1);
  CHECK(status->missing[1].first == 2 * kChunkBytes);
  CHECK(status->missing[1].last == kSize - 1);
  CHECK_FALSE(cargo->spool_file("r-1-1.5", request_for().content_id).ok());
  CHECK_FALSE(send(*cargo, request_for(), 2 * kChunkBytes, 1000)->complete);
  CHECK(send(*cargo, request_for(), 0, kChunkBytes)->complete);
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("a body that breaks off keeps its whole chunks and loses the rest") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  {
    auto writer = cargo->write_upload(request_for(), 0);
    REQUIRE(writer->write(as_bytes_of(content().substr(0, kChunkBytes + 500))).ok());
  }
  auto status = cargo->begin_upload(request_for());
  REQUIRE(status->missing.size() == 1);
  CHECK(status->missing[0].first == kChunkBytes);
  CHECK(send(*cargo, request_for(), kChunkBytes, kSize - kChunkBytes)->complete);
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("sending a chunk again is harmless, before and after completion, whatever its bytes") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  REQUIRE(send(*cargo, request_for(), 0, kChunkBytes).ok());
  REQUIRE(send(*cargo, request_for(), 0, kChunkBytes, 65'536, std::string(kSize, 'z')).ok());
  CHECK(send(*cargo, request_for(), kChunkBytes, kSize - kChunkBytes)->complete);
  CHECK(send(*cargo, request_for(), 0, kSize)->complete);
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("wrong content is DATA_LOSS, the upload is dropped and the right content may follow") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  std::string wrong = content();
  wrong[12'345] = static_cast<char>(wrong[12'345] ^ 1);
  auto refused = send(*cargo, request_for(), 0, kSize, 65'536, wrong);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kDataLoss);
  CHECK(cargo->spool_bytes_of("ada") == 0);
  CHECK(list_directory(dir / "spool")->empty());
  CHECK(send(*cargo, request_for(), 0, kSize)->complete);
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("more bytes than announced, another size and a crooked offset are INVALID_ARGUMENT") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  auto writer = cargo->write_upload(request_for(), 2 * kChunkBytes);
  auto beyond = writer->write(as_bytes_of(std::string(1001, 'x')));
  REQUIRE_FALSE(beyond.ok());
  CHECK(beyond.error().code == Code::kInvalidArgument);
  CHECK(cargo->write_upload(request_for(), 5).error().code == Code::kInvalidArgument);
  CHECK(cargo->write_upload(request_for(), 3 * kChunkBytes).error().code == Code::kInvalidArgument);
  UploadRequest other = request_for();
  other.size += 1;
  CHECK(cargo->begin_upload(other).error().code == Code::kInvalidArgument);
  other.size = 0;
  CHECK(cargo->begin_upload(other).error().code == Code::kInvalidArgument);
  other = request_for("../../r.1");
  CHECK(cargo->begin_upload(other).error().code == Code::kInvalidArgument);
}

TEST_CASE("an upload goes on after a restart, without the chunk whose bytes were lost") {
  test::TempDir dir;
  {
    auto cargo = open_cargo(dir);
    REQUIRE(send(*cargo, request_for(), 0, 2 * kChunkBytes).ok());
  }
  // A power cut took the end of the second chunk: zeros stand there, though the description claims the chunk.
  std::string part = dir / ("spool/" + request_for().task + "." + request_for().content_id + ".part");
  auto file = File::open(part, OpenMode::kReadWrite);
  REQUIRE(file.ok());
  REQUIRE(file->pwrite(as_bytes_of(std::string(4096, '\0')), 2 * kChunkBytes - 4096).ok());

  auto cargo = open_cargo(dir);
  CHECK(cargo->spool_bytes_of("ada") == kSize);
  auto status = cargo->upload_status(request_for());
  REQUIRE(status.ok());
  REQUIRE(status->missing.size() == 1);
  CHECK(status->missing[0].first == kChunkBytes);
  CHECK(send(*cargo, request_for(), kChunkBytes, kSize - kChunkBytes)->complete);
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("an upload whose file was cut or whose description is torn goes on or begins anew") {
  test::TempDir dir;
  const std::string base = dir / ("spool/" + request_for().task + "." + request_for().content_id);
  {
    auto cargo = open_cargo(dir);
    REQUIRE(send(*cargo, request_for(), 0, 2 * kChunkBytes).ok());
  }
  REQUIRE(::truncate((base + ".part").c_str(), static_cast<off_t>(kChunkBytes + 10)) == 0);
  {
    auto cargo = open_cargo(dir);
    CHECK(cargo->upload_status(request_for())->missing[0].first == kChunkBytes);
  }
  REQUIRE(::truncate((base + ".info").c_str(), 20) == 0);
  auto cargo = open_cargo(dir);
  CHECK(cargo->upload_status(request_for())->missing[0].first == 0);
  CHECK_FALSE(path_exists(base + ".part"));
  CHECK(send(*cargo, request_for(), 0, kSize)->complete);
}

TEST_CASE("an upload that was whole when the process ended is completed by asking") {
  test::TempDir dir;
  {
    auto cargo = open_cargo(dir);
    auto writer = cargo->write_upload(request_for(), 0);
    REQUIRE(writer->write(as_bytes_of(content())).ok());  // all there, but finish() was never reached
  }
  auto cargo = open_cargo(dir);
  CHECK(cargo->begin_upload(request_for())->complete);
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("a sealed update is still complete after a restart and counts for its node") {
  test::TempDir dir;
  REQUIRE(send(*open_cargo(dir), request_for(), 0, kSize)->complete);
  auto cargo = open_cargo(dir);
  CHECK(cargo->upload_status(request_for())->complete);
  CHECK(cargo->spool_bytes_of("ada") == kSize);
  CHECK(cargo->spool_tasks() == std::vector<std::string>{"r-1-1.5"});
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("of two writers on one chunk the newer goes on and the older is told") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  auto older = cargo->write_upload(request_for(), 0);
  REQUIRE(older->write(as_bytes_of(std::string(1000, 'z'))).ok());
  auto newer = cargo->write_upload(request_for(), 0);
  REQUIRE(newer->write(as_bytes_of(content().substr(0, 500))).ok());
  auto told = older->write(as_bytes_of(std::string(1000, 'z')));
  REQUIRE_FALSE(told.ok());
  CHECK(told.error().code == Code::kAborted);
  CHECK(told.error().retryable);
  REQUIRE(newer->write(as_bytes_of(content().substr(500))).ok());
  CHECK(newer->finish()->complete);
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("many writers at once on one upload, some with wrong bytes given up, leave the right content") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&cargo, i] {
      for (int attempt = 0; attempt < 50; ++attempt) {
        auto result = send(*cargo, request_for(), static_cast<std::uint64_t>(i % 2) * kChunkBytes,
                           kSize - static_cast<std::uint64_t>(i % 2) * kChunkBytes, 300'000);
        if (result.ok() && result->complete) return;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(send(*cargo, request_for(), 0, kSize)->complete);
  CHECK(spooled(*cargo, request_for()) == content());
}

TEST_CASE("two tasks may upload the same content, and neither gets it without sending it") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  REQUIRE(send(*cargo, request_for("r.1", "ada"), 0, kSize)->complete);
  CHECK_FALSE(cargo->begin_upload(request_for("r.2", "mal"))->complete);
  cargo->end_task("r.1");
  CHECK_FALSE(cargo->spool_file("r.1", request_for().content_id).ok());
  CHECK(send(*cargo, request_for("r.2", "mal"), 0, kSize)->complete);
}

TEST_CASE("ending a task frees its files and its quota and aborts who is still writing") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  REQUIRE(send(*cargo, request_for("r.1"), 0, kSize)->complete);
  auto writer = cargo->write_upload(request_for("r.2"), 0);
  REQUIRE(writer->write(as_bytes_of("abc")).ok());
  CHECK(cargo->spool_bytes_of("ada") == 2 * kSize);
  cargo->end_task("r.1");
  cargo->end_task("r.2");
  CHECK(cargo->spool_bytes_of("ada") == 0);
  CHECK(list_directory(dir / "spool")->empty());
  CHECK(writer->write(as_bytes_of("abc")).error().code == Code::kAborted);
}

TEST_CASE("an upload to which nobody writes ends after its idle time") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  REQUIRE(send(*cargo, request_for("r.1"), 0, kSize)->complete);
  REQUIRE(send(*cargo, request_for("r.2"), 0, kChunkBytes).ok());
  CHECK(cargo->end_idle_uploads(3600) == 0);
  CHECK(cargo->end_idle_uploads(0) == 1);
  CHECK(cargo->spool_tasks() == std::vector<std::string>{"r.1"});
}

TEST_CASE("quotas of node, run, unfinished uploads and free disk are RESOURCE_EXHAUSTED with both numbers") {
  test::TempDir dir;
  CargoLimits limits;
  limits.bytes_per_node = 2 * kSize;
  limits.bytes_per_run = 3 * kSize;
  limits.partial_uploads_per_node = 2;
  auto cargo = open_cargo(dir, limits);
  REQUIRE(cargo->begin_upload(request_for("r.1", "ada")).ok());
  REQUIRE(cargo->begin_upload(request_for("r.2", "ada")).ok());
  auto node = cargo->begin_upload(request_for("r.3", "ada"));
  REQUIRE_FALSE(node.ok());
  CHECK(node.error().code == Code::kResourceExhausted);
  CHECK(node.error().retryable);
  CHECK_THAT(node.error().message, Catch::Contains("node ada") && Catch::Contains(std::to_string(2 * kSize)));
  REQUIRE(cargo->begin_upload(request_for("r.4", "bob")).ok());
  CHECK_THAT(cargo->begin_upload(request_for("r.5", "bob")).error().message, Catch::Contains("the run"));
  REQUIRE(cargo->begin_upload(request_for("other.5", "bob")).ok());
  CHECK(cargo->begin_upload(request_for("r.1", "ada")).ok());  // one that is under way goes on
  cargo->end_task("r.1");
  CHECK(cargo->begin_upload(request_for("other.6", "ada")).ok());

  limits = {};
  limits.partial_uploads_per_node = 1;
  cargo = open_cargo(dir, limits);
  CHECK_THAT(cargo->begin_upload(request_for("r.9", "ada")).error().message, Catch::Contains("unfinished uploads"));

  limits = {};
  limits.minimum_free_bytes = ~std::uint64_t{0};
  cargo = open_cargo(dir, limits);
  CHECK_THAT(cargo->begin_upload(request_for("r.9", "eve")).error().message, Catch::Contains("bytes free"));
}

TEST_CASE("a disk that is full when an upload begins is RESOURCE_EXHAUSTED and costs no quota") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  rlimit small{1 << 20, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  auto refused = cargo->write_upload(request_for(), 0);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kResourceExhausted);
  CHECK(cargo->spool_bytes_of("ada") == 0);
  CHECK(send(*cargo, request_for(), 0, kSize)->complete);
}

TEST_CASE("an operator's upload becomes cargo and is then known as complete") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  UploadRequest request = request_for("", "operator/ada");
  CHECK_FALSE(cargo->upload_status(request)->complete);
  CHECK(send(*cargo, request, 0, kSize)->complete);
  CHECK(*cargo->cargo_size(request.content_id) == kSize);
  CHECK(cargo->verify_cargo(request.content_id).ok());
  CHECK(cargo->upload_status(request)->complete);
  CHECK(cargo->begin_upload(request)->complete);
  CHECK(list_directory(dir / "spool")->empty());
  CHECK(cargo->spool_bytes_of("operator/ada") == 0);
}

TEST_CASE("a collection ends uploads of ended tasks and removes sealed updates that nobody owns") {
  test::TempDir dir;
  auto cargo = open_cargo(dir);
  for (const char* task : {"r.1", "r.2", "r.3", "r.4"}) REQUIRE(send(*cargo, request_for(task), 0, kSize)->complete);
  for (const char* task : {"r.3", "r.4"}) {  // their descriptions were lost in a power cut
    REQUIRE(remove_file(dir / ("spool/" + std::string(task) + "." + request_for().content_id + ".info")).ok());
  }
  cargo = open_cargo(dir);
  LiveFiles live;
  live.tasks = {"r.3"};
  live.ended_tasks = {"r.1"};
  CHECK(cargo->collect(live)->files == 2);
  CHECK_FALSE(cargo->spool_file("r.1", request_for().content_id).ok());
  CHECK(cargo->spool_file("r.2", request_for().content_id).ok());
  CHECK(cargo->spool_file("r.3", request_for().content_id).ok());
  CHECK_FALSE(cargo->spool_file("r.4", request_for().content_id).ok());
}
