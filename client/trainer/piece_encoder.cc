#include "client/trainer/piece_encoder.h"

#include <algorithm>
#include <queue>
#include <utility>

namespace skerry::trainer {
namespace {

using Type = TokenizerModel::Type;

constexpr float kUnknownPenalty = 10.0f;
constexpr std::size_t kMaxKnownWords = 1 << 18;
constexpr std::size_t kMaxKnownWord = 64;

// Bytes of the character that begins with this one.
std::size_t character_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// Where the first word ends: before a space that follows something else.
std::size_t word_end(std::string_view text) {
  bool spaces = true;
  for (std::size_t at = 0; at < text.size();) {
    const bool space = text.substr(at).starts_with(kTokenSpace);
    if (space && !spaces) return at;
    spaces = spaces && space;
    at += space ? kTokenSpace.size() : 1;
  }
  return text.size();
}

}  // namespace

PieceEncoder::PieceEncoder(TokenizerModel model) : model_(std::move(model)) {
  bool any = false;
  for (std::size_t i = 0; i < model_.tokens.size(); ++i) {
    const TokenizerModel::Token& token = model_.tokens[i];
    const auto id = static_cast<std::int32_t>(i);
    if (token.type == Type::kByte) bytes_[token.byte] = id;
    if (token.type != Type::kNormal && token.type != Type::kUserDefined) continue;
    ids_.emplace(token.piece, id);
    sorted_.emplace_back(token.piece, id);
    words_ = words_ && word_end(token.piece) == token.piece.size();
    if (token.type == Type::kUserDefined) {
      user_defined_.push_back(token.piece);
      words_ = false;
      continue;
    }
    lowest_ = any ? std::min(lowest_, token.score) : token.score;
    highest_ = any ? std::max(highest_, token.score) : token.score;
    any = true;
  }
  std::sort(sorted_.begin(), sorted_.end());
  std::stable_sort(user_defined_.begin(), user_defined_.end(),
                   [](std::string_view a, std::string_view b) { return a.size() > b.size(); });
}

void PieceEncoder::encode(std::string_view text, std::vector<std::int64_t>& tokens) const {
  if (text.empty()) return;
  std::string normal(model_.dummy_prefix ? kTokenSpace : std::string_view());
  normal.reserve(text.size() + text.size() / 2);
  for (const char c : text) {
    if (c == ' ')
      normal += kTokenSpace;
    else
      normal += c;
  }
  const std::lock_guard lock(mutex_);
  Ids ids;
  for (std::string_view rest = normal; !rest.empty();) {
    const std::size_t end = words_ ? word_end(rest) : rest.size();
    ids.clear();
    encode_word(rest.substr(0, end), ids);
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    rest.remove_prefix(end);
  }
}

void PieceEncoder::encode_word(std::string_view word, Ids& ids) const {
  const auto compute = [&] { return model_.kind == TokenizerModel::Kind::kBpe ? merge_pairs(word) : likeliest(word); };
  if (word.size() > kMaxKnownWord) {
    ids = compute();
    return;
  }
  if (known_.size() >= kMaxKnownWords) known_.clear();
  const auto [entry, fresh] = known_.try_emplace(std::string(word));
  if (fresh) entry->second = compute();
  ids = entry->second;
}

void PieceEncoder::put(std::string_view piece, Ids& ids) const {
  if (const auto found = ids_.find(piece); found != ids_.end()) {
    ids.push_back(found->second);
  } else {
    for (const char c : piece) ids.push_back(bytes_[static_cast<unsigned char>(c)]);
  }
}

std::size_t PieceEncoder::first_symbol(std::string_view text, bool& user_defined) const {
  for (const std::string_view piece : user_defined_) {
    user_defined = text.starts_with(piece);
    if (user_defined) return piece.size();
  }
  return std::min(text.size(), character_bytes(text[0]));
}

PieceEncoder::Ids PieceEncoder::merge_pairs(std::string_view word) const {
  struct Symbol {
    int previous, next;
    bool fixed;  // user-defined: it merges with nothing
    std::string_view piece;
  };
  struct Pair {
    int left, right;
    float score;
    std::size_t size;
  };
  // The highest score first, then the leftmost.
  const auto later = [](const Pair& a, const Pair& b) {
    return a.score < b.score || (a.score == b.score && a.left > b.left);
  };
  std::priority_queue<Pair, std::vector<Pair>, decltype(later)> agenda(later);
  std::vector<Symbol> symbols;
  const auto propose = [&](int left, int right) {
    if (left < 0 || right < 0) return;
    const Symbol& first = symbols[static_cast<std::size_t>(left)];
    const Symbol& second = symbols[static_cast<std::size_t>(right)];
    if (first.fixed || second.fixed) return;
    const std::string_view merged(first.piece.data(), first.piece.size() + second.piece.size());
    const auto found = ids_.find(merged);
    if (found == ids_.end()) return;
    agenda.push({left, right, model_.tokens[static_cast<std::size_t>(found->second)].score, merged.size()});
  };

  while (!word.empty()) {
    const int here = static_cast<int>(symbols.size());
    bool fixed = false;
    const std::size_t size = first_symbol(word, fixed);
    symbols.push_back({here - 1, size == word.size() ? -1 : here + 1, fixed, word.substr(0, size)});
    word.remove_prefix(size);
  }
  for (int i = 1; i < static_cast<int>(symbols.size()); ++i) propose(i - 1, i);
  while (!agenda.empty()) {
    const Pair top = agenda.top();
    agenda.pop();
    Symbol& left = symbols[static_cast<std::size_t>(top.left)];
    Symbol& right = symbols[static_cast<std::size_t>(top.right)];
    // Proposed before one of the two was merged with another.
    if (left.piece.empty() || right.piece.empty() || left.piece.size() + right.piece.size() != top.size) continue;
    left.piece = {left.piece.data(), top.size};
    left.next = right.next;
    if (right.next >= 0) symbols[static_cast<std::size_t>(right.next)].previous = top.left;
    right.piece = {};
    propose(left.previous, top.left);
    propose(top.left, left.next);
  }
  Ids ids;
  for (int at = symbols.empty() ? -1 : 0; at >= 0; at = symbols[static_cast<std::size_t>(at)].next)
    put(symbols[static_cast<std::size_t>(at)].piece, ids);
  return ids;
}

PieceEncoder::Ids PieceEncoder::likeliest(std::string_view word) const {
  struct Node {
    float score = 0;  // of the best path that ends here
    std::int64_t begin = -1;
    std::int32_t id = -1;
  };
  std::vector<Node> nodes(word.size() + 1);
  const auto reach = [&](std::size_t begin, std::size_t end, std::int32_t id, double score) {
    const double candidate = score + nodes[begin].score;
    if (nodes[end].begin >= 0 && candidate <= nodes[end].score) return;
    nodes[end] = {static_cast<float>(candidate), static_cast<std::int64_t>(begin), id};
  };
  for (std::size_t begin = 0; begin < word.size();) {
    const std::size_t character = std::min(word.size() - begin, character_bytes(word[begin]));
    bool single = false;
    auto low = sorted_.begin(), high = sorted_.end();
    for (std::size_t end = begin; end < word.size() && low != high; ++end) {
      // Those that go on with the next byte: all of the range have the same bytes so far.
      const std::size_t depth = end - begin;
      const auto byte = static_cast<unsigned char>(word[end]);
      const auto at_depth = [depth](std::string_view piece) {
        return piece.size() <= depth ? -1 : static_cast<int>(static_cast<unsigned char>(piece[depth]));
      };
      low = std::lower_bound(low, high, int{byte},
                             [&](const auto& entry, int value) { return at_depth(entry.first) < value; });
      high = std::upper_bound(low, high, int{byte},
                              [&](int value, const auto& entry) { return value < at_depth(entry.first); });
      if (low == high || low->first.size() != depth + 1) continue;
      const TokenizerModel::Token& token = model_.tokens[static_cast<std::size_t>(low->second)];
      // A user-defined token is always taken.
      const bool user_defined = token.type == Type::kUserDefined;
      reach(begin, end + 1, low->second,
            user_defined ? static_cast<float>(depth + 1) * highest_ - 0.1 : static_cast<double>(token.score));
      single = single || depth + 1 == character;
    }
    if (!single) reach(begin, begin + character, -1, static_cast<double>(lowest_ - kUnknownPenalty));
    begin += character;
  }
  std::vector<std::string_view> pieces;
  for (std::size_t end = word.size(); end > 0;) {
    const auto begin = static_cast<std::size_t>(nodes[end].begin);
    pieces.push_back(word.substr(begin, end - begin));
    end = begin;
  }
  Ids ids;
  for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) put(*piece, ids);
  return ids;
}

}  // namespace skerry::trainer
