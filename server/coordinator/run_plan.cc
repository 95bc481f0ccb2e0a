#include "server/coordinator/run_plan.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <functional>
#include <map>
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
#include "strategies/exchange.h"

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

std::uint64_t round_of(const RunPlan& plan, std::uint64_t exchange) {
  const auto exchanged = std::count_if(plan.shapes.begin(), plan.shapes.end(),
                                       [](const FragmentShape& shape) { return shape.role == FragmentRole::kExchanged; });
  const std::uint64_t lanes = strategies::lanes(plan.spec.exchange, static_cast<std::uint32_t>(exchanged)).size();
  return (exchange + lanes - 1) / lanes;
}

Result<std::vector<VersionRecord>> continued_versions(const RunPlan& plan, StoreReader& store) {
  const std::string& run_id = plan.spec.start.run;
  const std::uint64_t round = plan.spec.start.round;
  const std::string what = "start.run " + run_id;
  SKERRY_ASSIGN(const auto record, store.run(run_id));
  if (!record) return not_found(what + ": there is no run of this id; skerry run list shows them");
  SKERRY_ASSIGN(const RunSpec spec, parse_resolved_spec(record->spec_json));
  const auto other = [&](const std::string& section) {
    return Error(failed_precondition(what + " has another [" + section + "] section: only a run of the same one can continue it"));
  };
  if (spec.model_json != plan.spec.model_json) return other("model");
  if (spec.exchange.schedule != plan.spec.exchange.schedule) return other("exchange");
  if (spec.outer.name != plan.spec.outer.name) return other("outer");

  // Which version each fragment had: exchanges that were void made none.
  std::map<std::string, std::uint64_t> had;
  std::uint64_t newest = spec.start.round;
  SKERRY_ASSIGN(const auto stored, store.versions(run_id));
  for (const VersionRecord& version : stored)  // what the other run itself began with
    if (round_of(plan, version.exchange) <= spec.start.round) had[version.fragment] = version.version;
  SKERRY_ASSIGN(const auto metrics, store.metrics(run_id));
  for (const MetricRecord& metric : metrics) {
    if (metric.kind != "exchange") continue;
    newest = std::max(newest, round_of(plan, metric.exchange));
    if (round_of(plan, metric.exchange) <= round) had[metric.fragment] = metric.version;
  }
  if (newest < round)
    return not_found(what + " has finished " + std::to_string(newest) + " rounds, not " + std::to_string(round));
  std::vector<VersionRecord> versions;
  for (const FragmentShape& shape : plan.shapes) {
    SKERRY_ASSIGN(auto version, store.version(run_id, shape.name, had[shape.name]));
    const bool with_state = shape.role == FragmentRole::kExchanged && !plan.outer.state_vectors.empty() && had[shape.name] > 0;
    if (!version || (with_state && version->state_size == 0))
      return not_found(what + ": what fragment '" + shape.name + "' was after round " + std::to_string(round) +
                       " is not stored any more; evaluation.keep_every says which rounds stay");
    version->step = {};
    version->step_encoding.clear();
    version->counted.clear();
    version->kept = true;  // where this run began
    versions.push_back(std::move(*version));
  }
  return versions;
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
