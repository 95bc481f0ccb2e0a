#include "client/trainer/data_sources.h"

#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>

namespace skerry::trainer {
namespace {

constexpr std::uint64_t kMaxValues = std::uint64_t{1} << 31;
constexpr std::uint64_t kMaxTableBytes = std::uint64_t{1} << 32;
constexpr std::uint64_t kMapFrom = 1 << 20;
constexpr std::size_t kMaxMapped = 256;
constexpr std::size_t kMaxTextFiles = 1'000'000;

/// A plain or gzip file read from the front (zlib's gzread passes plain files through).
class GzFile {
 public:
  explicit GzFile(const std::string& path) : file_(gzopen(path.c_str(), "rbe")) {
    if (file_ != nullptr) gzbuffer(file_, 1 << 17);
  }
  GzFile(const GzFile&) = delete;
  GzFile& operator=(const GzFile&) = delete;
  ~GzFile() {
    if (file_ != nullptr) gzclose(file_);
  }
  bool opened() const { return file_ != nullptr; }

  /// Bytes read: fewer than asked for at the end or where the stream is damaged.
  std::uint64_t read(unsigned char* out, std::uint64_t count) {
    std::uint64_t got = 0;
    while (got < count) {
      const auto wanted = static_cast<unsigned>(std::min<std::uint64_t>(count - got, 1 << 24));
      const int now = gzread(file_, out + got, wanted);
      if (now <= 0) break;
      got += static_cast<std::uint64_t>(now);
    }
    return got;
  }

 private:
  gzFile file_;
};

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text;
  for (const std::uint64_t extent : shape) text += (text.empty() ? "" : " × ") + std::to_string(extent);
  return text;
}

// "train" for "train-images-idx3-ubyte.gz"; empty where the name is not one of `marker`.
std::string prefix_of(const std::string& name, std::string_view marker) {
  std::string_view rest = name;
  if (rest.ends_with(".gz")) rest.remove_suffix(3);
  if (!rest.ends_with(marker)) return "";
  rest.remove_suffix(marker.size());
  return std::string(rest);
}

// One CSV record from `at`, its fields put into `fields`; returns the position after it, or npos for open quotes.
std::size_t read_record(std::string_view text, std::size_t at, std::vector<std::string>& fields, std::uint64_t& lines) {
  fields.clear();
  std::string field;
  bool quoted = false;
  for (;; ++at) {
    if (at == text.size()) {
      if (quoted) return std::string_view::npos;
      break;
    }
    const char c = text[at];
    if (quoted) {
      if (c == '\n') ++lines;
      if (c != '"') {
        field += c;
      } else if (at + 1 < text.size() && text[at + 1] == '"') {
        field += '"';
        ++at;
      } else {
        quoted = false;
      }
    } else if (c == '"' && field.empty()) {
      quoted = true;
    } else if (c == ',') {
      fields.push_back(std::move(field));
      field.clear();
    } else if (c == '\n') {
      break;
    } else {
      field += c;
    }
  }
  if (!field.empty() && field.back() == '\r') field.pop_back();
  fields.push_back(std::move(field));
  ++lines;
  return at == text.size() ? at : at + 1;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool parse_number(std::string_view text, double& value) {
  text = trimmed(text);
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(value) &&
         std::isfinite(static_cast<float>(value));
}

std::string clipped(const std::string& text) { return text.size() <= 40 ? text : text.substr(0, 37) + "..."; }

Result<void> list_files(const std::string& directory, unsigned depth, std::vector<std::string>& files) {
  if (depth > 64) return invalid_argument(directory + ": more than 64 directories deep");
  SKERRY_ASSIGN(auto entries, list_directory(directory));
  for (const DirectoryEntry& entry : entries) {
    if (entry.name.starts_with('.')) continue;
    const std::string path = join_path(directory, entry.name);
    if (entry.is_directory) {
      SKERRY_TRY(list_files(path, depth + 1, files));
    } else if (entry.size > 0) {
      if (files.size() == kMaxTextFiles) return invalid_argument(directory + ": more than 1,000,000 files");
      files.push_back(path);
    }
  }
  return {};
}

}  // namespace

Result<IdxFile> read_idx(const std::string& path) {
  if (!path_exists(path)) return not_found(path + ": no such file");
  GzFile file(path);
  if (!file.opened()) return file_error(errno, "open", path);
  unsigned char magic[4];
  if (file.read(magic, 4) != 4) return invalid_argument(path + ": shorter than an IDX header, or damaged gzip");
  if (magic[0] != 0 || magic[1] != 0 || magic[2] != 8 || magic[3] == 0 || magic[3] > 4) {
    return invalid_argument(path + ": not an IDX file of unsigned bytes with 1 … 4 dimensions (its first bytes are " +
                            std::to_string(magic[0]) + " " + std::to_string(magic[1]) + " " + std::to_string(magic[2]) +
                            " " + std::to_string(magic[3]) + ", expected 0 0 8 1…4)");
  }
  IdxFile idx;
  std::uint64_t count = 1;
  for (int i = 0; i < magic[3]; ++i) {
    unsigned char extent[4];
    if (file.read(extent, 4) != 4) return invalid_argument(path + ": shorter than its IDX header");
    const std::uint64_t value = std::uint64_t{extent[0]} << 24 | std::uint64_t{extent[1]} << 16 |
                                std::uint64_t{extent[2]} << 8 | std::uint64_t{extent[3]};
    idx.extents.push_back(value);
    if (value != 0 && count > kMaxValues / value) {
      return invalid_argument(path + ": its header promises " + shape_text(idx.extents) +
                              " … values, the limit is 2^31");
    }
    count *= value;
  }
  // In pieces, so that a header that promises much for a short file costs no memory.
  while (idx.values.size() < count) {
    const std::size_t had = idx.values.size();
    const std::size_t piece = static_cast<std::size_t>(std::min<std::uint64_t>(count - had, 1 << 24));
    idx.values.resize(had + piece);
    const std::uint64_t got = file.read(idx.values.data() + had, piece);
    if (got != piece) {
      return invalid_argument(path + ": ends after " + std::to_string(had + got) + " of " + std::to_string(count) +
                              " values, or its gzip stream is damaged; fetch it again");
    }
  }
  unsigned char more = 0;
  if (file.read(&more, 1) != 0) {
    return invalid_argument(path + ": longer than the " + shape_text(idx.extents) + " values of its header");
  }
  return idx;
}

Result<Images> read_images(const std::string& directory, const std::vector<std::uint64_t>& shape, unsigned classes) {
  SKERRY_ASSIGN(auto entries, list_directory(directory));
  std::map<std::string, std::pair<std::string, std::string>> pairs;  // prefix → images, labels
  for (const DirectoryEntry& entry : entries) {
    for (const char* marker : {"-images-idx3-ubyte", "-images-idx4-ubyte"}) {
      const std::string prefix = prefix_of(entry.name, marker);
      // The plain file sorts before its .gz twin and is preferred.
      if (!prefix.empty() && pairs[prefix].first.empty()) pairs[prefix].first = entry.name;
    }
    const std::string prefix = prefix_of(entry.name, "-labels-idx1-ubyte");
    if (!prefix.empty() && pairs[prefix].second.empty()) pairs[prefix].second = entry.name;
  }
  Images all;
  all.shape = shape;
  for (const auto& [prefix, names] : pairs) {
    if (names.first.empty() || names.second.empty()) {
      return invalid_argument(directory + ": " + prefix + " has " +
                              (names.first.empty() ? "labels but no images" : "images but no labels"));
    }
    const std::string image_path = join_path(directory, names.first);
    SKERRY_ASSIGN(IdxFile images, read_idx(image_path));
    SKERRY_ASSIGN(IdxFile labels, read_idx(join_path(directory, names.second)));
    if (images.extents.size() < 3) return invalid_argument(image_path + ": has fewer than 3 dimensions");
    std::vector<std::uint64_t> extents(images.extents.begin() + 1, images.extents.end());
    if (extents.size() == 2) extents.insert(extents.begin(), 1);
    if (all.shape.empty()) all.shape = extents;
    if (extents != all.shape) {
      return invalid_argument(image_path + ": its images are " + shape_text(extents) + ", expected " +
                              shape_text(all.shape));
    }
    if (labels.extents.size() != 1 || labels.extents[0] != images.extents[0]) {
      return invalid_argument(image_path + ": " + std::to_string(images.extents[0]) + " images but " +
                              shape_text(labels.extents) + " labels");
    }
    for (std::size_t i = 0; i < labels.values.size(); ++i) {
      if (labels.values[i] >= classes) {
        return invalid_argument(join_path(directory, names.second) + ": label " + std::to_string(i) + " is " +
                                std::to_string(labels.values[i]) + ", must be below " + std::to_string(classes));
      }
    }
    all.pixels.insert(all.pixels.end(), images.values.begin(), images.values.end());
    all.labels.insert(all.labels.end(), labels.values.begin(), labels.values.end());
  }
  if (all.labels.empty()) {
    return invalid_argument(directory +
                            ": no images; expected files such as train-images-idx3-ubyte.gz and "
                            "train-labels-idx1-ubyte.gz");
  }
  return all;
}

Result<Table> parse_table(std::string_view text, const std::string& name, const std::vector<std::string>& features,
                          const std::string& label, std::uint64_t classes) {
  std::vector<std::string> fields;
  std::uint64_t line = 0;
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  std::size_t at = read_record(text, 0, fields, line);
  if (at == std::string_view::npos) return invalid_argument(name + ": a quote in the header line does not close");
  const std::size_t columns = fields.size();
  std::map<std::string, std::size_t> column_of;
  for (std::size_t i = 0; i < columns; ++i) {
    const std::string column(trimmed(fields[i]));
    if (!column_of.emplace(column, i).second) {
      return invalid_argument(name + ": column \"" + clipped(column) + "\" stands twice in the header line");
    }
  }
  std::vector<std::size_t> wanted;
  for (const std::string& column : features) {
    const auto it = column_of.find(column);
    if (it == column_of.end()) return invalid_argument(name + ": has no column \"" + clipped(column) + "\"");
    wanted.push_back(it->second);
  }
  const auto label_at = column_of.find(label);
  if (label_at == column_of.end()) return invalid_argument(name + ": has no column \"" + clipped(label) + "\"");

  Table table;
  while (at < text.size()) {
    const std::uint64_t row_line = line + 1;
    const std::string where = name + " line " + std::to_string(row_line);
    at = read_record(text, at, fields, line);
    if (at == std::string_view::npos) return invalid_argument(where + ": a quote does not close");
    if (fields.size() == 1 && trimmed(fields[0]).empty()) continue;
    if (fields.size() != columns) {
      return invalid_argument(where + ": has " + std::to_string(fields.size()) + " fields, the header has " +
                              std::to_string(columns));
    }
    double value = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (!parse_number(fields[wanted[i]], value)) {
        return invalid_argument(where + ": " + clipped(features[i]) + " is \"" + clipped(fields[wanted[i]]) +
                                "\", must be a finite number");
      }
      table.values.push_back(static_cast<float>(value));
    }
    const std::string& field = fields[label_at->second];
    const bool number = parse_number(field, value);
    const bool class_number =
        number && value >= 0 && value < static_cast<double>(classes) && value == std::floor(value);
    if (classes == 0 ? !number : !class_number) {
      return invalid_argument(
          where + ": " + clipped(label) + " is \"" + clipped(field) + "\", must be " +
          (classes == 0 ? "a finite number" : "a whole number in [0, " + std::to_string(classes - 1) + "]"));
    }
    table.labels.push_back(static_cast<float>(value));
  }
  if (table.labels.empty()) return invalid_argument(name + ": has no rows");
  return table;
}

Result<Table> read_table(const std::string& path, const std::vector<std::string>& features, const std::string& label,
                         std::uint64_t classes) {
  SKERRY_ASSIGN(const std::string text, read_file(path, kMaxTableBytes));
  return parse_table(text, path, features, label, classes);
}

Result<std::vector<std::uint64_t>> read_indices(const std::string& path, std::uint64_t count) {
  SKERRY_ASSIGN(const std::string text, read_file(path, std::uint64_t{1} << 30));
  std::vector<std::uint64_t> rows;
  std::vector<bool> seen(count, false);
  std::uint64_t line = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view field(text.data() + at, end - at);
    at = end + 1;
    ++line;
    if (field.ends_with('\r')) field.remove_suffix(1);
    field = trimmed(field);
    if (field.empty()) continue;
    std::uint64_t row = 0;
    const auto [last, error] = std::from_chars(field.data(), field.data() + field.size(), row);
    const std::string where = path + " line " + std::to_string(line) + ": ";
    if (error != std::errc() || last != field.data() + field.size()) {
      return invalid_argument(where + "\"" + clipped(std::string(field)) + "\" is not a row number");
    }
    if (row >= count) {
      return invalid_argument(where + "row " + std::to_string(row) + " of a data set with " + std::to_string(count));
    }
    if (seen[row]) return invalid_argument(where + "row " + std::to_string(row) + " is listed twice");
    seen[row] = true;
    rows.push_back(row);
  }
  if (rows.empty()) return invalid_argument(path + ": lists no rows");
  return rows;
}

Result<std::vector<std::string>> files_of(const std::string& path) {
  std::vector<std::string> files;
  if (!list_directory(path).ok()) return std::vector{path};
  SKERRY_TRY(list_files(path, 0, files));
  std::sort(files.begin(), files.end());
  return files;
}

Result<Text> Text::open(const std::string& path, bool utf8) {
  SKERRY_ASSIGN(const std::vector<std::string> files, files_of(path));
  Text text;
  for (const std::string& file : files) {
    SKERRY_ASSIGN(const std::uint64_t size, file_size(file));
    std::string_view bytes;
    if (size >= kMapFrom && text.mapped_.size() < kMaxMapped) {
      SKERRY_ASSIGN(MappedFile mapped, MappedFile::open(file));
      bytes = as_text(mapped.bytes());
      text.mapped_.push_back(std::move(mapped));
    } else {
      SKERRY_ASSIGN(std::string content, read_file(file, std::uint64_t{1} << 36));
      text.loaded_.push_back(std::make_unique<std::string>(std::move(content)));
      bytes = *text.loaded_.back();
    }
    if (utf8) {
      if (const std::size_t at = first_not_utf8(bytes); at != bytes.size()) {
        return invalid_argument(file + ": not UTF-8 at byte " + std::to_string(at));
      }
    }
    if (bytes.empty()) continue;
    text.pieces_.push_back({text.size_, bytes});
    text.size_ += bytes.size();
  }
  if (text.size_ == 0) return invalid_argument(path + ": holds no text");
  return text;
}

void Text::copy(std::uint64_t first, std::span<char> out) const {
  auto piece = std::upper_bound(pieces_.begin(), pieces_.end(), first,
                                [](std::uint64_t at, const Piece& candidate) { return at < candidate.first; });
  --piece;
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t skip = static_cast<std::size_t>(first + done - piece->first);
    const std::size_t now = std::min(out.size() - done, piece->bytes.size() - skip);
    std::memcpy(out.data() + done, piece->bytes.data() + skip, now);
    done += now;
    ++piece;
  }
}

Result<void> Text::check() const {
  for (const MappedFile& file : mapped_) SKERRY_TRY(file.check());
  return {};
}

std::size_t first_not_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const std::size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                               : lead >= 0xE0 && lead <= 0xEF ? 3
                               : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                              : 0;
    if (length == 0 || i + length > text.size()) return i;
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return i;
    }
    const unsigned second = byte(i + 1);
    if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) || (lead == 0xF0 && second < 0x90) ||
        (lead == 0xF4 && second > 0x8F)) {
      return i;
    }
    i += length;
  }
  return text.size();
}

}  // namespace skerry::trainer
