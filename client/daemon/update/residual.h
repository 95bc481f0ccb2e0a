// What error feedback carries from one update of a fragment to the next: a file of f32 values named by its content, or memory.
//
// docs/encodings.md has the formulas. A residual is never changed: each update makes the next one, and who keeps the node's
// records says which is in force, in one transaction with the update that it belongs to.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/codec/encoding.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"

namespace skerry::client {

/// Of one fragment. Nothing at all: zeros.
struct Residual {
  std::string fragment;       ///< may be empty where there is nothing
  std::string content_id;     ///< of the file; empty: `values`
  std::vector<float> values;  ///< in memory, where there is no file
};

/// "runs/r/state/residuals", "f0" and an id → the file.
std::string residual_path(const std::string& directory, const std::string& fragment, const std::string& content_id);

/// DATA_LOSS unless the file is there with the content that its name says.
Result<void> verify_residual(const std::string& directory, const Residual& residual);

/// Reads and writes a residual's successor from the front to the end.
class ResidualWalk {
 public:
  /// The residual before, and where the next one goes: a file in `directory`, or memory where it is empty.
  static Result<ResidualWalk> open(const std::string& directory, const std::string& fragment, const Residual& before,
                                   std::uint64_t elements);

  /// The elements first … first + values.size() − 1 of the residual before.
  Result<void> read(std::uint64_t first, std::span<float> values) const;
  /// The next elements of its successor.
  Result<void> write(std::span<const float> values);
  /// The successor, durable under its name.
  Result<Residual> finish();

 private:
  ResidualWalk() = default;
  std::string directory_;
  const Residual* before_ = nullptr;  // outlives the walk
  std::optional<File> old_file_;
  std::optional<File> new_file_;
  std::string temporary_;
  std::uint64_t written_ = 0;
  Residual next_;
  ContentHasher hasher_;
};

/// The residual with an update that will not count put back: before + what `payload` decodes to.
Result<Residual> give_back(const std::string& directory, const std::string& fragment, const Residual& before,
                           const Encoding& encoding, std::span<const std::byte> payload, std::uint64_t elements);

}  // namespace skerry::client
