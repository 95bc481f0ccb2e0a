#include "common/codec/compression.h"

#include <cstring>
#include <string>
#include <vector>

#include <zstd.h>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

std::string text_of(std::size_t size) {
  std::string text;
  while (text.size() < size) text += "all of it " + std::to_string(text.size() % 97) + ", ";
  text.resize(size);
  return text;
}

std::string noise(std::size_t size) {
  std::string bytes(size, '\0');
  std::uint64_t state = 88172645463325252u;
  for (char& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<char>(state >> 32);
  }
  return bytes;
}

std::string frame_of(std::string_view bytes, int window_log = 0) {
  std::string frame(ZSTD_compressBound(bytes.size()), '\0');
  ZSTD_CCtx* context = ZSTD_createCCtx();
  if (window_log > 0) ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
  frame.resize(ZSTD_compress2(context, frame.data(), frame.size(), bytes.data(), bytes.size()));
  ZSTD_freeCCtx(context);
  return frame;
}

}  // namespace

TEST_CASE("what compresses comes back, from memory and from files, and noise is left alone") {
  const test::TempDir directory;
  for (const std::size_t size : {std::size_t{5'000}, std::size_t{5'000'000}}) {
    const std::string bytes = text_of(size);
    const auto frame = compressed(as_bytes_of(bytes));
    REQUIRE(frame.has_value());
    CHECK(static_cast<double>(frame->size()) < 0.97 * static_cast<double>(size));
    CHECK(*decompressed(as_bytes_of(*frame), size) == bytes);
    const auto written = compress_to_file(as_bytes_of(bytes), directory / "frame");
    REQUIRE(written.ok());
    REQUIRE(written->has_value());
    CHECK(*read_file(directory / "frame", 1 << 24) == *frame);
    CHECK(**written == frame->size());
    REQUIRE(decompress_to_file(as_bytes_of(*frame), size, directory / "bytes").ok());
    CHECK(*read_file(directory / "bytes", 1 << 24) == bytes);
  }
  const std::string random = noise(100'000);
  CHECK_FALSE(compressed(as_bytes_of(random)).has_value());
  const auto written = compress_to_file(as_bytes_of(random), directory / "noise");
  REQUIRE(written.ok());
  CHECK_FALSE(written->has_value());
  CHECK_FALSE(path_exists(directory / "noise"));
  CHECK_FALSE(compressed({}).has_value());
}

TEST_CASE("a frame that comes to more or less than it must is refused, and nothing is left of it") {
  const test::TempDir directory;
  const std::string bomb = frame_of(std::string(64u << 20, '\0'));
  REQUIRE(bomb.size() < 10'000);
  const auto in_memory = decompressed(as_bytes_of(bomb), 40'000);
  REQUIRE(!in_memory.ok());
  CHECK(in_memory.error().code == Code::kInvalidArgument);
  CHECK(in_memory.error().message.find("it comes to more than 40000 bytes") != std::string::npos);
  CHECK_FALSE(decompress_to_file(as_bytes_of(bomb), (64u << 20) - 1, directory / "bomb").ok());
  CHECK_FALSE(path_exists(directory / "bomb"));
  CHECK(decompressed(as_bytes_of(bomb), (64u << 20) + 1).error().message.find("must come to 67108865") != std::string::npos);
}

TEST_CASE("a frame that is cut, damaged, followed by something, empty, or wants much memory is refused") {
  const std::string bytes = text_of(50'000);
  const std::string frame = frame_of(bytes);
  REQUIRE(decompressed(as_bytes_of(frame), bytes.size()).ok());
  const auto refused = [&](const std::string& hostile, std::uint64_t size) {
    const auto result = decompressed(as_bytes_of(hostile), size);
    REQUIRE(!result.ok());
    CHECK(result.error().code == Code::kInvalidArgument);
    return result.error().message;
  };
  CHECK(refused(frame.substr(0, frame.size() - 1), bytes.size()).find("it is cut") != std::string::npos);
  CHECK(refused(frame + "x", bytes.size()).find("something follows its frame") != std::string::npos);
  CHECK(refused(frame + frame, 2 * bytes.size()).find("something follows") != std::string::npos);
  refused("", 10);
  refused("not a frame", 10);
  std::string damaged = frame;
  damaged[1] ^= 1;
  refused(damaged, bytes.size());
  const std::string wide = frame_of(noise(20u << 20), 25);
  refused(wide, 20u << 20);
}

TEST_CASE("an encoding's name tells whether its payload was compressed") {
  const auto plain = find_wire_encoding("topk2");
  const auto packed = find_wire_encoding("topk2+zstd");
  REQUIRE(plain.ok());
  REQUIRE(packed.ok());
  CHECK_FALSE(plain->zstd);
  CHECK(packed->zstd);
  CHECK(plain->encoding == packed->encoding);
  CHECK(wire_name("int8", true) == "int8+zstd");
  CHECK(wire_name("int8", false) == "int8");
  CHECK_FALSE(find_wire_encoding("+zstd").ok());
  CHECK_FALSE(find_wire_encoding("int8+zstd+zstd").ok());
}

}  // namespace skerry
