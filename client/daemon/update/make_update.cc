#include "client/daemon/update/make_update.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "common/codec/compression.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "common/tensor/kernels.h"

namespace skerry::client {
namespace {

constexpr std::uint64_t kBlockElements = 256 * 1024;
constexpr std::uint64_t kInlineTotal = 512 * 1024;  // a message of the fleet protocol has at most 1 MiB

double squares(std::span<const float> values) {
  double lanes[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= values.size(); i += 8)
    for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] += static_cast<double>(values[i + lane]) * static_cast<double>(values[i + lane]);
  for (; i < values.size(); ++i) lanes[0] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

/// What the trainer made of a fragment.
class Trained {
 public:
  static Result<Trained> open(const TrainedFragment& fragment, const ModelLayout& layout) {
    Trained trained;
    trained.values_ = fragment.trained;
    if (!fragment.trained_path.empty()) {
      SKERRY_ASSIGN(FragmentFile file, FragmentFile::open(fragment.trained_path, layout, fragment.fragment));
      trained.file_.emplace(std::move(file));
    } else if (trained.values_.size() != fragment.base->elements()) {
      return internal_error("fragment " + fragment.fragment + " has " + std::to_string(fragment.base->elements()) + " values, " +
                            std::to_string(trained.values_.size()) + " were trained");
    }
    return trained;
  }

  /// `count` values from `first` on, valid until the next call.
  Result<std::span<const float>> read(std::uint64_t first, std::size_t count) {
    if (!file_) return values_.subspan(static_cast<std::size_t>(first), count);
    buffer_.resize(count);
    SKERRY_TRY(file_->read(first, buffer_));
    return std::span<const float>(buffer_);
  }

 private:
  std::span<const float> values_;
  std::optional<FragmentFile> file_;
  std::vector<float> buffer_;
};

/// Calls `visit(first, values)` for each block of what is to be sent in order: Δ, and with feedback the residual's share.
template <typename Visit>
Result<void> walk(const FragmentFile& base, Trained& trained, const std::optional<ResidualWalk>& residual, double feedback,
                  std::uint64_t granule, Visit visit) {
  const std::uint64_t elements = base.elements();
  const std::uint64_t block = std::max<std::uint64_t>(granule, kBlockElements / granule * granule);
  std::vector<float> old_values(static_cast<std::size_t>(std::min(block, elements)));
  std::vector<float> lost(residual ? old_values.size() : 0);
  for (std::uint64_t first = 0; first < elements; first += block) {
    const std::size_t count = static_cast<std::size_t>(std::min(block, elements - first));
    const auto delta = std::span(old_values).first(count);
    SKERRY_TRY(base.read(first, delta));
    SKERRY_ASSIGN(const std::span<const float> now, trained.read(first, count));
    for (std::size_t i = 0; i < count; ++i) delta[i] -= now[i];
    if (residual) {
      SKERRY_TRY(residual->read(first, std::span(lost).first(count)));
      add_scaled(lost.data(), feedback, count, delta.data());
    }
    SKERRY_TRY(visit(first, delta));
  }
  return {};
}

/// The tensor and the index in it of a fragment's element, for messages.
std::string place_of(const ModelLayout& layout, const std::string& fragment, std::uint64_t element) {
  const auto* found = layout.find_fragment(fragment);
  for (const std::size_t index : found->tensors) {
    const auto& tensor = layout.tensors[index];
    if (element >= tensor.offset && element < tensor.offset + tensor.elements)
      return "tensor " + tensor.name + "[" + std::to_string(element - tensor.offset) + "]";
  }
  return "element " + std::to_string(element) + " of fragment " + fragment;
}

/// Where a fragment's payload goes: memory, or a file that becomes durable and gets its id as its name.
class Payload {
 public:
  static Result<Payload> open(const UpdateRecipe& recipe, const std::string& fragment, std::uint64_t bytes, bool may_be_inline) {
    Payload payload;
    payload.prefix_ = recipe.file_prefix;
    payload.zstd_ = recipe.zstd;
    payload.named_ = !recipe.in_memory;
    if (recipe.in_memory) {
      payload.inline_.reserve(bytes);
    } else if (!may_be_inline || bytes > recipe.inline_limit) {
      payload.temporary_ = recipe.file_prefix + "." + fragment + ".new";
      SKERRY_ASSIGN(File file, File::open(payload.temporary_, OpenMode::kCreateOrEmpty));
      SKERRY_TRY(file.allocate(bytes));
      payload.file_.emplace(std::move(file));
    }
    return payload;
  }

  Result<void> add(std::span<const std::byte> bytes) {
    if (named_ && !zstd_) hasher_.update(bytes);
    if (!file_) {
      inline_.append(as_text(bytes));
      return {};
    }
    SKERRY_TRY(file_->pwrite(bytes, written_));
    file_->start_writeback(written_, bytes.size());
    written_ += bytes.size();
    return {};
  }

  /// Puts the payload into the update, compressed where that pays.
  Result<void> finish(v1::FragmentUpdate& update, std::string_view encoding, std::vector<PendingUpload>& uploads) {
    bool packed = false;
    if (zstd_) {
      SKERRY_ASSIGN(packed, compress());
    }
    update.set_encoding(wire_name(encoding, packed));
    v1::Blob& blob = *update.mutable_data();
    blob.set_size(file_ ? written_ : inline_.size());
    if (named_) blob.set_content_id(hasher_.finish());
    if (!file_) {
      blob.set_inline_data(std::move(inline_));
      return {};
    }
    SKERRY_TRY(file_->fsync());
    file_->drop_cache(0, 0);
    file_.reset();
    uploads.push_back({blob.content_id(), blob.size()});
    return rename_durable(temporary_, payload_path(prefix_, blob.content_id()));
  }

 private:
  Payload() = default;

  Result<bool> compress() {
    if (!file_) {
      auto frame = compressed(as_bytes_of(inline_));
      const bool pays = frame.has_value();
      if (pays) inline_ = *std::move(frame);
      if (named_) hasher_.update(as_bytes_of(inline_));
      return pays;
    }
    const std::string packed = temporary_ + ".zst";
    std::optional<std::uint64_t> size;
    {
      SKERRY_ASSIGN(const MappedFile bytes, MappedFile::open(temporary_));
      SKERRY_ASSIGN(size, compress_to_file(bytes.bytes(), packed));
      SKERRY_TRY(bytes.check());
    }
    if (size) {
      SKERRY_TRY(remove_file(temporary_));
      temporary_ = packed;
      written_ = *size;
      SKERRY_ASSIGN(File file, File::open(packed, OpenMode::kReadWrite));
      file_.emplace(std::move(file));
    }
    SKERRY_ASSIGN(const MappedFile bytes, MappedFile::open(temporary_));
    hasher_.update(bytes.bytes());
    SKERRY_TRY(bytes.check());
    return size.has_value();
  }

  std::string prefix_;
  std::string temporary_;
  std::optional<File> file_;
  std::uint64_t written_ = 0;
  std::string inline_;
  bool zstd_ = false;
  bool named_ = true;
  ContentHasher hasher_;
};

}  // namespace

std::string payload_path(const std::string& file_prefix, const std::string& content_id) { return file_prefix + "." + content_id; }

Result<MadeUpdate> make_update(const UpdateRecipe& recipe) {
  MadeUpdate made;
  std::vector<Trained> trained;
  std::vector<std::optional<ResidualWalk>> residuals;
  std::uint64_t total = 0;
  for (const auto& fragment : recipe.fragments) {
    residuals.emplace_back();
    if (recipe.feedback > 0) {
      SKERRY_ASSIGN(ResidualWalk residual, ResidualWalk::open(recipe.residuals, fragment.fragment, fragment.residual, fragment.base->elements()));
      residuals.back().emplace(std::move(residual));
    }
    SKERRY_ASSIGN(Trained opened, Trained::open(fragment, *recipe.layout));
    trained.push_back(std::move(opened));
    total += recipe.encoding->encoded_bytes(fragment.base->elements());
  }
  if (recipe.maximum_bytes > 0 && total > recipe.maximum_bytes) {
    Error error = resource_exhausted("the update has " + std::to_string(total) + " bytes as " + std::string(recipe.encoding->name()) +
                                     ", the task allows " + std::to_string(recipe.maximum_bytes));
    error.retryable = false;
    return error;
  }

  // Clipping needs the norm before anything is encoded; otherwise one walk does both.
  double factor = 1.0;
  if (recipe.maximum_norm > 0) {
    double sum = 0;
    for (std::size_t i = 0; i < trained.size(); ++i)
      SKERRY_TRY(walk(*recipe.fragments[i].base, trained[i], residuals[i], recipe.feedback, 1, [&](std::uint64_t, std::span<const float> delta) -> Result<void> {
        sum += squares(delta);
        return {};
      }));
    const double norm = std::sqrt(sum);
    if (norm > recipe.maximum_norm) {
      factor = recipe.maximum_norm / norm;
      made.clipped = true;
    }
  }

  double sum = 0;
  std::vector<std::byte> encoded;
  std::vector<float> sent;
  for (std::size_t i = 0; i < trained.size(); ++i) {
    const auto& fragment = recipe.fragments[i];
    const Encoding& encoding = *recipe.encoding;
    SKERRY_ASSIGN(Payload payload, Payload::open(recipe, fragment.fragment, encoding.encoded_bytes(fragment.base->elements()), total <= kInlineTotal));
    double fragment_sum = 0;
    const Rounding rounding{recipe.stochastic, recipe.seed, rounding_stream(fragment.fragment)};
    auto& residual = residuals[i];
    const auto send = [&](std::uint64_t first, std::span<float> delta) -> Result<void> {
      if (const auto bad = first_non_finite(delta); bad != delta.size())
        return failed_precondition("the trained " + place_of(*recipe.layout, fragment.fragment, first + bad) +
                                   " is not finite; nothing of this task leaves. A lower learning rate often helps");
      if (factor != 1.0)
        for (float& value : delta) value = static_cast<float>(static_cast<double>(value) * factor);
      fragment_sum += squares(delta);
      encoded.resize(encoding.encoded_bytes(delta.size()));
      encoding.encode(delta, first, rounding, encoded);
      SKERRY_TRY(payload.add(encoded));
      if (!residual) return {};
      sent.resize(delta.size());
      encoding.decode(encoded, sent);
      subtract(sent.data(), sent.size(), delta.data());
      return residual->write(delta);
    };
    SKERRY_TRY(walk(*fragment.base, trained[i], residual, recipe.feedback, encoding.block_elements(), send));
    if (residual) {
      SKERRY_ASSIGN(Residual next, residual->finish());
      made.residuals.push_back(std::move(next));
    }
    v1::FragmentUpdate update;
    update.set_fragment(fragment.fragment);
    update.set_base_version(fragment.base_version);
    update.set_norm(std::sqrt(fragment_sum));
    SKERRY_TRY(payload.finish(update, encoding.name(), made.uploads));
    made.fragments.push_back(std::move(update));
    sum += fragment_sum;
  }
  made.norm = std::sqrt(sum);
  return made;
}

}  // namespace skerry::client
