// Encoding and decoding by themselves: one thread, by its CPU time, on vectors that do not fit into caches.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>

#include "common/codec/encoding.h"
#include "tests/bench/figures/benchmarks.h"

namespace skerry::bench {
namespace {

constexpr std::size_t kElements = 24'000'000;  // 96 MB of f32

double thread_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// About normal: sums of four uniform numbers.
std::vector<float> bell() {
  std::vector<float> values(kElements);
  std::uint32_t state = 1;
  for (float& value : values) {
    float sum = -2;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f;
    value = sum * 1e-3f;
  }
  return values;
}

// GB/s of f32 that `pass` takes or gives; the median.
double rate(unsigned repeat, const std::function<void()>& pass) {
  std::vector<double> rates;
  pass();
  for (unsigned i = 0; i < repeat; ++i) {
    const double begin = thread_seconds();
    pass();
    rates.push_back(4e-9 * kElements / (thread_seconds() - begin));
  }
  return median(std::move(rates));
}

double target_of(std::string_view encoding) {
  if (encoding == "int8" || encoding == "int8_block" || encoding == "e3m0") return 2.0;
  return encoding == "topk2" ? 0.5 : 0.0;
}

}  // namespace

Figures codec(BenchmarkContext& context) {
  const unsigned repeat = 2 * context.repeat + 1;
  const std::vector<float> values = bell();
  std::vector<float> out(kElements);
  const double copy = rate(repeat, [&] { std::memcpy(out.data(), values.data(), 4 * kElements); });
  std::vector<Figure> figures;
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    std::vector<std::byte> payload(encoding.encoded_bytes(kElements));
    const auto add = [&](const char* what, double target, const std::function<void()>& pass) {
      Figure figure;
      figure.name = "codec." + std::string(name) + what;
      figure.value = rate(repeat, pass);
      figure.unit = "GB/s";
      figure.baseline = copy;
      figure.baseline_name = "memcpy of the f32 values";
      char text[32];
      std::snprintf(text, sizeof text, "≥ %g", target);
      figure.target = target > 0 ? text : "";
      figure.met = figure.value >= target;
      figures.push_back(std::move(figure));
    };
    add(".encode", target_of(name), [&] { encoding.encode(values, 0, {}, payload); });
    add(".decode", target_of(name), [&] { encoding.decode(payload, out); });
    if (name != "f32") add(".encode_at_random", 0, [&] { encoding.encode(values, 0, {true, 1, 1}, payload); });
  }
  return figures;
}

}  // namespace skerry::bench
