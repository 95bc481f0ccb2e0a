#include "tests/bench/fleet/synthetic.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>

#include "common/crypto/content_id.h"
#include "common/os/files.h"

namespace skerry::bench {
namespace {

constexpr std::size_t kPeriod = (1u << 20) - 3;  // odd, so that the blocks of a large update differ
constexpr std::size_t kBlock = 64 * 1024;
constexpr float kLargest = 1e-3f;

std::uint64_t mix(std::uint64_t z) {  // SplitMix64
  z += 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

}  // namespace

SyntheticUpdates::SyntheticUpdates(std::uint64_t seed) : values_(kPeriod + kBlock) {
  for (std::size_t i = 0; i < kPeriod; ++i)
    values_[i] = kLargest * (static_cast<float>(mix(seed + i) >> 40) / static_cast<float>(1 << 23) - 1.0f);
  // A block that reaches beyond the end finds the beginning there.
  std::copy_n(values_.begin(), kBlock, values_.begin() + kPeriod);
}

std::uint64_t SyntheticUpdates::key_of(std::string_view node, std::string_view task, std::string_view fragment) {
  std::uint64_t key = 0;
  for (const std::string_view part : {node, task, fragment})
    for (const char c : part) key = mix(key ^ static_cast<unsigned char>(c));
  return key;
}

Result<v1::FragmentUpdate> SyntheticUpdates::make(const FragmentLayout& fragment, const Encoding& encoding, std::uint64_t base_version,
                                                  std::uint64_t key, std::uint64_t inline_limit, const std::string& path,
                                                  std::vector<client::PendingUpload>& uploads) const {
  v1::FragmentUpdate update;
  update.set_fragment(fragment.name);
  update.set_base_version(base_version);
  update.set_encoding(std::string(encoding.name()));
  const std::uint64_t bytes = encoding.encoded_bytes(fragment.elements);
  const bool in_message = bytes <= inline_limit;
  std::optional<File> file;
  if (!in_message) {
    SKERRY_ASSIGN(File opened, File::open(path, OpenMode::kCreateOrEmpty));
    file.emplace(std::move(opened));
  }
  const std::size_t start = static_cast<std::size_t>(key % kPeriod);
  const bool as_it_is = encoding.name() == "f32";
  ContentHasher hasher;
  std::vector<std::byte> encoded;
  std::string payload;
  for (std::uint64_t first = 0; first < fragment.elements; first += kBlock) {
    const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(kBlock, fragment.elements - first));
    const auto values = std::span(values_).subspan(static_cast<std::size_t>((start + first) % kPeriod), count);
    std::span<const std::byte> piece = std::as_bytes(values);
    if (!as_it_is) {
      encoded.resize(static_cast<std::size_t>(encoding.encoded_bytes(count)));
      encoding.encode(values, first, {.stochastic = false, .seed = key}, encoded);
      piece = encoded;
    }
    hasher.update(piece);
    if (in_message) payload.append(as_text(piece));
    else SKERRY_TRY(file->pwrite(piece, encoding.encoded_bytes(first)));
  }
  // The values are uniform, so the norm is known without another walk.
  update.set_norm(static_cast<double>(kLargest) * std::sqrt(static_cast<double>(fragment.elements) / 3.0));
  update.mutable_data()->set_size(bytes);
  update.mutable_data()->set_content_id(hasher.finish());
  if (in_message) update.mutable_data()->set_inline_data(std::move(payload));
  else uploads.push_back({update.data().content_id(), bytes});
  return update;
}

}  // namespace skerry::bench
