// The expected ids were computed independently, by Python's hashlib:
//
//   def cid(b):
//       leaves = [hashlib.blake2b(b[i:i+(4<<20)]).digest()[:32] for i in range(0, len(b), 4<<20)]
//       return "b2-" + hashlib.blake2b(b"skerry-cargo-v1\0" + len(b).to_bytes(8, "little") + b"".join(leaves)).digest()[:32].hex()
//   x = bytes((i*7 + i//251) % 256 for i in range(2*(4<<20) + 5))
#include "common/crypto/content_id.h"

#include <algorithm>
#include <string>

#include <catch2/catch.hpp>

#include "common/base/encoding_text.h"

using namespace skerry;

namespace {

std::string sample(std::size_t size) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>((i * 7 + i / 251) % 256);
  return text;
}

constexpr const char* kTwoChunksAndFive = "b2-c34507ff85f5fc802c1d1528a50a258a3499bed4e47dd39f740cdef0bc3cf713";

}  // namespace

TEST_CASE("content ids agree with an independent implementation") {
  CHECK(content_id(std::string_view()) == "b2-21d5a49e3dd15bb10ede8632dbbf4e7d5f7e015b064cedbc0faa1e263cd61ddc");
  CHECK(content_id("abc") == "b2-05872f7cbc03a11594fa448b34732baa94a2021ed323e8bd434a7110fcb5a3d0");
  const std::string x = sample(2 * kChunkBytes + 5);
  CHECK(content_id(x) == kTwoChunksAndFive);
  CHECK(content_id(x.substr(0, kChunkBytes)) == "b2-ffc211408ede83f68d17dc36bf8d3c24bf8b2e5ee60fff6a2ab8668839108bd3");
  CHECK(content_id(x.substr(0, kChunkBytes + 1)) == "b2-20d9b68ff9afa1a647ce7ca934947778280f9b9b73f95329e65d4567ebacb87f");
  CHECK(to_hex(hash_chunk(bytes_of("abc"))) == "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1");
}

TEST_CASE("the pieces in which content arrives do not matter") {
  const std::string x = sample(2 * kChunkBytes + 5);
  const std::size_t piece = GENERATE(as<std::size_t>(), 1'000'003, kChunkBytes - 1, kChunkBytes, 3 * kChunkBytes);
  ContentHasher hasher;
  for (std::size_t at = 0; at < x.size(); at += piece) hasher.update(std::string_view(x).substr(at, piece));
  CHECK(hasher.size() == x.size());
  CHECK(hasher.finish() == kTwoChunksAndFive);
  CHECK(hasher.size() == 0);
  CHECK(hasher.finish() == content_id(std::string_view()));
}

TEST_CASE("chunks may be hashed in any order and on several threads") {
  const std::string x = sample(2 * kChunkBytes + 5);
  CHECK(content_id(bytes_of(x), 2) == kTwoChunksAndFive);
  CHECK(content_id(bytes_of(x), 0) == kTwoChunksAndFive);
  std::vector<ChunkHash> leaves(3);
  for (std::size_t i : {2, 0, 1})
    leaves[i] = hash_chunk(bytes_of(x).subspan(i * kChunkBytes, chunk_size(x.size(), i)));
  CHECK(*content_id_of_chunks(x.size(), leaves) == kTwoChunksAndFive);
  ChunkHasher pieces;
  pieces.update(bytes_of(x).first(100));
  pieces.update(bytes_of(x).subspan(100, kChunkBytes - 100));
  CHECK(pieces.finish() == leaves[0]);
}

TEST_CASE("a changed byte, a swapped chunk and another size change the id") {
  std::string x = sample(2 * kChunkBytes + 5);
  const auto leaves = hash_chunks(bytes_of(x));
  CHECK(*content_id_of_chunks(x.size(), std::vector{leaves[1], leaves[0], leaves[2]}) != kTwoChunksAndFive);
  CHECK(*content_id_of_chunks(x.size() + 1, leaves) != kTwoChunksAndFive);
  x.back() ^= 1;
  CHECK(content_id(x) != kTwoChunksAndFive);
}

TEST_CASE("a wrong number of chunk hashes is refused with both numbers") {
  const auto result = content_id_of_chunks(kChunkBytes + 1, std::vector<ChunkHash>(1));
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().message == "content of 4194305 bytes has 2 chunks, not 1");
}

TEST_CASE("chunk arithmetic holds at the edges") {
  CHECK(chunk_count(0) == 0);
  CHECK(chunk_count(1) == 1);
  CHECK(chunk_count(kChunkBytes) == 1);
  CHECK(chunk_count(kChunkBytes + 1) == 2);
  CHECK(chunk_size(kChunkBytes + 1, 0) == kChunkBytes);
  CHECK(chunk_size(kChunkBytes + 1, 1) == 1);
  CHECK(chunk_size(kChunkBytes + 1, 2) == 0);
}

TEST_CASE("only a content id passes for one") {
  CHECK(check_content_id(content_id("abc")).ok());
  for (std::string bad : {std::string(), std::string("b2-"), std::string("b3-") + std::string(64, 'a'),
                          "b2-" + std::string(63, 'a'), "b2-" + std::string(65, 'a'), "b2-" + std::string(64, 'A'),
                          "b2-../" + std::string(61, 'a'), "b2-" + std::string(63, 'a') + "\n"})
    CHECK_FALSE(check_content_id(bad).ok());
  const auto error = check_content_id("\n" + std::string(500, 'x')).error();
  CHECK(error.message.find('\n') == std::string::npos);
  CHECK(error.message.size() < 250);
}
