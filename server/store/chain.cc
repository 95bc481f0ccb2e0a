#include "server/store/chain.h"

#include <charconv>
#include <cstdio>

#include "common/base/encoding_text.h"
#include "common/crypto/sha256.h"

namespace skerry::server {
namespace {

constexpr std::uint64_t kSlotBytes = 128;

/// "<sequence> <hash> <check>\n", padded with spaces to a slot.
std::string anchor_slot(const ChainHead& head) {
  std::string text = std::to_string(head.sequence) + " " + to_hex(head.hash);
  text += " " + sha256_hex(text).substr(0, 16);
  text.resize(kSlotBytes - 1, ' ');
  return text + "\n";
}

/// The head in a slot; sequence 0 and an empty hash if it is not whole.
ChainHead parse_slot(std::string_view slot) {
  ChainHead none{0, ""};
  std::size_t first = slot.find(' ');
  std::size_t second = first == std::string_view::npos ? first : slot.find(' ', first + 1);
  if (second == std::string_view::npos || slot.size() < second + 17) return none;
  if (sha256_hex(slot.substr(0, second)).substr(0, 16) != slot.substr(second + 1, 16)) return none;
  ChainHead head;
  auto parsed = std::from_chars(slot.data(), slot.data() + first, head.sequence);
  auto hash = from_hex(slot.substr(first + 1, second - first - 1));
  if (parsed.ec != std::errc() || !hash.ok() || hash->size() != 32) return none;
  head.hash = *std::move(hash);
  return head;
}

}  // namespace

FieldWriter& FieldWriter::add(std::string_view text) {
  bytes_ += std::to_string(text.size());
  bytes_ += ':';
  bytes_ += text;
  return *this;
}

std::string link_hash(std::string_view previous, const ReceiptRecord& link) {
  FieldWriter fields;
  fields.add(link.sequence).add(link.kind).add(link.run_id).add(link.subject).add(link.node);
  fields.add(link.exchange).add(link.version).add(link.reason).add(static_cast<std::uint64_t>(link.time_ms));
  Sha256 hash;
  hash.update(previous);
  hash.update(fields.bytes());
  return std::string(as_text(hash.finish()));
}

std::string counted_digest(const std::vector<std::string>& tasks) {
  FieldWriter fields;
  for (const std::string& task : tasks) fields.add(task);
  return sha256_hex(fields.bytes());
}

std::string release_digest(const VersionRecord& version) {
  FieldWriter fields;
  fields.add(version.run_id).add(version.fragment).add(version.version).add(version.exchange);
  fields.add(version.whole.content_id).add(version.whole.size);
  fields.add(version.step.content_id).add(version.step.size).add(version.step_encoding);
  fields.add(version.counted_digest).add(static_cast<std::uint64_t>(version.time_ms));
  return sha256_hex(fields.bytes());
}

Result<ChainAnchor> ChainAnchor::open(const std::string& home, bool create) {
  const std::string path = join_path(home, "chain.head");
  if (!create && !path_exists(path)) {
    return failed_precondition(path +
                               " is missing, so nobody can tell whether skerry.db is the newest one; if this home was "
                               "restored from a backup, start once with --restored");
  }
  const bool fresh = !path_exists(path);
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrOpen));
  ChainAnchor anchor(std::move(file));
  if (fresh) {
    SKERRY_TRY(anchor.reset({}));
    SKERRY_TRY(fsync_directory(home));
  }
  return anchor;
}

Result<ChainHead> ChainAnchor::read() const {
  std::string text(2 * kSlotBytes, '\0');
  SKERRY_ASSIGN(std::size_t count, file_.pread(std::as_writable_bytes(std::span(text.data(), text.size())), 0));
  text.resize(count);
  ChainHead newest{0, ""};
  for (std::size_t begin = 0; begin < text.size(); begin += kSlotBytes) {
    ChainHead head = parse_slot(std::string_view(text).substr(begin, kSlotBytes));
    if (!head.hash.empty() && (newest.hash.empty() || head.sequence > newest.sequence)) newest = std::move(head);
  }
  if (newest.hash.empty()) {
    return data_loss(file_.path() +
                     " is damaged; if skerry.db is known to be the newest one, start once with --restored");
  }
  return newest;
}

Result<void> ChainAnchor::write(const ChainHead& head) {
  return file_.pwrite(as_bytes_of(anchor_slot(head)), head.sequence % 2 * kSlotBytes);
}

Result<void> ChainAnchor::reset(const ChainHead& head) {
  SKERRY_TRY(file_.pwrite(as_bytes_of(anchor_slot(head) + anchor_slot(head)), 0));
  return file_.fsync();
}

}  // namespace skerry::server
