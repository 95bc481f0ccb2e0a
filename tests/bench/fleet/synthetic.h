// Updates without training: distinct for every node and task, finite, repeatable, and made at the speed of memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/daemon/machine/client_machine.h"
#include "common/base/result.h"
#include "common/codec/encoding.h"
#include "common/model/layout.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::bench {

/// Small values that every update is cut from: the update of a key begins at the key's place and goes round.
class SyntheticUpdates {
 public:
  explicit SyntheticUpdates(std::uint64_t seed);

  /// The outer gradient that node `node` would have measured for `fragment` in `task`: its bytes in the update itself up to
  /// `inline_limit`, else in the file `path` (then named in `uploads`), which is not made durable.
  Result<v1::FragmentUpdate> make(const FragmentLayout& fragment, const Encoding& encoding, std::uint64_t base_version,
                                  std::uint64_t key, std::uint64_t inline_limit, const std::string& path,
                                  std::vector<client::PendingUpload>& uploads) const;

  /// A key from what distinguishes an update.
  static std::uint64_t key_of(std::string_view node, std::string_view task, std::string_view fragment);

 private:
  std::vector<float> values_;
};

}  // namespace skerry::bench
