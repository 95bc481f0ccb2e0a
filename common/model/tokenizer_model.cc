#include "common/model/tokenizer_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

namespace skerry {
namespace {

constexpr std::size_t kMaxTokenBytes = 512;

Error refused(const std::string& why) {
  return invalid_argument("not a SentencePiece model that can be used: " + why +
                          "; `skerry-trainer tokenizer train` makes one");
}

/// One field of a Protocol Buffers message.
struct WireField {
  std::uint64_t number = 0;
  std::uint64_t value = 0;  ///< varints and fixed numbers
  std::string_view bytes;   ///< texts, messages
};

/// The fields of a message, one after another. https://protobuf.dev/programming-guides/encoding
class WireReader {
 public:
  explicit WireReader(std::string_view message) : rest_(message) {}

  /// Nothing at the end, or where the message is broken.
  std::optional<WireField> next() {
    if (rest_.empty()) return std::nullopt;
    const auto key = varint();
    WireField field;
    if (!key || (field.number = *key >> 3) == 0) return broken();
    switch (*key & 7) {
      case 0: {
        const auto value = varint();
        if (!value) return broken();
        field.value = *value;
        return field;
      }
      case 1:
        return fixed(field, 8);
      case 2: {
        const auto size = varint();
        if (!size || *size > rest_.size()) return broken();
        field.bytes = rest_.substr(0, static_cast<std::size_t>(*size));
        rest_.remove_prefix(field.bytes.size());
        return field;
      }
      case 5:
        return fixed(field, 4);
      default:
        return broken();
    }
  }

  bool ok() const { return ok_; }

 private:
  std::optional<WireField> broken() {
    ok_ = false;
    rest_ = {};
    return std::nullopt;
  }

  std::optional<std::uint64_t> varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  std::optional<WireField> fixed(WireField field, std::size_t size) {
    if (rest_.size() < size) return broken();
    for (std::size_t i = size; i-- > 0;) field.value = field.value << 8 | static_cast<unsigned char>(rest_[i]);
    rest_.remove_prefix(size);
    return field;
  }

  std::string_view rest_;
  bool ok_ = true;
};

struct Piece {
  std::string_view text;
  float score = 0;
  std::uint64_t type = 1;
};

/// What the model file says, field by field (sentencepiece_model.proto), with the defaults of that file.
struct ModelFile {
  std::vector<Piece> pieces;
  std::uint64_t model_type = 1;
  bool byte_fallback = false;
  bool spaces_behind = false;  // treat_whitespace_as_suffix
  std::string_view end_piece = "</s>";
  bool charsmap = false;
  bool dummy_prefix = true;
  bool removes_spaces = true;
  bool escapes_spaces = true;
};

std::optional<Piece> read_piece(std::string_view message) {
  Piece piece;
  WireReader reader(message);
  while (const auto field = reader.next()) {
    if (field->number == 1) piece.text = field->bytes;
    if (field->number == 2) {
      const auto bits = static_cast<std::uint32_t>(field->value);
      std::memcpy(&piece.score, &bits, sizeof bits);
    }
    if (field->number == 3) piece.type = field->value;
  }
  return reader.ok() ? std::optional(piece) : std::nullopt;
}

bool read_trainer_section(std::string_view message, ModelFile& file) {
  WireReader reader(message);
  while (const auto field = reader.next()) {
    if (field->number == 3) file.model_type = field->value;
    if (field->number == 24) file.spaces_behind = field->value != 0;
    if (field->number == 35) file.byte_fallback = field->value != 0;
    if (field->number == 47) file.end_piece = field->bytes;
  }
  return reader.ok();
}

bool read_normaliser(std::string_view message, ModelFile& file) {
  WireReader reader(message);
  while (const auto field = reader.next()) {
    if (field->number == 2) file.charsmap = file.charsmap || !field->bytes.empty();
    if (field->number == 3) file.dummy_prefix = field->value != 0;
    if (field->number == 4) file.removes_spaces = field->value != 0;
    if (field->number == 5) file.escapes_spaces = field->value != 0;
    if (field->number == 6) file.charsmap = file.charsmap || !field->bytes.empty();
  }
  return reader.ok();
}

Result<ModelFile> read_model(std::string_view bytes) {
  const Error broken = refused("its bytes are no Protocol Buffers message of that kind");
  ModelFile file;
  WireReader reader(bytes);
  while (const auto field = reader.next()) {
    bool good = true;
    switch (field->number) {
      case 1: {
        if (file.pieces.size() == kMaxVocabulary) return refused("it has more than 1,048,576 tokens");
        const auto piece = read_piece(field->bytes);
        good = piece.has_value();
        if (good) file.pieces.push_back(*piece);
        break;
      }
      case 2:
        good = read_trainer_section(field->bytes, file);
        break;
      case 3:
        good = read_normaliser(field->bytes, file);
        break;
      case 5: {  // of the way back: only that it has no map matters
        ModelFile back;
        good = read_normaliser(field->bytes, back);
        file.charsmap = file.charsmap || back.charsmap;
        break;
      }
      default:
        break;
    }
    if (!good) return broken;
  }
  if (!reader.ok() || file.pieces.empty()) return broken;
  return file;
}

Result<void> check_settings(const ModelFile& file) {
  if (file.model_type != 1 && file.model_type != 2) return refused("it is neither unigram nor bpe");
  if (!file.byte_fallback) return refused("it has no byte fallback, so it cannot tell every text");
  if (file.charsmap) return refused("it normalises text; the rule must be identity");
  if (file.removes_spaces) return refused("it removes spaces (remove_extra_whitespaces)");
  if (!file.escapes_spaces || file.spaces_behind) return refused("spaces do not stand before words in it");
  if (file.end_piece != "</s>") return refused("its end-of-text token is not \"</s>\"");
  return {};
}

// "<0x0A>" → 10.
std::optional<unsigned> byte_of(std::string_view piece) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  const auto high = kDigits.find(piece[3]);
  const auto low = kDigits.find(piece[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
  return static_cast<unsigned>(16 * high + low);
}

std::uint16_t text_bytes_of(std::string_view piece) {
  std::size_t bytes = piece.size();
  for (auto at = piece.find(kTokenSpace); at != std::string_view::npos;
       at = piece.find(kTokenSpace, at + kTokenSpace.size()))
    bytes -= kTokenSpace.size() - 1;
  return static_cast<std::uint16_t>(bytes);
}

}  // namespace

Result<TokenizerModel> parse_tokenizer_model(std::string_view bytes) {
  if (bytes.size() > kMaxTokenizerBytes) return refused("it is larger than 16 MiB");
  SKERRY_ASSIGN(const ModelFile file, read_model(bytes));
  SKERRY_TRY(check_settings(file));

  using Type = TokenizerModel::Type;
  TokenizerModel model;
  model.kind = file.model_type == 1 ? TokenizerModel::Kind::kUnigram : TokenizerModel::Kind::kBpe;
  model.dummy_prefix = file.dummy_prefix;
  model.tokens.reserve(file.pieces.size());
  std::optional<std::uint64_t> unknown, end;
  std::array<bool, 256> has_byte{};
  std::set<std::string_view> seen;
  bool has_space = false;
  for (std::uint64_t id = 0; id < file.pieces.size(); ++id) {
    const Piece& piece = file.pieces[id];
    const auto bad = [&](const char* why) { return refused("token " + std::to_string(id) + " " + why); };
    if (piece.text.empty() || piece.text.size() > kMaxTokenBytes) return bad("is empty or longer than 512 bytes");
    if (!std::isfinite(piece.score)) return bad("has a score that is not finite");
    if (!seen.insert(piece.text).second) return bad("is there twice");
    TokenizerModel::Token token{std::string(piece.text), piece.score, static_cast<Type>(piece.type), 0, 0};
    switch (piece.type) {
      case static_cast<std::uint64_t>(Type::kNormal):
      case static_cast<std::uint64_t>(Type::kUserDefined):
        token.text_bytes = text_bytes_of(piece.text);
        has_space = has_space || piece.text == kTokenSpace;
        break;
      case static_cast<std::uint64_t>(Type::kUnknown):
        if (unknown) return bad("is a second unknown token");
        unknown = id;
        break;
      case static_cast<std::uint64_t>(Type::kControl):
        if (piece.text == "</s>") end = id;
        if (piece.text == "<s>") model.has_begin = true;
        break;
      case static_cast<std::uint64_t>(Type::kByte): {
        const auto byte = byte_of(piece.text);
        if (!byte) return bad("is no byte");
        has_byte[*byte] = true;
        token.byte = static_cast<std::uint8_t>(*byte);
        token.text_bytes = 1;
        break;
      }
      default:
        return bad("is unused, or of an unknown type");
    }
    model.tokens.push_back(std::move(token));
  }
  if (std::count(has_byte.begin(), has_byte.end(), true) != 256) return refused("not every byte has a token");
  if (!unknown) return refused("it has no unknown token");
  if (!end) return refused("it has no end-of-text token \"</s>\"");
  if (!has_space) return refused("it has no token for a space");
  model.unknown = *unknown;
  model.end_of_text = *end;
  return model;
}

}  // namespace skerry
