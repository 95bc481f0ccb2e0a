#include "client/daemon/update/fragment_cache.h"

#include <catch2/catch.hpp>

#include <nlohmann/json.hpp>

#include "common/codec/compression.h"
#include "common/codec/encoding.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::client;

namespace {

ModelLayout layout() {
  auto built = build_layout(nlohmann::json{{"architecture", "linear"}, {"inputs", 3}, {"outputs", 2}});
  REQUIRE(built.ok());
  return *std::move(built);
}

std::string file_bytes(const std::vector<float>& values) {
  return *fragment_header(layout(), "all") + std::string(as_text(std::as_bytes(std::span(values))));
}

v1::FragmentVersion version(std::uint64_t number, const std::vector<float>& values, bool inline_bytes) {
  const std::string bytes = file_bytes(values);
  v1::FragmentVersion out;
  out.set_fragment("all");
  out.set_version(number);
  out.mutable_whole()->set_content_id(content_id(bytes));
  out.mutable_whole()->set_size(bytes.size());
  if (inline_bytes) out.mutable_whole()->set_inline_data(bytes);
  return out;
}

Result<void> no_download(const std::string&, std::uint64_t, const std::string&) { return unavailable("no network in this test"); }

const std::vector<float> kOld{1, 2, 3, 4, 5, 6, 7, 8};

}  // namespace

TEST_CASE("inline bytes are taken if they are what their id says") {
  test::TempDir dir;
  auto cache = FragmentCache::open(dir / "cache", layout());
  REQUIRE(cache.ok());
  auto good = version(3, kOld, true);
  REQUIRE(cache->bring(good, no_download).ok());
  REQUIRE(cache->find("all", 3) != nullptr);
  auto bad = version(4, kOld, true);
  (*bad.mutable_whole()->mutable_inline_data())[100] ^= 1;
  CHECK(cache->bring(bad, no_download).error().code == Code::kInvalidArgument);
  CHECK(cache->find("all", 4) == nullptr);
}

TEST_CASE("a step added to the version before gives the whole bit for bit, without a download") {
  test::TempDir dir;
  auto cache = FragmentCache::open(dir / "cache", layout());
  REQUIRE(cache->bring(version(3, kOld, true), no_download).ok());
  const Encoding* bf16 = *find_encoding("bf16");
  const std::vector<float> step{0.1f, -0.2f, 0.3f, 0.4f, 0, 1e-3f, 7, -8};
  std::string payload(bf16->encoded_bytes(step.size()), '\0');
  bf16->encode(step, 0, {}, std::as_writable_bytes(std::span(payload.data(), payload.size())));
  std::vector<float> next(step.size());
  bf16->decode(as_bytes_of(payload), next);
  for (std::size_t i = 0; i < next.size(); ++i) next[i] += kOld[i];

  auto wanted = version(4, next, false);
  wanted.mutable_step()->set_content_id(content_id(payload));
  wanted.mutable_step()->set_size(payload.size());
  wanted.mutable_step()->set_inline_data(payload);
  wanted.set_step_encoding("bf16");
  REQUIRE(cache->bring(wanted, no_download).ok());
  CHECK(*read_file(cache->find("all", 4)->path, 1 << 20) == file_bytes(next));
}

TEST_CASE("a compressed step is bounded by what its encoding gives, and adds up to the same") {
  test::TempDir dir;
  auto model = build_layout(nlohmann::json{{"architecture", "linear"}, {"inputs", 2999}, {"outputs", 1}});
  REQUIRE(model.ok());
  const std::string header = *fragment_header(*model, "all");
  const std::vector<float> old(3000, 1.0f);
  std::vector<float> next(old);
  std::vector<float> step(old.size());
  for (std::size_t i = 0; i < step.size(); i += 10) next[i] += step[i] = 0.5f;
  std::string payload(2 * step.size(), '\0');
  (*find_encoding("bf16"))->encode(step, 0, {}, std::as_writable_bytes(std::span(payload)));
  const auto whole = [&](const std::vector<float>& values) { return header + std::string(as_text(std::as_bytes(std::span(values)))); };
  const auto of = [&](std::uint64_t number, const std::vector<float>& values) {
    v1::FragmentVersion wanted;
    wanted.set_fragment("all");
    wanted.set_version(number);
    wanted.mutable_whole()->set_size(whole(values).size());
    wanted.mutable_whole()->set_content_id(content_id(whole(values)));
    return wanted;
  };
  auto cache = FragmentCache::open(dir / "cache", *model);
  auto first = of(3, old);
  first.mutable_whole()->set_inline_data(whole(old));
  REQUIRE(cache->bring(first, no_download).ok());
  const auto with_step = [&](const std::string& frame) {
    auto wanted = of(4, next);
    wanted.mutable_step()->set_content_id(content_id(frame));
    wanted.mutable_step()->set_size(frame.size());
    wanted.mutable_step()->set_inline_data(frame);
    wanted.set_step_encoding("bf16+zstd");
    return wanted;
  };
  const std::string bomb = *compressed(as_bytes_of(std::string(16u << 20, '\0')));
  CHECK_THAT(cache->bring(with_step(bomb), no_download).error().message, Catch::Contains("it comes to more than 6000 bytes"));
  CHECK_FALSE(cache->bring(with_step(payload), no_download).ok());
  REQUIRE(cache->bring(with_step(*compressed(as_bytes_of(payload))), no_download).ok());
  CHECK(*read_file(cache->find("all", 4)->path, 1 << 20) == whole(next));
}

TEST_CASE("a step that does not give the named whole is not used: the whole is fetched") {
  test::TempDir dir;
  auto cache = FragmentCache::open(dir / "cache", layout());
  REQUIRE(cache->bring(version(3, kOld, true), no_download).ok());
  const std::string payload(4 * kOld.size(), '\0');
  auto next = kOld;
  next[0] = 9;
  auto wanted = version(4, next, false);
  wanted.mutable_step()->set_content_id(content_id(payload));
  wanted.mutable_step()->set_size(payload.size());
  wanted.mutable_step()->set_inline_data(payload);
  wanted.set_step_encoding("f32");
  int downloads = 0;
  REQUIRE(cache->bring(wanted, [&](const std::string&, std::uint64_t, const std::string& path) {
    ++downloads;
    return write_file_atomic(path, file_bytes(next));
  }).ok());
  CHECK(downloads == 1);
}

TEST_CASE("a personal fragment is taken from nobody") {
  test::TempDir dir;
  auto model = build_layout(nlohmann::json{{"architecture", "linear"}, {"inputs", 3}, {"outputs", 2}, {"personal", {"bias"}}});
  REQUIRE(model.ok());
  auto cache = FragmentCache::open(dir / "cache", *model);
  REQUIRE(cache.ok());
  auto sent = version(0, kOld, true);
  sent.set_fragment("personal");
  CHECK_THAT(cache->bring(sent, no_download).error().message, Catch::Contains("is personal"));
}

TEST_CASE("a size that the model's layout does not have is refused before anything is fetched") {
  test::TempDir dir;
  auto cache = FragmentCache::open(dir / "cache", layout());
  auto wanted = version(1, kOld, false);
  wanted.mutable_whole()->set_size(1ull << 40);
  const auto refused = cache->bring(wanted, [](const std::string&, std::uint64_t, const std::string&) -> Result<void> {
    FAIL("nothing may be fetched");
    return {};
  });
  CHECK(refused.error().code == Code::kInvalidArgument);
}

TEST_CASE("what an earlier life fetched is used again, and a damaged file is not") {
  test::TempDir dir;
  {
    auto cache = FragmentCache::open(dir / "cache", layout());
    REQUIRE(cache->bring(version(3, kOld, true), no_download).ok());
  }
  auto again = FragmentCache::open(dir / "cache", layout());
  REQUIRE(again->bring(version(3, kOld, false), no_download).ok());
  const std::string path = again->find("all", 3)->path;
  auto bytes = *read_file(path, 1 << 20);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  REQUIRE(write_file_atomic(path, bytes).ok());
  auto third = FragmentCache::open(dir / "cache", layout());
  CHECK(third->bring(version(3, kOld, false), no_download).error().code == Code::kUnavailable);
}

TEST_CASE("trimming keeps the newest version and the trainer's base") {
  test::TempDir dir;
  auto cache = FragmentCache::open(dir / "cache", layout());
  for (std::uint64_t number = 1; number <= 4; ++number) {
    auto values = kOld;
    values[0] = static_cast<float>(number);
    REQUIRE(cache->bring(version(number, values, true), no_download).ok());
  }
  cache->trim({{"all", 2}});
  CHECK(cache->find("all", 1) == nullptr);
  CHECK(cache->find("all", 2) != nullptr);
  CHECK(cache->find("all", 3) == nullptr);
  CHECK(cache->find("all", 4) != nullptr);
  CHECK(list_directory(dir / "cache")->size() == 2);
}
