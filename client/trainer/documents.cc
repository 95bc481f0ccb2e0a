#include "client/trainer/documents.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "client/trainer/data_sources.h"
#include "common/model/token_file.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxLine = std::size_t{16} << 20;
constexpr std::size_t kFlushTokens = 1 << 20;

bool has_lines(const std::string& path) { return path.ends_with(".jsonl") || path.ends_with(".ndjson"); }

/// Tokens on their way into a file under a temporary name.
class TokenFileWriter {
 public:
  static Result<TokenFileWriter> create(std::string path, const Tokenizer& tokenizer) {
    SKERRY_ASSIGN(File file, File::open(path + ".new", OpenMode::kCreateOrEmpty));
    TokenFileWriter writer(std::move(file), std::move(path));
    writer.header_.end_of_text = static_cast<std::uint32_t>(tokenizer.end_of_text());
    writer.header_.vocabulary = static_cast<std::uint32_t>(tokenizer.text_bytes().size());
    writer.header_.token_bytes = writer.header_.vocabulary <= 65536 ? 2 : 4;
    writer.header_.tokenizer = tokenizer.id();
    const std::int64_t first[] = {tokenizer.end_of_text()};
    SKERRY_TRY(writer.append(first));
    return writer;
  }

  Result<void> append(std::span<const std::int64_t> tokens) {
    for (const std::int64_t token : tokens)
      for (std::uint32_t i = 0; i < header_.token_bytes; ++i) buffer_ += static_cast<char>(token >> (8 * i));
    header_.count += tokens.size();
    return buffer_.size() < kFlushTokens ? Result<void>() : flush();
  }

  Result<void> finish() {
    SKERRY_TRY(flush());
    SKERRY_ASSIGN(const std::string header, write_token_file_header(header_));
    SKERRY_TRY(file_.pwrite(as_bytes_of(header), 0));
    SKERRY_TRY(file_.fsync());
    return rename_durable(path_ + ".new", path_);
  }

  /// Instead of finish(): leaves nothing behind.
  void abandon() { (void)remove_file(path_ + ".new").ok(); }

 private:
  TokenFileWriter(File file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  Result<void> flush() {
    SKERRY_TRY(file_.pwrite(as_bytes_of(buffer_), at_));
    at_ += buffer_.size();
    buffer_.clear();
    return {};
  }

  File file_;
  std::string path_;
  TokenFileHeader header_;
  std::string buffer_;
  std::uint64_t at_ = TokenFileHeader::kBytes;
};

// "a/b.tokens", 1 → "a/b-1.tokens".
std::string shard_path(const std::string& path, unsigned shard) {
  const std::size_t slash = path.rfind('/');
  std::size_t dot = path.rfind('.');
  if (dot == std::string::npos || (slash != std::string::npos && dot < slash)) dot = path.size();
  return path.substr(0, dot) + "-" + std::to_string(shard) + path.substr(dot);
}

}  // namespace

Result<void> each_json_line(std::string_view content, const std::string& path, const std::string& field,
                            const TakeDocument& take) {
  std::uint64_t number = 0;
  while (!content.empty()) {
    const std::size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    const std::string where = path + " line " + std::to_string(++number);
    if (line.size() > kMaxLine) return invalid_argument(where + ": longer than 16 MiB");
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) return invalid_argument(where + ": not a JSON object");
    const auto text = object.find(field);
    if (text == object.end()) return invalid_argument(where + ": has no member \"" + field + "\"");
    if (!text->is_string()) return invalid_argument(where + ": member \"" + field + "\" is not a text");
    const auto& document = text->get_ref<const std::string&>();
    if (!document.empty()) SKERRY_TRY(take(document, where));
  }
  return {};
}

Result<void> each_document(const DocumentSource& source, const TakeDocument& take) {
  const bool lines = source.kind == "jsonl";
  SKERRY_ASSIGN(std::vector<std::string> files, files_of(source.path));
  const bool one_file = files.size() == 1 && files[0] == source.path;
  if (lines && !one_file) std::erase_if(files, [](const std::string& path) { return !has_lines(path); });
  bool any = false;
  const TakeDocument take_one = [&](std::string_view text, const std::string& where) {
    any = true;
    return take(text, where);
  };
  for (const std::string& path : files) {
    SKERRY_ASSIGN(const std::uint64_t size, file_size(path));
    if (size == 0) continue;
    SKERRY_ASSIGN(const MappedFile file, MappedFile::open(path));
    file.expect_sequential();
    const std::string_view content = as_text(file.bytes());
    SKERRY_TRY(lines ? each_json_line(content, path, source.field, take_one) : take_one(content, path));
    SKERRY_TRY(file.check());
  }
  if (any) return {};
  return invalid_argument(source.path +
                          (lines ? ": holds no JSON lines (files named *.jsonl or *.ndjson)" : ": holds no text"));
}

Result<TokenFilesWritten> write_token_files(const DocumentSource& source, const Tokenizer& tokenizer,
                                            const std::string& out, unsigned shards) {
  std::vector<TokenFileWriter> writers;
  for (unsigned shard = 0; shard < shards; ++shard) {
    SKERRY_ASSIGN(TokenFileWriter writer,
                  TokenFileWriter::create(shards == 1 ? out : shard_path(out, shard), tokenizer));
    writers.push_back(std::move(writer));
  }
  TokenFilesWritten written;
  std::vector<std::int64_t> tokens;
  auto cut = each_document(source, [&](std::string_view text, const std::string& where) -> Result<void> {
    tokens.clear();
    if (auto encoded = tokenizer.encode(text, tokens); !encoded.ok())
      return with_context(std::move(encoded).error(), where);
    tokens.push_back(tokenizer.end_of_text());
    written.tokens += tokens.size();
    written.text_bytes += text.size();
    return writers[written.documents++ % shards].append(tokens);
  });
  if (!cut.ok()) {
    for (TokenFileWriter& writer : writers) writer.abandon();
    return std::move(cut).error();
  }
  for (TokenFileWriter& writer : writers) SKERRY_TRY(writer.finish());
  written.files = shards;
  written.tokens += shards;
  return written;
}

}  // namespace skerry::trainer
