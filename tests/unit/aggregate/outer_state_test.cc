#include "server/aggregate/outer_state.h"

#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

OuterStateHeader header() { return {"adam", {"first_moment", "second_moment"}, 100, 7, 128}; }

// A whole state whose vectors are zeros.
std::string whole_state() {
  const OuterStateHeader head = header();
  std::string state(outer_state_size(head), '\0');
  const std::vector<std::uint64_t> checksums = {state_checksum(std::vector<std::byte>(400)),
                                                state_checksum(std::vector<std::byte>(400))};
  const auto encoded = encode_outer_state_header(head, checksums);
  REQUIRE(encoded.ok());
  state.replace(0, encoded->size(), *encoded);
  std::memcpy(state.data() + outer_state_checksums_offset(head), checksums.data(), 16);
  return state;
}

}  // namespace

TEST_CASE("a state's header comes back as it was written") {
  const auto decoded = decode_outer_state_header(as_bytes_of(whole_state()), "x");
  REQUIRE(decoded.ok());
  CHECK(decoded->optimizer == "adam");
  CHECK(decoded->vectors == std::vector<std::string>{"first_moment", "second_moment"});
  CHECK(decoded->elements == 100);
  CHECK(decoded->steps == 7);
  CHECK(decoded->data_offset == 128);
}

TEST_CASE("a state's bytes lie where the format says") {
  const OuterStateHeader head = header();
  CHECK(outer_state_vector_offset(head, 0) == 256);
  CHECK(outer_state_vector_offset(head, 1) == 256 + 448);  // 400 bytes, padded to a multiple of 64
  CHECK(outer_state_checksums_offset(head) == 256 + 2 * 448);
  CHECK(outer_state_size(head) == 256 + 2 * 448 + 2 * 8);
}

TEST_CASE("every flipped bit of the header and of the table of checksums is found") {
  const std::string good = whole_state();
  const std::size_t table = outer_state_checksums_offset(header());
  for (std::size_t at = 0; at < good.size(); ++at) {
    if (at >= 256 && at < table) continue;  // the vectors: who reads them checks them
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      const auto decoded = decode_outer_state_header(as_bytes_of(bad), "spool/state");
      REQUIRE(!decoded.ok());
      REQUIRE(decoded.error().code == Code::kDataLoss);
      REQUIRE(decoded.error().message.find("spool/state") != std::string::npos);
    }
  }
}

TEST_CASE("a state that was cut, anywhere, is found") {
  const std::string good = whole_state();
  for (std::size_t size = 0; size < good.size(); size += 13) {
    CHECK_FALSE(decode_outer_state_header(as_bytes_of(good.substr(0, size)), "x").ok());
  }
  CHECK_FALSE(decode_outer_state_header(as_bytes_of(good + "x"), "x").ok());
}

TEST_CASE("the checksum does not depend on how its words were cut") {
  const std::string bytes = bytes_of(some_values(1000, 3));
  const auto whole = state_checksum(as_bytes_of(bytes));
  for (const std::size_t piece : {4, 12, 32, 100}) {
    StateChecksum checksum;
    for (std::size_t at = 0; at < bytes.size(); at += piece) checksum.update(as_bytes_of(bytes.substr(at, piece)));
    CHECK(checksum.value() == whole);
  }
}

TEST_CASE("the checksum finds any flipped bit, a swap of words and missing zeros") {
  const std::string bytes = bytes_of(some_values(40, 4));
  const auto whole = state_checksum(as_bytes_of(bytes));
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string bad = bytes;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    REQUIRE(state_checksum(as_bytes_of(bad)) != whole);
  }
  const std::string swapped = bytes.substr(4, 4) + bytes.substr(0, 4) + bytes.substr(8);
  CHECK(state_checksum(as_bytes_of(swapped)) != whole);
  CHECK(state_checksum(std::vector<std::byte>(64)) != state_checksum(std::vector<std::byte>(96)));
}

TEST_CASE("names that do not fit the header are refused") {
  OuterStateHeader head = header();
  head.optimizer = std::string(32, 'x');
  CHECK_FALSE(encode_outer_state_header(head, {}).ok());
  head = header();
  head.vectors[1] = std::string(24, 'x');
  CHECK_FALSE(encode_outer_state_header(head, {}).ok());
  head.vectors.assign(8, "v");
  CHECK_FALSE(encode_outer_state_header(head, {}).ok());
}

TEST_CASE("chunks of a fragment cover every element once, whatever the header's size") {
  for (const std::uint64_t offset : {64u, 4096u, (4u << 20) - 64u, 4u << 20, (9u << 20) + 128u}) {
    const ChunkPartition partition{offset, 3'000'000};
    CHECK(partition.begin(0) == 0);
    CHECK(partition.begin(partition.first_chunk()) == 0);
    CHECK(partition.end(partition.chunks() - 1) == 3'000'000);
    for (std::uint64_t chunk = partition.first_chunk() + 1; chunk < partition.chunks(); ++chunk) {
      CHECK(offset + 4 * partition.begin(chunk) == chunk * (4u << 20));
    }
  }
}

}  // namespace skerry::server
