#include "server/sim/draws.h"

#include <cmath>

namespace skerry::sim {

std::uint64_t Draws::below(std::uint64_t limit) {
  const std::uint64_t unfair = (0 - limit) % limit;  // the lowest 2^64 mod limit words are drawn again
  for (;;) {
    const std::uint64_t low = word();
    const std::uint64_t drawn = std::uint64_t{word()} << 32 | low;
    if (drawn >= unfair) return drawn % limit;
  }
}

double Draws::normal() {
  const std::uint32_t radius = word();
  return normal_pair(radius, word()).first;
}

double Draws::exponential(double mean) { return -mean * std::log(uniform()); }

double Draws::gamma(double shape) {
  if (shape < 1) {
    const double lifted = gamma(shape + 1);
    return lifted * std::pow(uniform(), 1 / shape);
  }
  const double d = shape - 1.0 / 3.0;
  const double c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = normal();
    const double root = 1 + c * x;
    const double u = uniform();
    if (root <= 0) continue;
    const double v = root * root * root;
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

}  // namespace skerry::sim
