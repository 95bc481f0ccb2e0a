#include "client/trainer/data_set.h"

#include <cmath>

#include <nlohmann/json.hpp>

#include "client/trainer/data_sources.h"
#include "client/trainer/messages.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

struct Fractions {
  double from = 0;
  double to = 1;
};

Result<std::map<std::string, Fractions>> parse_splits(const json& section) {
  std::map<std::string, Fractions> splits;
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
    Fractions split;
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

/// Images with labels, kept as bytes.
class ImageSet final : public DataSet {
 public:
  explicit ImageSet(Images images) : images_(std::move(images)) {}

  Result<void> fill(const std::string& split, std::span<const std::uint64_t> numbers, std::uint64_t,
                    Batch& batch) const override {
    const Range range = splits_.at(split);
    const std::size_t size = shape_.input_size;
    batch.rows = numbers.size();
    batch.inputs.resize(numbers.size() * size);
    batch.labels.resize(numbers.size());
    float* out = batch.inputs.data();
    for (std::size_t row = 0; row < numbers.size(); ++row, out += size) {
      const std::uint64_t example = rows_[range.first + numbers[row]];
      const unsigned char* pixels = images_.pixels.data() + example * size;
      for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<float>(pixels[i]) / 255.0f;
      batch.labels[row] = images_.labels[example];
    }
    return {};
  }

  static Result<std::unique_ptr<DataSet>> make(const json& section, const json& schema, const std::string& path);

 private:
  Images images_;
  std::vector<std::uint64_t> rows_;
};

class TableSet final : public DataSet {
 public:
  explicit TableSet(Table table) : table_(std::move(table)) {}

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
      std::copy_n(table_.values.data() + example * size, size, batch.inputs.data() + row * size);
      if (shape_.classes == 0) {
        batch.targets[row] = table_.labels[example];
      } else {
        batch.labels[row] = static_cast<std::int64_t>(table_.labels[example]);
      }
    }
    return {};
  }

  static Result<std::unique_ptr<DataSet>> make(const json& section, const json& schema, const std::string& path);

 private:
  Table table_;
  std::vector<std::uint64_t> rows_;
};

class TextSet final : public DataSet {
 public:
  explicit TextSet(Text text) : text_(std::move(text)) {}

  Result<void> fill(const std::string& split, std::span<const std::uint64_t> numbers, std::uint64_t shift,
                    Batch& batch) const override {
    const Range range = splits_.at(split);
    const std::uint64_t context = shape_.input_size;
    const std::uint64_t last = range.bytes - context - 1;  // the last window's start; fill is asked only where one fits
    std::string window(context + 1, '\0');
    batch.rows = numbers.size();
    batch.tokens.resize(numbers.size() * (context + 1));
    std::int64_t* out = batch.tokens.data();
    for (const std::uint64_t number : numbers) {
      text_.copy(range.first + std::min(number * context + shift, last), window);
      for (const char c : window) *out++ = static_cast<unsigned char>(c);
    }
    return text_.check();
  }

  static Result<std::unique_ptr<DataSet>> make(const json& section, const json& schema, const std::string& path,
                                               std::uint64_t context);

 private:
  Text text_;
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
  auto set = std::make_unique<ImageSet>(std::move(images));
  set->shape_ = std::move(shape);
  set->rows_ = std::move(rows);
  for (const auto& [name, split] : splits) {
    const std::uint64_t first = boundary(split.from, set->rows_.size());
    set->splits_[name] = {first, boundary(split.to, set->rows_.size()) - first, 0};
  }
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
  auto set = std::make_unique<TableSet>(std::move(table));
  set->shape_ = {ExampleShape::Kind::kTable, {columns.size()}, columns.size(), classes};
  set->rows_ = std::move(rows);
  for (const auto& [name, split] : splits) {
    const std::uint64_t first = boundary(split.from, set->rows_.size());
    set->splits_[name] = {first, boundary(split.to, set->rows_.size()) - first, 0};
  }
  return std::unique_ptr<DataSet>(std::move(set));
}

Result<std::unique_ptr<DataSet>> TextSet::make(const json& section, const json& schema, const std::string& path,
                                               std::uint64_t context) {
  SKERRY_ASSIGN(const std::string encoding, text_member(schema, "encoding", "bytes"));
  if (encoding != "bytes" && encoding != "utf-8") {
    return invalid_argument("schema.encoding is \"" + encoding + "\", must be bytes or utf-8");
  }
  if (section.contains("indices")) return invalid_argument("\"indices\" is for kinds idx and csv only, not for text");
  if (context == 0) return invalid_argument("text needs a model with a context; this model takes other examples");
  SKERRY_ASSIGN(Text text, Text::open(path, encoding == "utf-8"));
  SKERRY_ASSIGN(auto splits, parse_splits(section));
  auto set = std::make_unique<TextSet>(std::move(text));
  set->shape_ = {ExampleShape::Kind::kText, {context}, context, 256};
  for (const auto& [name, split] : splits) {
    const std::uint64_t first = boundary(split.from, set->text_.size());
    const std::uint64_t bytes = boundary(split.to, set->text_.size()) - first;
    set->splits_[name] = {first, bytes == 0 ? 0 : (bytes - 1) / context, bytes};
  }
  return std::unique_ptr<DataSet>(std::move(set));
}

Result<std::unique_ptr<DataSet>> open_kind(const json& section, std::uint64_t context) {
  SKERRY_ASSIGN(const std::string kind, text_member(section, "kind"));
  SKERRY_ASSIGN(const std::string path, text_member(section, "path"));
  json schema = json::object();
  if (const auto it = section.find("schema"); it != section.end()) {
    if (!it->is_object()) return invalid_argument("member \"schema\" must be an object");
    schema = *it;
  }
  if (kind == "text") return TextSet::make(section, schema, path, context);
  if (kind == "idx") return ImageSet::make(section, schema, path);
  if (kind == "csv") return TableSet::make(section, schema, path);
  return invalid_argument("member \"kind\" is \"" + kind + "\", must be text, idx or csv");
}

}  // namespace

Result<std::unique_ptr<DataSet>> DataSet::open(std::string_view section, std::uint64_t context) {
  const json object = json::parse(section.begin(), section.end(), nullptr, false);
  if (!object.is_object()) return invalid_argument("data: the section is not a JSON object");
  auto set = open_kind(object, context);
  if (!set.ok()) return with_context(std::move(set).error(), "data");
  return set;
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
