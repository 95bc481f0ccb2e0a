#include "common/model/philox.h"

#include <cmath>

namespace skerry {
namespace {

// In (0, 1) only. Error below 1e-15 relative to the result.
double natural_logarithm(double u) {
  int exponent = 0;
  double mantissa = std::frexp(u, &exponent);
  if (mantissa < 0.70710678118654752) {
    mantissa = 2.0 * mantissa;
    exponent -= 1;
  }
  const double f = (mantissa - 1.0) / (mantissa + 1.0);
  const double g = f * f;
  double p = 1.0 / 21.0;
  p = p * g + 1.0 / 19.0;
  p = p * g + 1.0 / 17.0;
  p = p * g + 1.0 / 15.0;
  p = p * g + 1.0 / 13.0;
  p = p * g + 1.0 / 11.0;
  p = p * g + 1.0 / 9.0;
  p = p * g + 1.0 / 7.0;
  p = p * g + 1.0 / 5.0;
  p = p * g + 1.0 / 3.0;
  return exponent * 0.69314718055994531 + 2.0 * (f + f * g * p);
}

// Cosine and sine of 2π · word / 2^32, reduced to −π/4 … π/4.
NormalPair cosine_and_sine(std::uint32_t word) {
  const std::uint32_t quadrant = (word + 0x20000000u) >> 30;
  const double t = static_cast<std::int32_t>(word - (quadrant << 30));
  const double x = t * (1.5707963267948966 / 1073741824.0);
  const double g = x * x;
  double s = 0.0;
  double q = 0.0;
  for (double k = 16.0; k >= 2.0; k -= 2.0) {
    s = (1.0 + s) * g / -(k * (k + 1.0));
    q = (1.0 + q) * g / -((k - 1.0) * k);
  }
  const double sine = x + x * s;
  const double cosine = 1.0 + q;
  switch (quadrant) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

}  // namespace

NormalPair normal_pair(std::uint32_t radius_word, std::uint32_t angle_word) {
  const double radius = std::sqrt(-2.0 * natural_logarithm(uniform_from(radius_word)));
  const NormalPair unit = cosine_and_sine(angle_word);
  return {radius * unit.first, radius * unit.second};
}

}  // namespace skerry
