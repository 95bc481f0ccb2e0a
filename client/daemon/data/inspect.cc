// What the data itself says: IDX headers and labels, CSV header, rows and classes, text bytes, JSON lines, token files.
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <set>

#include <nlohmann/json.hpp>

#include "client/daemon/data/catalogue.h"
#include "common/config/canonical_json.h"
#include "common/model/token_file.h"
#include "common/os/files.h"

namespace skerry::client {
namespace {

using nlohmann::json;

/// A file, plain or gzip, read from the front.
class Input {
 public:
  static Result<Input> open(const std::string& path) {
    SKERRY_TRY(file_size(path));
    gzFile file = gzopen(path.c_str(), "rbe");
    if (file == nullptr) return file_error(errno, "open", path);
    gzbuffer(file, 1 << 16);
    return Input(file, path);
  }
  /// Fills `out` or says how far it came.
  Result<std::size_t> read(char* out, std::size_t count) {
    std::size_t got = 0;
    while (got < count) {
      const int now = gzread(file_.get(), out + got, static_cast<unsigned>(std::min<std::size_t>(count - got, 1 << 20)));
      if (now < 0) {
        int code = 0;
        return data_loss(path_ + ": " + gzerror(file_.get(), &code) + "; fetch or unpack the file again");
      }
      if (now == 0) break;
      got += static_cast<std::size_t>(now);
    }
    return got;
  }
  /// The next line without its end; nothing at the end of the file.
  Result<std::optional<std::string>> line() {
    std::string text;
    for (;;) {
      if (at_ == buffer_.size()) {
        buffer_.resize(1 << 16);
        SKERRY_ASSIGN(const std::size_t got, read(buffer_.data(), buffer_.size()));
        buffer_.resize(got);
        at_ = 0;
        if (got == 0) {
          if (text.empty()) return std::optional<std::string>();
          return std::optional<std::string>(std::move(text));
        }
      }
      const auto end = buffer_.find('\n', at_);
      const auto stop = end == std::string::npos ? buffer_.size() : end;
      text.append(buffer_, at_, stop - at_);
      at_ = end == std::string::npos ? buffer_.size() : end + 1;
      if (text.size() > (1 << 24)) return invalid_argument(path_ + ": a line is longer than 16 MiB");
      if (end == std::string::npos) continue;
      if (!text.empty() && text.back() == '\r') text.pop_back();
      return std::optional<std::string>(std::move(text));
    }
  }

 private:
  struct Close {
    void operator()(gzFile_s* file) const { gzclose(file); }
  };
  Input(gzFile file, std::string path) : file_(file), path_(std::move(path)) {}

  std::unique_ptr<gzFile_s, Close> file_;
  std::string path_;
  std::string buffer_;
  std::size_t at_ = 0;
};

struct Found {
  json schema;
  std::uint64_t total = 0;
  std::uint64_t files = 0;
};

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::optional<double> number_of(std::string_view text) {
  text = trimmed(text);
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

using EachFile = std::function<Result<void>(const std::string& path, std::uint64_t size)>;

/// Calls `visit` for every file below a directory that is not empty, in the order trainers read them.
Result<void> walk_files(const std::string& directory, const EachFile& visit, unsigned depth = 0) {
  if (depth > 64) return invalid_argument(directory + ": more than 64 directories deep");
  SKERRY_ASSIGN(const auto entries, list_directory(directory));
  for (const auto& entry : entries) {
    if (entry.name.starts_with('.')) continue;  // as trainers do
    const std::string path = join_path(directory, entry.name);
    if (entry.is_directory) {
      SKERRY_TRY(walk_files(path, visit, depth + 1));
    } else if (entry.size > 0) {
      SKERRY_TRY(visit(path, entry.size));
    }
  }
  return {};
}

// ---- text ----

Result<Found> inspect_text(const DataSetRequest& request) {
  Found found;
  found.schema = {{"encoding", "bytes"}};
  auto entries = list_directory(request.path);
  if (entries.ok()) {
    const EachFile count = [&found](const std::string& path, std::uint64_t size) -> Result<void> {
      SKERRY_TRY(File::open(path, OpenMode::kRead));  // readable?
      found.total += size;
      ++found.files;
      return {};
    };
    SKERRY_TRY(walk_files(request.path, count));
  } else {
    SKERRY_TRY(File::open(request.path, OpenMode::kRead));
    SKERRY_ASSIGN(found.total, file_size(request.path));
    found.files = 1;
  }
  if (found.total < 2) return invalid_argument(request.path + ": holds no text");
  return found;
}

// ---- JSON lines ----

Result<Found> inspect_lines(const DataSetRequest& request, const json& given) {
  const std::string field = given.value("field", json("text")).is_string() ? given.value("field", "text") : "";
  if (field.empty()) return invalid_argument("schema: field must be the name of the member that holds the text");
  Found found;
  found.schema = {{"field", field}};
  std::vector<std::string> files;
  const EachFile keep_lines = [&files](const std::string& path, std::uint64_t) -> Result<void> {
    if (path.ends_with(".jsonl") || path.ends_with(".ndjson")) files.push_back(path);
    return {};
  };
  if (list_directory(request.path).ok())
    SKERRY_TRY(walk_files(request.path, keep_lines));
  else
    files.push_back(request.path);
  for (const auto& path : files) {
    SKERRY_ASSIGN(Input input, Input::open(path));
    for (std::uint64_t number = 1;; ++number) {
      SKERRY_ASSIGN(const auto line, input.line());
      if (!line) break;
      if (trimmed(*line).empty()) continue;
      const std::string where = path + " line " + std::to_string(number);
      const json object = json::parse(*line, nullptr, false);
      if (!object.is_object()) return invalid_argument(where + ": not a JSON object");
      const auto text = object.find(field);
      if (text == object.end()) return invalid_argument(where + ": has no member \"" + field + "\"");
      if (!text->is_string()) return invalid_argument(where + ": member \"" + field + "\" is not a text");
      found.total += text->get_ref<const std::string&>().size();
    }
    ++found.files;
  }
  if (found.total < 2) return invalid_argument(request.path + ": holds no JSON lines (files named *.jsonl or *.ndjson)");
  return found;
}

// ---- token files ----

Result<Found> inspect_tokens(const DataSetRequest& request) {
  std::vector<std::string> files;
  if (const auto entries = list_directory(request.path); entries.ok()) {
    for (const auto& entry : *entries)
      if (!entry.name.starts_with('.') && entry.name.ends_with(".tokens")) files.push_back(join_path(request.path, entry.name));
  } else {
    files.push_back(request.path);
  }
  Found found;
  for (const auto& path : files) {
    SKERRY_ASSIGN(const File file, File::open(path, OpenMode::kRead));
    SKERRY_ASSIGN(const std::uint64_t size, file.size());
    std::string bytes(static_cast<std::size_t>(std::min<std::uint64_t>(size, TokenFileHeader::kBytes)), '\0');
    SKERRY_TRY(file.pread_exact(std::as_writable_bytes(std::span(bytes)), 0));
    auto header = parse_token_file_header(bytes, size);
    if (!header.ok()) return with_context(std::move(header).error(), path);
    if (found.files > 0 && found.schema["tokenizer"] != header->tokenizer)
      return invalid_argument(path + ": its tokens are of tokenizer " + header->tokenizer + ", those of the files before are of " +
                              found.schema["tokenizer"].get<std::string>());
    found.schema = {{"tokenizer", header->tokenizer}};
    found.total += header->count;
    ++found.files;
  }
  if (found.total < 2) return invalid_argument(request.path + ": holds no token file (*.tokens) with tokens in it");
  return found;
}

// ---- idx ----

struct IdxHeader {
  std::vector<std::uint64_t> extents;
};

Result<IdxHeader> read_idx_header(Input& input, const std::string& path) {
  unsigned char bytes[4];
  SKERRY_ASSIGN(std::size_t got, input.read(reinterpret_cast<char*>(bytes), 4));
  if (got != 4 || bytes[0] != 0 || bytes[1] != 0 || bytes[2] != 8 || bytes[3] == 0 || bytes[3] > 4)
    return invalid_argument(path + ": not an IDX file of unsigned bytes with 1 to 4 dimensions");
  IdxHeader header;
  for (int dimension = bytes[3]; dimension > 0; --dimension) {
    unsigned char extent[4];
    SKERRY_ASSIGN(got, input.read(reinterpret_cast<char*>(extent), 4));
    if (got != 4) return invalid_argument(path + ": shorter than its IDX header");
    header.extents.push_back(std::uint64_t{extent[0]} << 24 | std::uint64_t{extent[1]} << 16 | std::uint64_t{extent[2]} << 8 | extent[3]);
  }
  return header;
}

/// Reads exactly `count` more bytes and the end of the file; `visit` sees them in pieces.
template <typename Visit>
Result<void> read_idx_values(Input& input, const std::string& path, std::uint64_t count, Visit visit) {
  std::string piece(1 << 16, '\0');
  for (std::uint64_t left = count; left > 0;) {
    SKERRY_ASSIGN(const std::size_t got, input.read(piece.data(), static_cast<std::size_t>(std::min<std::uint64_t>(left, piece.size()))));
    if (got == 0)
      return invalid_argument(path + ": ends after " + std::to_string(count - left) + " of " + std::to_string(count) + " values");
    visit(std::string_view(piece.data(), got));
    left -= got;
  }
  SKERRY_ASSIGN(const std::size_t more, input.read(piece.data(), 1));
  if (more != 0) return invalid_argument(path + ": longer than the " + std::to_string(count) + " values of its header");
  return {};
}

Result<Found> inspect_idx(const DataSetRequest& request, const json& given) {
  SKERRY_ASSIGN(const auto entries, list_directory(request.path));
  const auto file_of = [&](const std::string& stem) -> std::string {
    for (const auto& entry : entries)
      if (entry.name == stem || entry.name == stem + ".gz") return entry.name;
    return "";
  };
  Found found;
  std::vector<std::uint64_t> shape;
  unsigned highest = 0;
  std::set<std::string> prefixes;
  for (const auto& entry : entries)
    for (const char* marker : {"-images-idx3-ubyte", "-images-idx4-ubyte"})
      if (const auto at = entry.name.find(marker); at != std::string::npos) prefixes.insert(entry.name.substr(0, at));
  for (const auto& prefix : prefixes) {
    std::string image_name = file_of(prefix + "-images-idx3-ubyte");
    if (image_name.empty()) image_name = file_of(prefix + "-images-idx4-ubyte");
    const std::string label_name = file_of(prefix + "-labels-idx1-ubyte");
    if (image_name.empty()) continue;
    const std::string image_path = join_path(request.path, image_name);
    if (label_name.empty()) return invalid_argument(image_path + ": there is no " + prefix + "-labels-idx1-ubyte[.gz] beside it");
    const std::string label_path = join_path(request.path, label_name);

    SKERRY_ASSIGN(Input images, Input::open(image_path));
    SKERRY_ASSIGN(const IdxHeader image_header, read_idx_header(images, image_path));
    if (image_header.extents.size() < 3) return invalid_argument(image_path + ": has fewer than 3 dimensions");
    std::vector<std::uint64_t> extents(image_header.extents.begin() + 1, image_header.extents.end());
    if (extents.size() == 2) extents.insert(extents.begin(), 1);
    if (shape.empty()) shape = extents;
    if (shape != extents) return invalid_argument(image_path + ": its images have another shape than those of the files before it");
    std::uint64_t values = image_header.extents[0];
    for (const auto extent : extents) {
      if (extent == 0 || values > (std::uint64_t{1} << 40) / extent) return invalid_argument(image_path + ": its header has an absurd shape");
      values *= extent;
    }
    SKERRY_TRY(read_idx_values(images, image_path, values, [](std::string_view) {}));

    SKERRY_ASSIGN(Input labels, Input::open(label_path));
    SKERRY_ASSIGN(const IdxHeader label_header, read_idx_header(labels, label_path));
    if (label_header.extents.size() != 1 || label_header.extents[0] != image_header.extents[0])
      return invalid_argument(label_path + ": " + std::to_string(label_header.extents[0]) + " labels for " +
                              std::to_string(image_header.extents[0]) + " images");
    SKERRY_TRY(read_idx_values(labels, label_path, label_header.extents[0], [&](std::string_view piece) {
      for (const char c : piece) highest = std::max(highest, static_cast<unsigned>(static_cast<unsigned char>(c)));
    }));
    found.total += image_header.extents[0];
    found.files += 2;
  }
  if (found.total == 0)
    return invalid_argument(request.path + ": no images; expected files such as train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz");
  const std::uint64_t classes = given.value("classes", std::uint64_t{std::max(highest + 1, 2u)});
  if (highest >= classes)
    return invalid_argument(request.path + ": a label is " + std::to_string(highest) + ", the schema has " + std::to_string(classes) + " classes");
  found.schema = {{"shape", shape}, {"classes", classes}};
  return found;
}

// ---- csv ----

/// The fields of one line (RFC 4180 quotes; a field does not span lines here).
Result<std::vector<std::string>> fields_of(const std::string& line, const std::string& where) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quoted) {
      if (c != '"') fields.back() += c;
      else if (i + 1 < line.size() && line[i + 1] == '"') fields.back() += line[++i];
      else quoted = false;
    } else if (c == '"' && fields.back().empty()) {
      quoted = true;
    } else if (c == ',') {
      fields.emplace_back();
    } else {
      fields.back() += c;
    }
  }
  if (quoted) return invalid_argument(where + ": a quote does not close");
  for (auto& field : fields) field = std::string(trimmed(field));
  return fields;
}

Result<Found> inspect_csv(const DataSetRequest& request, const json& given) {
  SKERRY_ASSIGN(Input input, Input::open(request.path));
  SKERRY_ASSIGN(auto header_line, input.line());
  if (!header_line) return invalid_argument(request.path + ": empty, expected a header line");
  if (header_line->starts_with("\xEF\xBB\xBF")) header_line->erase(0, 3);
  SKERRY_ASSIGN(const auto header, fields_of(*header_line, request.path + " line 1"));
  const auto column = [&](const std::string& name) -> Result<std::size_t> {
    const auto at = std::find(header.begin(), header.end(), name);
    if (at == header.end()) return invalid_argument(request.path + ": has no column \"" + name + "\"");
    return static_cast<std::size_t>(at - header.begin());
  };
  if (std::set<std::string>(header.begin(), header.end()).size() != header.size())
    return invalid_argument(request.path + ": two columns have the same name");
  std::string label;
  std::vector<std::string> features;
  try {
    label = given.value("label", header.back());
    features = given.value("features", std::vector<std::string>());
  } catch (const json::exception& error) {
    return invalid_argument("schema: " + std::string(error.what()));
  }
  if (features.empty())
    for (const auto& name : header)
      if (name != label) features.push_back(name);
  if (features.empty()) return invalid_argument(request.path + ": has no column besides the label \"" + label + "\"");
  SKERRY_ASSIGN(const std::size_t label_at, column(label));
  std::vector<std::size_t> feature_at;
  for (const auto& name : features) {
    SKERRY_ASSIGN(const std::size_t at, column(name));
    feature_at.push_back(at);
  }

  Found found;
  found.files = 1;
  bool whole = true;
  double highest = 0;
  std::uint64_t line_number = 1;
  for (;;) {
    SKERRY_ASSIGN(const auto line, input.line());
    if (!line) break;
    const std::string where = request.path + " line " + std::to_string(++line_number);
    if (trimmed(*line).empty()) continue;
    SKERRY_ASSIGN(const auto fields, fields_of(*line, where));
    if (fields.size() != header.size())
      return invalid_argument(where + ": has " + std::to_string(fields.size()) + " fields, the header has " + std::to_string(header.size()));
    for (std::size_t i = 0; i < feature_at.size(); ++i)
      if (!number_of(fields[feature_at[i]]))
        return invalid_argument(where + ": column \"" + features[i] + "\" must be a finite number");
    const auto value = number_of(fields[label_at]);
    if (!value) return invalid_argument(where + ": the label \"" + label + "\" must be a finite number");
    whole = whole && *value >= 0 && *value == std::floor(*value) && *value < 65536;
    highest = std::max(highest, *value);
    ++found.total;
  }
  if (found.total == 0) return invalid_argument(request.path + ": has no rows");
  // Whole numbers from 0 on are classes unless the holder says otherwise.
  const std::uint64_t seen = whole && highest <= 1000 ? std::max<std::uint64_t>(static_cast<std::uint64_t>(highest) + 1, 2) : 0;
  const std::uint64_t classes = given.value("classes", seen);
  if (classes > 0 && (!whole || highest >= static_cast<double>(classes)))
    return invalid_argument(request.path + ": column \"" + label + "\" is not a whole number in [0, " + std::to_string(classes - 1) +
                            "] everywhere; with \"classes\":0 in the schema it is taken as a measured value");
  found.schema = {{"features", features}, {"label", label}, {"classes", classes}};
  return found;
}

Result<std::uint64_t> count_indices(const std::string& path, std::uint64_t total) {
  SKERRY_ASSIGN(Input input, Input::open(path));
  std::vector<bool> seen(total, false);
  std::uint64_t count = 0, line_number = 0;
  for (;;) {
    SKERRY_ASSIGN(const auto line, input.line());
    if (!line) break;
    const auto text = trimmed(*line);
    const std::string where = path + " line " + std::to_string(++line_number);
    if (text.empty()) continue;
    std::uint64_t row = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), row);
    if (error != std::errc() || end != text.data() + text.size()) return invalid_argument(where + ": not a row number");
    if (row >= total) return invalid_argument(where + ": row " + std::to_string(row) + " of a data set with " + std::to_string(total));
    if (seen[row]) return invalid_argument(where + ": row " + std::to_string(row) + " is listed twice");
    seen[row] = true;
    ++count;
  }
  if (count == 0) return invalid_argument(path + ": lists no rows");
  return count;
}

}  // namespace

Result<DataSet> inspect_data_set(const DataSetRequest& request, std::int64_t now_ms) {
  if (!request.path.starts_with('/')) return invalid_argument("path \"" + request.path + "\" must be absolute");
  if (!(request.holdout >= 0 && request.holdout < 1))
    return invalid_argument("holdout is " + std::to_string(request.holdout) + ", must be in [0, 1)");
  const json given = request.schema_json.empty() ? json::object() : json::parse(request.schema_json, nullptr, false);
  if (!given.is_object()) return invalid_argument("the schema is not a JSON object; docs/trainer-protocol.md shows one for each kind");
  if (given.contains("classes") && !given["classes"].is_number_unsigned())
    return invalid_argument("schema: classes must be a whole number");

  Result<Found> found = invalid_argument("kind is \"" + request.kind + "\", must be text, jsonl, tokens, idx or csv");
  if (request.kind == "text") found = inspect_text(request);
  if (request.kind == "jsonl") found = inspect_lines(request, given);
  if (request.kind == "tokens") found = inspect_tokens(request);
  if (request.kind == "idx") found = inspect_idx(request, given);
  if (request.kind == "csv") found = inspect_csv(request, given);
  if (!found.ok()) return std::move(found).error();
  for (const auto& item : given.items()) {
    if (!found->schema.contains(item.key()))
      return invalid_argument("schema: kind " + request.kind + " has no member \"" + item.key() + "\"");
    if (found->schema[item.key()] != item.value())
      return invalid_argument("schema: " + item.key() + " is " + item.value().dump() + ", the data has " + found->schema[item.key()].dump());
  }

  DataSet set;
  set.name = request.name;
  set.kind = request.kind;
  set.path = request.path;
  set.indices = request.indices;
  set.holdout = request.holdout;
  set.total = found->total;
  set.files = found->files;
  set.checked_ms = now_ms;
  SKERRY_ASSIGN(set.schema_json, canonical_json(found->schema));
  if (!request.indices.empty()) {
    if (set.is_text()) return invalid_argument("indices are for kinds idx and csv only");
    if (!request.indices.starts_with('/')) return invalid_argument("indices \"" + request.indices + "\" must be an absolute path");
    SKERRY_ASSIGN(set.total, count_indices(request.indices, found->total));
  }
  return set;
}

Result<DataSet> check_data_set(const DataSet& known, std::int64_t now_ms) {
  DataSetRequest request{known.name, known.kind, known.path, known.holdout, known.kind == "text" ? "" : known.schema_json, known.indices};
  SKERRY_ASSIGN(DataSet now, inspect_data_set(request, now_ms));
  if (now.total != known.total)
    return failed_precondition("data set \"" + known.name + "\" had " + std::to_string(known.total) + " examples when it was added and has " +
                               std::to_string(now.total) + " now; `skerry-client data check --update " + known.name + "` takes the new count");
  return now;
}

}  // namespace skerry::client
