#include "client/trainer/token_source.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "client/trainer/data_sources.h"
#include "common/model/token_file.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are mapped as they are");

/// The bytes of a text, each a token.
class ByteSource final : public TokenSource {
 public:
  explicit ByteSource(Text text) : text_(std::move(text)) {
    size_ = text_.size();
    has_documents_ = false;
  }

  void copy(std::uint64_t first, std::span<std::int64_t> out) const override {
    std::string piece(out.size(), '\0');
    text_.copy(first, piece);
    for (std::size_t i = 0; i < piece.size(); ++i) out[i] = static_cast<unsigned char>(piece[i]);
  }

  Result<void> check() const override { return text_.check(); }

 private:
  Text text_;
};

template <typename Number>
class CutSource final : public TokenSource {
 public:
  void append(std::span<const std::int64_t> tokens) {
    for (const std::int64_t token : tokens) tokens_.push_back(static_cast<Number>(token));
    size_ = tokens_.size();
  }

  void copy(std::uint64_t first, std::span<std::int64_t> out) const override {
    std::copy_n(tokens_.begin() + static_cast<std::ptrdiff_t>(first), out.size(), out.begin());
  }

  Result<void> check() const override { return {}; }

 private:
  std::vector<Number> tokens_;
};

template <typename Number>
Result<std::shared_ptr<const TokenSource>> cut_into(const DocumentSource& source, const Tokenizer& tokenizer) {
  auto made = std::make_shared<CutSource<Number>>();
  std::vector<std::int64_t> tokens{tokenizer.end_of_text()};
  made->append(tokens);
  SKERRY_TRY(each_document(source, [&](std::string_view text, const std::string& where) -> Result<void> {
    tokens.clear();
    if (auto encoded = tokenizer.encode(text, tokens); !encoded.ok())
      return with_context(std::move(encoded).error(), where);
    tokens.push_back(tokenizer.end_of_text());
    made->append(tokens);
    return {};
  }));
  return std::shared_ptr<const TokenSource>(std::move(made));
}

/// Mapped token files, one after another.
class FileSource final : public TokenSource {
 public:
  Result<void> add(const std::string& path, const Tokenizer& tokenizer) {
    SKERRY_ASSIGN(MappedFile mapped, MappedFile::open(path));
    auto header = parse_token_file_header(as_text(mapped.bytes()), mapped.size());
    if (!header.ok()) return with_context(std::move(header).error(), path);
    if (header->tokenizer != tokenizer.id())
      return invalid_argument(path + ": its tokens are of tokenizer " + header->tokenizer + ", this run's is " +
                              tokenizer.id());
    Piece piece{size_, header->count, header->token_bytes, mapped.bytes().data() + TokenFileHeader::kBytes};
    if (header->end_of_text != tokenizer.end_of_text())
      return invalid_argument(path + ": its end-of-text token is " + std::to_string(header->end_of_text) +
                              ", the tokenizer's is " + std::to_string(tokenizer.end_of_text()));
    mapped.expect_sequential();
    if (const auto highest = piece.highest(); highest >= tokenizer.text_bytes().size())
      return invalid_argument(path + ": holds token " + std::to_string(highest) + " of a vocabulary of " +
                              std::to_string(tokenizer.text_bytes().size()));
    SKERRY_TRY(mapped.check());
    mapped.drop(0, mapped.size());
    if (piece.count > 0) pieces_.push_back(piece);
    size_ += piece.count;
    files_.push_back(std::move(mapped));
    return {};
  }

  void copy(std::uint64_t first, std::span<std::int64_t> out) const override {
    auto piece = std::upper_bound(pieces_.begin(), pieces_.end(), first,
                                  [](std::uint64_t at, const Piece& candidate) { return at < candidate.first; });
    --piece;
    while (!out.empty()) {
      const std::uint64_t skip = first - piece->first;
      const auto now = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), piece->count - skip));
      piece->copy(skip, out.first(now));
      out = out.subspan(now);
      first += now;
      ++piece;
    }
  }

  Result<void> check() const override {
    for (const MappedFile& file : files_) SKERRY_TRY(file.check());
    return {};
  }

 private:
  struct Piece {
    std::uint64_t first;
    std::uint64_t count;
    std::uint32_t token_bytes;
    const std::byte* tokens;  // aligned: a mapping's begin and 64 bytes

    template <typename Number>
    std::span<const Number> as() const {
      return {reinterpret_cast<const Number*>(tokens), static_cast<std::size_t>(count)};
    }
    std::uint64_t highest() const {
      if (count == 0) return 0;
      const auto of = [](auto numbers) { return std::uint64_t{*std::max_element(numbers.begin(), numbers.end())}; };
      return token_bytes == 2 ? of(as<std::uint16_t>()) : of(as<std::uint32_t>());
    }
    void copy(std::uint64_t from, std::span<std::int64_t> out) const {
      const auto part = [&](auto numbers) {
        const auto some = numbers.subspan(static_cast<std::size_t>(from), out.size());
        std::copy(some.begin(), some.end(), out.begin());
      };
      token_bytes == 2 ? part(as<std::uint16_t>()) : part(as<std::uint32_t>());
    }
  };

  std::vector<Piece> pieces_;
  std::vector<MappedFile> files_;
};

}  // namespace

Result<std::shared_ptr<const TokenSource>> open_bytes(const std::string& path, bool utf8) {
  SKERRY_ASSIGN(Text text, Text::open(path, utf8));
  return std::shared_ptr<const TokenSource>(std::make_shared<ByteSource>(std::move(text)));
}

Result<std::shared_ptr<const TokenSource>> cut_documents(const DocumentSource& source, const Tokenizer& tokenizer) {
  return tokenizer.text_bytes().size() <= 65536 ? cut_into<std::uint16_t>(source, tokenizer)
                                                : cut_into<std::uint32_t>(source, tokenizer);
}

Result<std::shared_ptr<const TokenSource>> open_token_files(const std::string& path, const Tokenizer& tokenizer) {
  SKERRY_ASSIGN(std::vector<std::string> files, files_of(path));
  if (!(files.size() == 1 && files[0] == path))
    std::erase_if(files, [](const std::string& file) { return !file.ends_with(".tokens"); });
  auto made = std::make_shared<FileSource>();
  for (const std::string& file : files) SKERRY_TRY(made->add(file, tokenizer));
  if (made->size() == 0) return invalid_argument(path + ": holds no token file (*.tokens) with a token in it");
  return std::shared_ptr<const TokenSource>(std::move(made));
}

}  // namespace skerry::trainer
