// The times at which a holder lets work be done.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::client {

/// A set of minutes of the week, local time.
class Hours {
 public:
  /// Each text is "always", or days, times, or both: "Mon-Fri 18:00-08:00", "Sat,Sun", "22:00-06:00". A span whose end is
  /// not after its begin runs past midnight into the next day. An empty list means always.
  /// INVALID_ARGUMENT quoting the text and showing the form.
  static Result<Hours> parse(const std::vector<std::string>& texts);

  /// `weekday` 0 (Sunday) … 6, as in std::tm; `minute` of the day, 0 … 1439.
  bool open_at(int weekday, int minute) const;

  const std::vector<std::string>& texts() const { return texts_; }

 private:
  struct Span {
    bool days[7] = {};
    int from = 0;  // minutes of the day
    int to = 0;    // may exceed a day
  };
  std::vector<Span> spans_;
  std::vector<std::string> texts_;
};

}  // namespace skerry::client
