#include "common/crypto/content_id.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "common/base/encoding_text.h"
#include "common/crypto/openssl_internal.h"

namespace skerry {
namespace {

constexpr std::string_view kPrefix("skerry-cargo-v1\0", 16);
constexpr std::string_view kScheme = "b2-";
constexpr std::size_t kIdLength = 3 + 64;

// Fetched once: a look-up by name costs more than hashing a small blob.
const EVP_MD* algorithm() {
  static EVP_MD* const md = EVP_MD_fetch(nullptr, "BLAKE2B-512", nullptr);
  return md;
}

// OpenSSL hashes can fail only for want of memory or of the algorithm itself; nothing can go on then.
void require(bool succeeded) {
  if (!succeeded) std::abort();
}

ChunkHash truncated(const unsigned char (&digest)[64]) {
  ChunkHash hash;
  std::memcpy(hash.data(), digest, hash.size());
  return hash;
}

std::string id_of(std::uint64_t size, std::span<const ChunkHash> leaves) {
  std::string message(kPrefix);
  message.reserve(kPrefix.size() + 8 + leaves.size() * sizeof(ChunkHash));
  for (int shift = 0; shift < 64; shift += 8) message += static_cast<char>((size >> shift) & 255);
  for (const ChunkHash& leaf : leaves) message.append(reinterpret_cast<const char*>(leaf.data()), leaf.size());
  return std::string(kScheme) + to_hex(hash_chunk(bytes_of(message)));
}

}  // namespace

ChunkHash hash_chunk(std::span<const std::byte> chunk) {
  unsigned char digest[64];
  require(EVP_Digest(chunk.data(), chunk.size(), digest, nullptr, algorithm(), nullptr) == 1);
  return truncated(digest);
}

std::vector<ChunkHash> hash_chunks(std::span<const std::byte> data, unsigned threads) {
  const std::size_t count = chunk_count(data.size());
  std::vector<ChunkHash> leaves(count);
  std::atomic<std::size_t> next = 0;
  auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++)
      leaves[i] = hash_chunk(data.subspan(i * kChunkBytes, chunk_size(data.size(), i)));
  };
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> helpers;
  for (std::size_t i = 1; i < std::min<std::size_t>(threads, count); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return leaves;
}

Result<std::string> content_id_of_chunks(std::uint64_t size, std::span<const ChunkHash> leaves) {
  if (leaves.size() != chunk_count(size))
    return invalid_argument("content of " + std::to_string(size) + " bytes has " + std::to_string(chunk_count(size)) +
                            " chunks, not " + std::to_string(leaves.size()));
  return id_of(size, leaves);
}

std::string content_id(std::span<const std::byte> data, unsigned threads) {
  return id_of(data.size(), hash_chunks(data, threads));
}

std::string content_id(std::string_view data) { return content_id(bytes_of(data)); }

Result<void> check_content_id(std::string_view id) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (id.size() == kIdLength && id.substr(0, kScheme.size()) == kScheme &&
      std::all_of(id.begin() + kScheme.size(), id.end(), is_digit))
    return {};
  // It may come from anywhere and go to a log: shortened, and only printable characters.
  std::string shown(id.substr(0, 80));
  for (char& c : shown)
    if (c < ' ' || c > '~') c = '?';
  return invalid_argument("'" + shown + (id.size() > 80 ? "…" : "") +
                          "' is not a content id: that is \"b2-\" and 64 lower-case hexadecimal digits");
}

struct ChunkHasher::State {
  openssl::MdContext context{EVP_MD_CTX_new()};
  void start() { require(context && EVP_DigestInit_ex2(context.get(), algorithm(), nullptr) == 1); }
};

ChunkHasher::ChunkHasher() : state_(std::make_unique<State>()) { state_->start(); }
ChunkHasher::~ChunkHasher() = default;
ChunkHasher::ChunkHasher(ChunkHasher&&) noexcept = default;
ChunkHasher& ChunkHasher::operator=(ChunkHasher&&) noexcept = default;

void ChunkHasher::update(std::span<const std::byte> piece) {
  require(EVP_DigestUpdate(state_->context.get(), piece.data(), piece.size()) == 1);
}

ChunkHash ChunkHasher::finish() {
  unsigned char digest[64];
  require(EVP_DigestFinal_ex(state_->context.get(), digest, nullptr) == 1);
  state_->start();
  return truncated(digest);
}

void ContentHasher::update(std::span<const std::byte> piece) {
  while (!piece.empty()) {
    const std::size_t room = kChunkBytes - size_ % kChunkBytes;
    const std::size_t taken = std::min(room, piece.size());
    chunk_.update(piece.first(taken));
    size_ += taken;
    if (taken == room) leaves_.push_back(chunk_.finish());
    piece = piece.subspan(taken);
  }
}

void ContentHasher::update(std::string_view piece) { update(bytes_of(piece)); }

std::string ContentHasher::finish() {
  if (size_ % kChunkBytes != 0) leaves_.push_back(chunk_.finish());
  std::string id = id_of(size_, leaves_);
  leaves_.clear();
  size_ = 0;
  return id;
}

}  // namespace skerry
