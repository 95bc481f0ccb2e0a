// The transformer's pieces against loops that follow docs/model-layout.md word by word, in double.
#include <cmath>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "client/trainer/decoder.h"
#include "client/trainer/engine.h"
#include "common/model/philox.h"

using namespace skerry::trainer;

namespace {

at::Tensor drawn(at::IntArrayRef shape, std::uint64_t stream) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  const skerry::PhiloxStream draws(3, stream);
  float* values = tensor.data_ptr<float>();
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    values[i] = static_cast<float>(2 * skerry::uniform_from(draws.word(static_cast<std::uint64_t>(i))) - 1);
  }
  return tensor;
}

double at4(const at::Tensor& t, std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
  return t[a][b][c][d].item<float>();
}

}  // namespace

TEST_CASE("RMSNorm divides by the root of the mean square and multiplies by the weight") {
  const at::Tensor x = drawn({3, 5}, 1);
  const at::Tensor weight = drawn({5}, 2);
  const at::Tensor y = rms_norm(x, weight, 1e-5);
  for (std::int64_t row = 0; row < 3; ++row) {
    double squares = 0;
    for (std::int64_t i = 0; i < 5; ++i) squares += std::pow(x[row][i].item<float>(), 2.0);
    const double root = std::sqrt(squares / 5 + 1e-5);
    for (std::int64_t i = 0; i < 5; ++i) {
      CHECK(y[row][i].item<float>() == Approx(x[row][i].item<float>() / root * weight[i].item<float>()).margin(1e-6));
    }
  }
}

TEST_CASE("SwiGLU's product is SiLU of the gate times up") {
  const at::Tensor gate = drawn({2, 9}, 3) * 4;
  const at::Tensor up = drawn({2, 9}, 4);
  const at::Tensor y = silu_product(gate, up);
  for (std::int64_t i = 0; i < 9; ++i) {
    const double g = gate[1][i].item<float>();
    CHECK(y[1][i].item<float>() == Approx(g / (1 + std::exp(-g)) * up[1][i].item<float>()).margin(1e-6));
  }
}

TEST_CASE("rotary embedding turns the pair (j, j + d/2) at position p by p · theta^(−2j/d)") {
  const std::int64_t length = 5;
  const std::int64_t size = 6;
  const at::Tensor x = drawn({2, length, 3, size}, 5);
  const at::Tensor y = rotate_heads(x, rotary_table(length, size, 100.0));
  REQUIRE(y.sizes() == at::IntArrayRef({2, 3, length, size}));
  for (std::int64_t p = 0; p < length; ++p) {
    for (std::int64_t j = 0; j < size / 2; ++j) {
      const double angle = static_cast<double>(p) * std::pow(100.0, -2.0 * static_cast<double>(j) / size);
      const double a = at4(x, 1, p, 2, j);
      const double b = at4(x, 1, p, 2, j + size / 2);
      CHECK(at4(y, 1, 2, p, j) == Approx(a * std::cos(angle) - b * std::sin(angle)).margin(1e-6));
      CHECK(at4(y, 1, 2, p, j + size / 2) == Approx(b * std::cos(angle) + a * std::sin(angle)).margin(1e-6));
    }
  }
}

TEST_CASE("attention sees the past alone, and query heads share key heads in order") {
  const std::int64_t rows = 2;
  const std::int64_t heads = 4;
  const std::int64_t kv_heads = 2;
  const std::int64_t length = 5;
  const std::int64_t size = 3;
  const at::Tensor q = drawn({rows, heads, length, size}, 6) * 3;
  const at::Tensor k = drawn({rows, kv_heads, length, size}, 7) * 3;
  const at::Tensor v = drawn({rows, kv_heads, length, size}, 8);
  const at::Tensor y = causal_attention(q, k, v);
  REQUIRE(y.sizes() == at::IntArrayRef({rows, length, heads * size}));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t shared = head * kv_heads / heads;
      for (std::int64_t p = 0; p < length; ++p) {
        double total = 0;
        std::vector<double> weights;
        for (std::int64_t s = 0; s <= p; ++s) {
          double product = 0;
          for (std::int64_t i = 0; i < size; ++i) product += at4(q, row, head, p, i) * at4(k, row, shared, s, i);
          weights.push_back(std::exp(product / std::sqrt(static_cast<double>(size))));
          total += weights.back();
        }
        for (std::int64_t i = 0; i < size; ++i) {
          double expected = 0;
          for (std::int64_t s = 0; s <= p; ++s)
            expected += weights[static_cast<std::size_t>(s)] / total * at4(v, row, shared, s, i);
          CHECK(y[row][p][head * size + i].item<float>() == Approx(expected).margin(1e-5));
        }
      }
    }
  }
}

TEST_CASE("what a text model says of a byte does not depend on the bytes after it, nor on the window's length") {
  const char* section =
      R"({"architecture":"transformer","layers":2,"width":16,"heads":4,"kv_heads":2,"context":8,"initial_std":0.3})";
  const auto layout = skerry::build_layout(nlohmann::json::parse(section));
  REQUIRE(layout.ok());
  const auto engine = Engine::make(section, *layout, {ExampleShape::Kind::kText, {8}, 8, 256}, {});
  REQUIRE(engine.ok());
  const at::Tensor weights = drawn({static_cast<std::int64_t>(layout->parameters)}, 9) * 0.5;
  std::copy_n(weights.data_ptr<float>(), layout->parameters, (*engine)->parameters().begin());
  Batch batch;
  batch.rows = 1;
  for (const char c : std::string("abcdefghi")) batch.tokens.push_back(c);
  const std::vector<float> before = *(*engine)->outputs(batch);
  batch.tokens[6] = 'X';
  const std::vector<float> after = *(*engine)->outputs(batch);
  REQUIRE(before.size() == 8 * 256);
  for (std::size_t i = 0; i < 6 * 256; ++i) REQUIRE(before[i] == Approx(after[i]).margin(1e-5));
  CHECK(std::vector<float>(before.begin() + 6 * 256, before.end()) !=
        std::vector<float>(after.begin() + 6 * 256, after.end()));
  const std::vector<float> next = *(*engine)->reader()->read(std::vector<std::int64_t>{'a', 'b', 'c'});
  REQUIRE(next.size() == 256);
  for (std::size_t i = 0; i < 256; ++i) REQUIRE(next[i] == Approx(before[2 * 256 + i]).margin(1e-4));
}
