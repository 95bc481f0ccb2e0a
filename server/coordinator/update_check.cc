#include "server/coordinator/update_check.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include "common/codec/compression.h"
#include "common/codec/encoding.h"
#include "common/crypto/content_id.h"
#include "common/model/fragment_file.h"
#include "server/coordinator/run_plan.h"

namespace skerry::server {
namespace {

constexpr std::string_view kUpdateDomain{"skerry update v1\0", 17};
constexpr std::uint64_t kMaxInflated = 1 << 20;  // of what comes compressed in a message: no more than one brings without

}  // namespace

Result<std::vector<FragmentShape>> fragment_shapes(const ModelLayout& layout) {
  std::vector<FragmentShape> shapes;
  for (const FragmentLayout& fragment : std::span(layout.fragments).first(layout.shared_fragments())) {
    SKERRY_ASSIGN(const std::string header, fragment_header(layout, fragment.name));
    FragmentShape shape{fragment.name, fragment.elements, header.size(), header.size() + 4 * fragment.elements, {},
                        fragment.role};
    for (std::size_t index : fragment.tensors) {
      const TensorLayout& tensor = layout.tensors[index];
      shape.tensors.push_back({tensor.name, tensor.offset, tensor.elements});
    }
    shapes.push_back(std::move(shape));
  }
  return shapes;
}

Result<v1::UpdateBody> open_update(const v1::SignedUpdate& update, const Identity& sender) {
  std::string message(kUpdateDomain);
  message += update.body();
  if (auto verified = sender.key.verify(message, update.signature()); !verified.ok())
    return unauthenticated("the update's signature is not " + sender.name + "'s; the daemon's key and certificate must belong together");
  v1::UpdateBody body;
  if (!body.ParseFromString(update.body())) return invalid_argument("the update's body is not an UpdateBody message");
  if (body.node() != sender.name)
    return permission_denied("the update is made out to node '" + body.node() + "' but was sent by '" + sender.name + "'");
  return body;
}

Result<std::vector<UpdatePayload>> check_payloads(v1::UpdateBody& body, const RunSpec& spec,
                                                  const std::vector<FragmentShape>& shapes, bool own) {
  if (body.spec_hash() != spec.hash)
    return invalid_argument("the update was made for run spec " + body.spec_hash() + ", this run's is " + spec.hash);
  if (body.kind() != v1::TASK_TRAIN) return invalid_argument("an update's kind is train or evaluate, not " + std::to_string(body.kind()));
  if (body.fragments_size() == 0) return invalid_argument("the update carries no fragment");
  SKERRY_ASSIGN(const Encoding* encoding, find_encoding(spec.exchange.up));

  std::vector<UpdatePayload> payloads;
  std::set<std::string_view> seen;
  std::uint64_t inflated = 0;
  for (v1::FragmentUpdate& update : *body.mutable_fragments()) {
    const std::string where = "fragment '" + update.fragment() + "': ";
    const auto shape = std::find_if(shapes.begin(), shapes.end(),
                                    [&](const FragmentShape& candidate) { return candidate.name == update.fragment(); });
    if (shape == shapes.end()) return invalid_argument(where + "the model has no fragment of this name");
    if (!seen.insert(update.fragment()).second) return invalid_argument(where + "it is in the update twice");
    const auto wire = find_wire_encoding(update.encoding());
    if (!wire.ok() || wire->encoding != encoding || (wire->zstd && !spec.exchange.zstd))
      return invalid_argument(where + "its encoding is '" + update.encoding() + "', the run's is '" + spec.exchange.up + "'");
    const std::uint64_t expected = encoding->encoded_bytes(shape->elements);
    const std::uint64_t size = update.data().size();
    if (wire->zstd && (size == 0 || size >= expected))
      return invalid_argument(where + "it is compressed to " + std::to_string(size) + " bytes, which must be fewer than its " +
                              std::to_string(expected));
    if (!wire->zstd && size != expected)
      return invalid_argument(where + "it has " + std::to_string(update.data().size()) + " bytes, " +
                              std::to_string(shape->elements) + " values in " + spec.exchange.up + " have " +
                              std::to_string(expected));
    if (!own) SKERRY_TRY(check_content_id(update.data().content_id()));
    UpdatePayload payload{static_cast<std::uint32_t>(shape - shapes.begin()), update.base_version(), update.data().content_id(),
                          size, std::move(*update.mutable_data()->mutable_inline_data()), wire->zstd, expected};
    if (!payload.inline_data.empty()) {
      if (payload.inline_data.size() != size)
        return invalid_argument(where + std::to_string(payload.inline_data.size()) + " bytes came of " + std::to_string(size));
      if (!own && content_id(payload.inline_data) != payload.content_id)
        return invalid_argument(where + "its bytes are not those of content id " + payload.content_id);
      if (payload.zstd) {
        if (!own && expected > kInlineLimit)
          return invalid_argument(where + "compressed bytes in a message must come to at most " + std::to_string(kInlineLimit) +
                                  ", these come to " + std::to_string(expected));
        inflated += expected;
        if (!own && inflated > kMaxInflated)
          return invalid_argument("the update's compressed bytes in its message come to more than " + std::to_string(kMaxInflated) +
                                  "; larger ones must be uploaded");
        auto bytes = decompressed(as_bytes_of(payload.inline_data), expected);
        if (!bytes.ok()) return with_context(std::move(bytes).error(), "fragment '" + update.fragment() + "'");
        payload.inline_data = std::move(bytes).value();
        payload.zstd = false;
      }
    }
    payloads.push_back(std::move(payload));
  }
  return payloads;
}

std::map<std::string, double> allowed_metrics(const v1::UpdateBody& body, const LimitsSpec& limits) {
  std::map<std::string, double> metrics;
  for (const v1::Metric& metric : body.metrics()) {
    if (metrics.size() >= kMaxUpdateMetrics) break;
    const bool allowed = std::find(limits.metrics.begin(), limits.metrics.end(), metric.name()) != limits.metrics.end();
    if (allowed && std::isfinite(metric.value())) metrics[metric.name()] = metric.value();
  }
  return metrics;
}

}  // namespace skerry::server
