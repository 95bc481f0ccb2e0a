#include "server/coordinator/run_plan.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <utility>

#include "common/crypto/content_id.h"
#include "common/model/fragment_file.h"
#include "common/model/initialise.h"
#include "common/model/tokenizer_model.h"
#include "common/os/files.h"
#include "common/tensor/safetensors.h"
#include "strategies/catalogue.h"
#include "strategies/combination.h"

namespace skerry::server {
namespace {

constexpr std::uint64_t kBlockElements = 256 * 1024;

// Fills a block of a fragment's vector.
using FillBlock = std::function<Result<void>(std::uint64_t first, std::span<float> out)>;

Result<VersionRecord> write_version(const RunPlan& plan, const FragmentShape& shape, CargoStore& cargo, const FillBlock& fill) {
  SKERRY_ASSIGN(const std::string header, fragment_header(plan.layout, shape.name));
  VersionRecord record;
  record.fragment = shape.name;
  record.whole.size = shape.file_bytes;
  if (shape.file_bytes <= kInlineLimit) {
    std::vector<float> values(shape.elements);
    SKERRY_TRY(fill(0, values));
    record.whole.bytes = header;
    record.whole.bytes.append(reinterpret_cast<const char*>(values.data()), 4 * values.size());
    record.whole.content_id = content_id(record.whole.bytes);
    return record;
  }
  const std::string path = cargo.scratch_path();
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreate));
  SKERRY_TRY(file.allocate(shape.file_bytes));
  ContentHasher hasher;
  hasher.update(header);
  SKERRY_TRY(file.pwrite(as_bytes_of(header), 0));
  std::vector<float> block(std::min(kBlockElements, shape.elements));
  for (std::uint64_t first = 0; first < shape.elements; first += block.size()) {
    const std::span<float> part(block.data(), std::min<std::uint64_t>(block.size(), shape.elements - first));
    SKERRY_TRY(fill(first, part));
    hasher.update(std::as_bytes(part));
    SKERRY_TRY(file.pwrite(std::as_bytes(part), header.size() + 4 * first));
  }
  record.whole.content_id = hasher.finish();
  SKERRY_TRY(cargo.adopt_file(path, record.whole.content_id));
  return record;
}

// The tensors of one fragment in an uploaded model, in the fragment's order.
class UploadedFragment {
 public:
  static Result<UploadedFragment> find(const SafetensorsFile& model, const RunPlan& plan, const FragmentLayout& fragment) {
    UploadedFragment found(model);
    for (std::size_t index : fragment.tensors) {
      const TensorLayout& wanted = plan.layout.tensors[index];
      const TensorEntry* entry = model.find(wanted.name);
      if (!entry) return invalid_argument("model.initial: the uploaded model has no tensor '" + wanted.name + "'");
      if (entry->shape != wanted.shape)
        return invalid_argument("model.initial: tensor '" + wanted.name + "' has another shape than the model section says");
      found.parts_.push_back({wanted.offset, wanted.elements, entry});
    }
    return found;
  }

  Result<void> read(std::uint64_t first, std::span<float> out) const {
    for (const Part& part : parts_) {
      const std::uint64_t begin = std::max(first, part.offset);
      const std::uint64_t end = std::min(first + out.size(), part.offset + part.elements);
      if (begin >= end) continue;
      SKERRY_TRY(model_.read_f32(*part.entry, begin - part.offset, out.subspan(begin - first, end - begin)));
    }
    return {};
  }

 private:
  struct Part {
    std::uint64_t offset, elements;
    const TensorEntry* entry;
  };
  explicit UploadedFragment(const SafetensorsFile& model) : model_(model) {}
  const SafetensorsFile& model_;
  std::vector<Part> parts_;
};

}  // namespace

Result<RunPlan> RunPlan::from_spec(RunSpec spec, const strategies::RuleCatalogue& rules) {
  SKERRY_TRY(strategies::check_combination(spec, rules));
  RunPlan plan;
  SKERRY_ASSIGN(plan.layout, build_layout(nlohmann::json::parse(spec.model_json)));
  SKERRY_ASSIGN(plan.shapes, fragment_shapes(plan.layout));
  SKERRY_ASSIGN(plan.rule, rules.make(strategies::aggregation_part(spec)));
  SKERRY_ASSIGN(plan.outer, strategies::make_outer_optimizer(strategies::outer_part(spec)));
  plan.spec = std::move(spec);
  return plan;
}

Result<void> check_tokenizer(const RunSpec& spec, const CargoStore& cargo) {
  const std::string& id = spec.data.tokenizer;
  if (id == "bytes") return {};
  if (!cargo.cargo_size(id).ok())
    return not_found("data.tokenizer: there is no cargo " + id + "; `skerry cargo upload FILE` uploads one");
  SKERRY_ASSIGN(const std::string bytes, read_file(cargo.cargo_path(id), kMaxTokenizerBytes));
  auto model = parse_tokenizer_model(bytes);
  if (!model.ok()) return with_context(std::move(model).error(), "data.tokenizer");
  const auto vocabulary = nlohmann::json::parse(spec.model_json).value("vocabulary", std::uint64_t{0});
  if (vocabulary >= model->size()) return {};
  return invalid_argument("model.vocabulary is " + std::to_string(vocabulary) + ", the tokenizer has " +
                          std::to_string(model->size()) + " tokens");
}

std::optional<v1::Blob> tokenizer_blob(const RunSpec& spec, const CargoStore& cargo) {
  if (spec.data.tokenizer == "bytes") return std::nullopt;
  const auto size = cargo.cargo_size(spec.data.tokenizer);
  if (!size.ok()) return std::nullopt;
  v1::Blob blob;
  blob.set_content_id(spec.data.tokenizer);
  blob.set_size(*size);
  return blob;
}

Result<std::vector<VersionRecord>> make_initial_versions(const RunPlan& plan, CargoStore& cargo) {
  std::optional<SafetensorsFile> uploaded;
  if (!plan.spec.initial_model.empty()) {
    SKERRY_TRY(cargo.cargo_size(plan.spec.initial_model));
    SKERRY_ASSIGN(SafetensorsFile file, SafetensorsFile::open(cargo.cargo_path(plan.spec.initial_model)));
    SKERRY_TRY(file.check_finite());
    uploaded = std::move(file);
  }
  std::vector<VersionRecord> versions;
  for (std::size_t i = 0; i < plan.shapes.size(); ++i) {
    FillBlock fill = [&](std::uint64_t first, std::span<float> out) {
      return initialise_fragment(plan.layout, plan.shapes[i].name, plan.spec.seed, first, out);
    };
    if (uploaded && plan.shapes[i].role != FragmentRole::kControl) {
      SKERRY_ASSIGN(const UploadedFragment fragment, UploadedFragment::find(*uploaded, plan, plan.layout.fragments[i]));
      fill = [fragment](std::uint64_t first, std::span<float> out) { return fragment.read(first, out); };
    }
    SKERRY_ASSIGN(VersionRecord record, write_version(plan, plan.shapes[i], cargo, fill));
    versions.push_back(std::move(record));
  }
  return versions;
}

}  // namespace skerry::server
