#include "client/trainer/line_channel.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>

namespace skerry::trainer {

std::optional<std::string> LineChannel::take_line() {
  for (;;) {
    const std::size_t end = buffer_.find('\n', scanned_);
    if (end == std::string::npos) {
      scanned_ = buffer_.size();
      if (cutting_) {
        buffer_.clear();
        scanned_ = 0;
      } else if (buffer_.size() > kMaxLine) {
        std::string cut = buffer_.substr(0, kMaxLine);
        buffer_.clear();
        scanned_ = 0;
        cutting_ = true;
        return cut;
      }
      return std::nullopt;
    }
    std::string line = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    scanned_ = 0;
    if (cutting_) {
      cutting_ = false;
      continue;
    }
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    return line;
  }
}

void LineChannel::read_some() {
  char bytes[1 << 16];
  const ssize_t got = ::read(input_, bytes, sizeof bytes);
  if (got > 0) {
    buffer_.append(bytes, static_cast<std::size_t>(got));
  } else if (got == 0 || (errno != EINTR && errno != EAGAIN)) {
    ended_ = true;
  }
}

std::optional<std::string> LineChannel::wait() {
  for (;;) {
    if (auto line = take_line()) return line;
    if (ended_ || sink_) return std::nullopt;
    pollfd waiting{input_, POLLIN, 0};
    if (::poll(&waiting, 1, -1) > 0) read_some();
  }
}

std::optional<std::string> LineChannel::poll() {
  for (;;) {
    if (sink_) return std::nullopt;
    if (auto line = take_line()) return line;
    pollfd waiting{input_, POLLIN, 0};
    if (ended_ || ::poll(&waiting, 1, 0) <= 0) return std::nullopt;
    read_some();
  }
}

void LineChannel::send(std::string_view line) {
  if (sink_) return sink_(line);
  std::string bytes(line);
  bytes += '\n';
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t put = ::write(output_, bytes.data() + done, bytes.size() - done);
    if (put > 0) {
      done += static_cast<std::size_t>(put);
    } else if (put < 0 && errno == EAGAIN) {
      pollfd waiting{output_, POLLOUT, 0};
      ::poll(&waiting, 1, -1);
    } else if (put < 0 && errno != EINTR) {
      ended_ = true;
      return;
    }
  }
}

}  // namespace skerry::trainer
