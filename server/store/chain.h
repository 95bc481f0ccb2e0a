// The receipt chain's arithmetic and its anchor. Internal to server/store; docs/storage.md is the specification.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/os/files.h"
#include "server/store/records.h"

namespace skerry::server {

/// Where a chain stands: how many links, and the newest one's hash (32 bytes; zeros before the first).
struct ChainHead {
  std::uint64_t sequence = 0;
  std::string hash = std::string(32, '\0');
};

/// Text fields such that no two lists of fields have the same bytes: each as its length in decimal, ':' and itself.
class FieldWriter {
 public:
  FieldWriter& add(std::string_view text);
  FieldWriter& add(std::uint64_t number) { return add(std::to_string(number)); }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// The raw hash of a link after `previous`; `link.hash` is ignored.
std::string link_hash(std::string_view previous, const ReceiptRecord& link);

/// Hex digest of the task ids that a version contains, in their order.
std::string counted_digest(const std::vector<std::string>& tasks);

/// Hex digest of what is released: run, fragment, version, exchange, the ids and sizes of whole and step, the counted
/// updates. It is the `reason` of the version's RELEASED link. The optimizer's state and `kept` are not part of it.
std::string release_digest(const VersionRecord& version);

/// `<home>/chain.head`: the newest acknowledged link, kept outside the database so that a database that has lost its
/// last commits is noticed. Two slots, written in turn; never synced, because an anchor that is behind does no harm.
class ChainAnchor {
 public:
  /// FAILED_PRECONDITION if there is none and `create` is false.
  static Result<ChainAnchor> open(const std::string& home, bool create);

  /// The newest head written; sequence 0 for a new one. DATA_LOSS if neither slot is whole.
  Result<ChainHead> read() const;

  Result<void> write(const ChainHead& head);

  /// Writes both slots and syncs, so that nothing older is left.
  Result<void> reset(const ChainHead& head);

 private:
  explicit ChainAnchor(File file) : file_(std::move(file)) {}
  File file_;
};

}  // namespace skerry::server
