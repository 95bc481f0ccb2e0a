// What an offered update must prove before the run machine hears of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/config/run_spec.h"
#include "common/identity/authenticate.h"
#include "common/model/layout.h"
#include "skerry/v1/fleet.pb.h"
#include "strategies/aggregation/rule.h"

namespace skerry::server {

/// The most metrics and fragments that one update may carry.
inline constexpr int kMaxUpdateMetrics = 64;

/// A fragment as aggregation sees it.
struct FragmentShape {
  std::string name;
  std::uint64_t elements = 0;
  std::uint64_t data_offset = 0;  ///< of its values in the fragment file
  std::uint64_t file_bytes = 0;
  std::vector<strategies::TensorRange> tensors;
  FragmentRole role = FragmentRole::kExchanged;  ///< never kPersonal: the coordinator has no such fragment
};

/// The shapes of a run's fragments that travel, numbered as in the layout.
Result<std::vector<FragmentShape>> fragment_shapes(const ModelLayout& layout);

/// The body of an update that `sender` signed. Pure and thread-safe: it runs on the connection's thread.
/// INVALID_ARGUMENT (not a body), UNAUTHENTICATED (signature), PERMISSION_DENIED (made out to another node).
Result<v1::UpdateBody> open_update(const v1::SignedUpdate& update, const Identity& sender);

/// Where the values of one fragment's update are.
struct UpdatePayload {
  std::uint32_t fragment = 0;      ///< index into the shapes
  std::uint64_t base_version = 0;
  std::string content_id;
  std::uint64_t size = 0;          ///< as it travelled
  std::string inline_data;         ///< as encoded; empty: cargo
  bool zstd = false;               ///< the cargo is compressed, and comes to `encoded` bytes
  std::uint64_t encoded = 0;
};

/// The payloads of a train update, whose inline bytes are taken out of `body`, checked against the run: spec hash, fragment names, encoding, sizes, and for inline
/// bytes their content id, unless `own`: then this process made them, and they have none. INVALID_ARGUMENT names the
/// fragment, what it says and what the run says.
Result<std::vector<UpdatePayload>> check_payloads(v1::UpdateBody& body, const RunSpec& spec,
                                                  const std::vector<FragmentShape>& shapes, bool own = false);

/// The metrics that the run spec allows and that are finite; the others are left out.
std::map<std::string, double> allowed_metrics(const v1::UpdateBody& body, const LimitsSpec& limits);

}  // namespace skerry::server
