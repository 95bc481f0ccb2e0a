// Whole lines in from one descriptor and out to another, so that a busy trainer can look for news between two steps.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace skerry::trainer {

class LineChannel {
 public:
  /// Lines longer than this are cut (and then answered as what they are: not a JSON object).
  static constexpr std::size_t kMaxLine = 8 << 20;

  /// The descriptors stay the caller's. Not for several threads.
  LineChannel(int input, int output) : input_(input), output_(output) {}

  /// For a trainer inside another program: `sink` gets every line that is sent, and nothing ever comes in.
  explicit LineChannel(std::function<void(std::string_view)> sink) : sink_(std::move(sink)) {}

  /// The next line without its line feed, however long that takes; nothing at the end of the input.
  std::optional<std::string> wait();

  /// The next line if one is there already. `ended()` tells an empty input from a closed one.
  std::optional<std::string> poll();

  /// The input has ended or the output is broken: nobody is there any more.
  bool ended() const { return ended_; }

  /// Writes `line` and a line feed, whole.
  void send(std::string_view line);

 private:
  std::optional<std::string> take_line();
  void read_some();

  int input_ = -1;
  int output_ = -1;
  std::function<void(std::string_view)> sink_;
  bool ended_ = false;
  bool cutting_ = false;  // the rest of an overlong line is being dropped
  std::string buffer_;
  std::size_t scanned_ = 0;  // buffer_[0, scanned_) holds no line feed
};

}  // namespace skerry::trainer
