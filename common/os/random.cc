#include "common/os/random.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>
#include <vector>

namespace skerry {

void SystemRandom::fill(std::span<std::byte> out) {
  while (!out.empty()) {
    ssize_t count = getrandom(out.data(), out.size(), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) std::abort();
    out = out.subspan(static_cast<std::size_t>(count));
  }
}

std::string random_hex(Random& random, std::size_t bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::vector<std::byte> raw(bytes);
  random.fill(raw);
  std::string text;
  text.reserve(2 * bytes);
  for (std::byte value : raw) {
    text += kDigits[std::to_integer<unsigned>(value) >> 4];
    text += kDigits[std::to_integer<unsigned>(value) & 15];
  }
  return text;
}

}  // namespace skerry
