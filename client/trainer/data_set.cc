#include "client/trainer/data_set.h"

#include <array>
#include <cmath>

#include <nlohmann/json.hpp>

#include "client/trainer/data_sources.h"
#include "client/trainer/messages.h"
#include "client/trainer/text_set.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

Result<std::map<std::string, SplitFractions>> parse_splits(const json& section) {
  std::map<std::string, SplitFractions> splits;
  const auto it = section.find("splits");
  if (it == section.end()) {
    splits["train"] = {};
    return splits;
  }
  if (!it->is_object() || it->empty() || it->size() > 64) {
    return invalid_argument("member \"splits\" must be an object of {\"from\",\"to\"}");
  }
  for (const auto& item : it->items()) {
    const std::string where = "split \"" + item.key() + "\"";
    if (!item.value().is_object()) return invalid_argument(where + " must be an object {\"from\",\"to\"}");
    SplitFractions split;
    auto from = number_member(item.value(), "from", 0, 1, 0);
    if (!from.ok()) return with_context(std::move(from).error(), where);
    auto to = number_member(item.value(), "to", 0, 1, 1);
    if (!to.ok()) return with_context(std::move(to).error(), where);
    split.from = *from;
    split.to = *to;
    if (split.from > split.to) return invalid_argument(where + ": \"from\" is greater than \"to\"");
    splits[item.key()] = split;
  }
  return splits;
}

// The boundary that a fraction names: floor(fraction · count), with 0.1 + 0.2 meant as 0.3.
std::uint64_t boundary(double fraction, std::uint64_t count) {
  const double exact = fraction * static_cast<double>(count);
  const double nearest = std::round(exact);
  const double chosen = std::abs(exact - nearest) < 1e-6 ? nearest : std::floor(exact);
  return std::min(static_cast<std::uint64_t>(chosen), count);
}

Result<std::vector<std::uint64_t>> chosen_from(const std::vector<std::uint64_t>& all,
                                               const std::vector<std::uint64_t>& numbers) {
  std::vector<std::uint64_t> rows;
  rows.reserve(numbers.size());
  for (const std::uint64_t number : numbers) {
    if (number >= all.size()) {
      return invalid_argument("row " + std::to_string(number) + " of a data set with " + std::to_string(all.size()));
    }
    rows.push_back(all[number]);
  }
  return rows;
}

/// Images with labels, kept as bytes.
class ImageSet final : public DataSet {
 public:
  ImageSet(std::shared_ptr<const Images> images, ExampleShape shape, std::vector<std::uint64_t> rows)
      : images_(std::move(images)), rows_(std::move(rows)) {
    shape_ = std::move(shape);
  }

  Result<void> fill(const std::string& split, std::span<const std::uint64_t> numbers, std::uint64_t,
                    Batch& batch) const override {
    const Range range = splits_.at(split);
    const std::size_t size = shape_.input_size;
    batch.rows = numbers.size();
    batch.inputs.resize(numbers.size() * size);
    batch.labels.resize(numbers.size());
    static const std::array<float, 256> brightness = [] {  // a look-up is much faster than a division
      std::array<float, 256> values{};
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) / 255.0f;
      return values;
    }();
    float* out = batch.inputs.data();
    for (std::size_t row = 0; row < numbers.size(); ++row, out += size) {
      const std::uint64_t example = rows_[range.first + numbers[row]];
      const unsigned char* pixels = images_->pixels.data() + example * size;
      for (std::size_t i = 0; i < size; ++i) out[i] = brightness[pixels[i]];
      batch.labels[row] = images_->labels[example];
    }
    return {};
  }

  Result<std::unique_ptr<DataSet>> part(const DataPart& part) const override {
    SKERRY_ASSIGN(std::vector<std::uint64_t> rows, chosen_from(rows_, part.rows));
    auto set = std::make_unique<ImageSet>(images_, shape_, std::move(rows));
    set->cut(part.splits, 0, set->rows_.size());
    return std::unique_ptr<DataSet>(std::move(set));
  }

  static Result<std::unique_ptr<DataSet>> make(const json& section, const json& schema, const std::string& path);

 private:
  std::shared_ptr<const Images> images_;
  std::vector<std::uint64_t> rows_;
};

class TableSet final : public DataSet {
 public:
  TableSet(std::shared_ptr<const Table> table, ExampleShape shape, std::vector<std::uint64_t> rows)
      : table_(std::move(table)), rows_(std::move(rows)) {
    shape_ = std::move(shape);
  }

  Result<void> fill(const std::string& split, std::span<const std::uint64_t> numbers, std::uint64_t,
                    Batch& batch) const override {
    const Range range = splits_.at(split);
    const std::size_t size = shape_.input_size;
    batch.rows = numbers.size();
    batch.inputs.resize(numbers.size() * size);
    batch.labels.resize(shape_.classes == 0 ? 0 : numbers.size());
    batch.targets.resize(shape_.classes == 0 ? numbers.size() : 0);
    for (std::size_t row = 0; row < numbers.size(); ++row) {
      const std::uint64_t example = rows_[range.first + numbers[row]];
      std::copy_n(table_->values.data() + example * size, size, batch.inputs.data() + row * size);
      if (shape_.classes == 0) {
        batch.targets[row] = table_->labels[example];
      } else {
        batch.labels[row] = static_cast<std::int64_t>(table_->labels[example]);
      }
    }
    return {};
  }

  Result<std::unique_ptr<DataSet>> part(const DataPart& part) const override {
    SKERRY_ASSIGN(std::vector<std::uint64_t> rows, chosen_from(rows_, part.rows));
    auto set = std::make_unique<TableSet>(table_, shape_, std::move(rows));
    set->cut(part.splits, 0, set->rows_.size());
    return std::unique_ptr<DataSet>(std::move(set));
  }

  static Result<std::unique_ptr<DataSet>> make(const json& section, const json& schema, const std::string& path);

 private:
  std::shared_ptr<const Table> table_;
  std::vector<std::uint64_t> rows_;
};

// The rows a set consists of: those that "indices" lists, or all.
Result<std::vector<std::uint64_t>> chosen_rows(const json& section, std::uint64_t count) {
  SKERRY_ASSIGN(const std::string path, text_member(section, "indices", ""));
  if (!path.empty()) return read_indices(path, count);
  std::vector<std::uint64_t> rows(count);
  for (std::uint64_t i = 0; i < count; ++i) rows[i] = i;
  return rows;
}

Result<std::unique_ptr<DataSet>> ImageSet::make(const json& section, const json& schema, const std::string& path) {
  ExampleShape shape{ExampleShape::Kind::kImages, {}, 1, 0};
  if (const auto it = schema.find("shape"); it != schema.end()) {
    if (!it->is_array() || it->size() != 3) return invalid_argument("schema.shape must be [channels, height, width]");
    for (const json& extent : *it) {
      if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() == 0 || extent.get<std::uint64_t>() > 65536) {
        return invalid_argument("schema.shape must have three numbers in 1 … 65536, it is " + it->dump());
      }
      shape.shape.push_back(extent.get<std::uint64_t>());
      shape.input_size *= extent.get<std::uint64_t>();
    }
  }
  SKERRY_ASSIGN(shape.classes, count_member(schema, "classes", 256, 10));
  if (shape.classes < 2) return invalid_argument("schema.classes must be 2 … 256 for kind idx");
  SKERRY_ASSIGN(Images images, read_images(path, shape.shape, static_cast<unsigned>(shape.classes)));
  shape.shape = images.shape;
  shape.input_size = shape.shape[0] * shape.shape[1] * shape.shape[2];
  SKERRY_ASSIGN(auto splits, parse_splits(section));
  SKERRY_ASSIGN(auto rows, chosen_rows(section, images.labels.size()));
  auto set = std::make_unique<ImageSet>(std::make_shared<Images>(std::move(images)), std::move(shape), std::move(rows));
  set->cut(splits, 0, set->rows_.size());
  return std::unique_ptr<DataSet>(std::move(set));
}

Result<std::unique_ptr<DataSet>> TableSet::make(const json& section, const json& schema, const std::string& path) {
  const auto features = schema.find("features");
  if (features == schema.end() || !features->is_array() || features->empty() || features->size() > 65536) {
    return invalid_argument("schema.features must be a list of column names");
  }
  std::vector<std::string> columns;
  for (const json& column : *features) {
    if (!column.is_string()) return invalid_argument("schema.features must be a list of column names");
    columns.push_back(column.get<std::string>());
  }
  SKERRY_ASSIGN(const std::string label, text_member(schema, "label"));
  SKERRY_ASSIGN(const std::uint64_t classes, count_member(schema, "classes", 1 << 20, 0));
  if (classes == 1) return invalid_argument("schema.classes is 1, must be 0 (regression) or at least 2");
  SKERRY_ASSIGN(Table table, read_table(path, columns, label, classes));
  SKERRY_ASSIGN(auto splits, parse_splits(section));
  SKERRY_ASSIGN(auto rows, chosen_rows(section, table.labels.size()));
  ExampleShape shape{ExampleShape::Kind::kTable, {columns.size()}, columns.size(), classes};
  auto set = std::make_unique<TableSet>(std::make_shared<Table>(std::move(table)), std::move(shape), std::move(rows));
  set->cut(splits, 0, set->rows_.size());
  return std::unique_ptr<DataSet>(std::move(set));
}

Result<std::unique_ptr<DataSet>> make_text(const json& section, const json& schema, TextOptions options) {
  SKERRY_ASSIGN(options.encoding, text_member(schema, "encoding", "bytes"));
  if (options.encoding != "bytes" && options.encoding != "utf-8") {
    return invalid_argument("schema.encoding is \"" + options.encoding + "\", must be bytes or utf-8");
  }
  SKERRY_ASSIGN(options.field, text_member(schema, "field", "text"));
  SKERRY_ASSIGN(options.tokenizer, text_member(section, "tokenizer", ""));
  SKERRY_ASSIGN(const std::string packing, text_member(section, "packing", "stream"));
  if (packing != "stream" && packing != "documents") {
    return invalid_argument("packing is \"" + packing + "\", must be stream or documents");
  }
  options.documents = packing == "documents";
  if (section.contains("indices")) return invalid_argument("\"indices\" is for kinds idx and csv only, not for text");
  if (options.context == 0) return invalid_argument("text needs a model with a context; this model takes other examples");
  SKERRY_ASSIGN(const auto splits, parse_splits(section));
  return open_text(options, splits);
}

Result<std::unique_ptr<DataSet>> open_kind(const json& section, std::uint64_t context) {
  SKERRY_ASSIGN(const std::string kind, text_member(section, "kind"));
  SKERRY_ASSIGN(const std::string path, text_member(section, "path"));
  json schema = json::object();
  if (const auto it = section.find("schema"); it != section.end()) {
    if (!it->is_object()) return invalid_argument("member \"schema\" must be an object");
    schema = *it;
  }
  if (kind == "text" || kind == "jsonl" || kind == "tokens") {
    TextOptions options;
    options.kind = kind;
    options.path = path;
    options.context = context;
    return make_text(section, schema, std::move(options));
  }
  if (kind == "idx") return ImageSet::make(section, schema, path);
  if (kind == "csv") return TableSet::make(section, schema, path);
  return invalid_argument("member \"kind\" is \"" + kind + "\", must be text, jsonl, tokens, idx or csv");
}

}  // namespace

Result<std::unique_ptr<DataSet>> DataSet::open(std::string_view section, std::uint64_t context) {
  const json object = json::parse(section.begin(), section.end(), nullptr, false);
  if (!object.is_object()) return invalid_argument("data: the section is not a JSON object");
  auto set = open_kind(object, context);
  if (!set.ok()) return with_context(std::move(set).error(), "data");
  return set;
}

Result<std::unique_ptr<DataSet>> DataSet::part(const DataPart&) const {
  return Error{Code::kUnimplemented, "this data set has no parts", false};
}

void DataSet::cut(const std::map<std::string, SplitFractions>& splits, std::uint64_t first, std::uint64_t count,
                  std::uint64_t window) {
  size_ = count;
  for (const auto& [name, split] : splits) {
    const std::uint64_t begin = boundary(split.from, count);
    const std::uint64_t size = boundary(split.to, count) - begin;
    splits_[name] = window == 0 ? Range{first + begin, size, 0}
                                : Range{first + begin, size == 0 ? 0 : (size - 1) / window, size};
  }
}

std::map<std::string, std::uint64_t> DataSet::examples() const {
  std::map<std::string, std::uint64_t> counts;
  for (const auto& [name, range] : splits_) counts[name] = range.count;
  return counts;
}

Result<std::uint64_t> DataSet::examples(const std::string& split) const {
  const auto it = splits_.find(split);
  if (it != splits_.end()) return it->second.count;
  std::string known;
  for (const auto& [name, range] : splits_) known += (known.empty() ? "" : ", ") + name;
  return not_found("data has no split \"" + split + "\", it has " + known);
}

}  // namespace skerry::trainer
