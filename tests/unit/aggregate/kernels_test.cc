#include "server/aggregate/kernels.h"

#include "common/codec/encoding.h"

#include <limits>

#include "tests/unit/aggregate/world.h"

namespace skerry::server {

TEST_CASE("rows add up to their float64 sum in order, on every target and at every length and number of rows") {
  for (const std::size_t count : {1, 5, 16, 1003}) {
    for (std::size_t row_count = 1; row_count <= kRowsAtOnce; ++row_count) {
      std::vector<std::vector<float>> rows;
      std::vector<std::string> halves;
      std::vector<Row> f32_rows;
      std::vector<Row> bf16_rows;
      std::vector<double> coefficients;
      for (std::size_t k = 0; k < row_count; ++k) {
        // Values that bf16 holds exactly, so that both kinds have one expectation.
        rows.push_back(some_values(count, static_cast<unsigned>(k)));
        for (float& value : rows.back()) {
          std::uint32_t bits = 0;
          std::memcpy(&bits, &value, sizeof bits);
          bits &= 0xffff0000u;
          std::memcpy(&value, &bits, sizeof bits);
        }
        halves.push_back(bf16_of(rows.back()));
        coefficients.push_back(0.1 * static_cast<double>(k + 1));
      }
      for (std::size_t k = 0; k < row_count; ++k) {
        f32_rows.push_back({rows[k].data()});
        bf16_rows.push_back({halves[k].data()});
      }
      std::vector<double> from_zero(count);
      std::vector<double> from_one(count, 1.0);
      std::vector<float> rounded_one;
      for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t k = 0; k < row_count; ++k) {
          from_zero[i] += coefficients[k] * static_cast<double>(rows[k][i]);
          from_one[i] += coefficients[k] * static_cast<double>(rows[k][i]);
        }
        rounded_one.push_back(static_cast<float>(from_one[i]));
      }
      on_every_target([&] {
        for (const RowKind kind : {RowKind::kF32, RowKind::kBf16}) {
          const auto& chosen = kind == RowKind::kF32 ? f32_rows : bf16_rows;
          std::vector<double> sum(count, 99.0);
          add_rows(kind, chosen, coefficients.data(), count, true, sum.data(), nullptr);
          CHECK(sum == from_zero);
          sum.assign(count, 1.0);
          std::vector<float> rounded(count);
          add_rows(kind, chosen, coefficients.data(), count, false, sum.data(), rounded.data());
          CHECK(rounded == rounded_one);
        }
      });
    }
  }
}

TEST_CASE("rows of one byte an element add up to what they decode to, on every target and at every number of rows") {
  const std::size_t count = 1003;  // not whole blocks of int8_block
  for (const std::string_view name : {"int8", "int8_block"}) {
    const Encoding& encoding = **find_encoding(name);
    const RowKind kind = name == "int8" ? RowKind::kInt8 : RowKind::kInt8Block;
    for (std::size_t row_count = 1; row_count <= kRowsAtOnce; ++row_count) {
      std::vector<std::vector<std::byte>> payloads;
      std::vector<Row> rows;
      std::vector<double> coefficients;
      std::vector<double> expected(count, 1.0);
      for (std::size_t k = 0; k < row_count; ++k) {
        payloads.emplace_back(1 + encoding.encoded_bytes(count));  // at an odd address
        const auto payload = std::span(payloads.back()).subspan(1);
        encoding.encode(some_values(count, static_cast<unsigned>(k)), 0, {}, payload);
        rows.push_back({payload.data() + encoding.prefix_bytes(), payload.data()});
        coefficients.push_back(0.1 * static_cast<double>(k + 1));
        std::vector<float> decoded(count);
        encoding.decode(payload, decoded);
        for (std::size_t i = 0; i < count; ++i) expected[i] += coefficients[k] * static_cast<double>(decoded[i]);
      }
      on_every_target([&] {
        std::vector<double> sum(count, 1.0);
        add_rows(kind, rows, coefficients.data(), count, false, sum.data(), nullptr);
        CHECK(sum == expected);
        std::vector<float> rounded(count);
        std::fill(sum.begin(), sum.end(), 1.0);
        add_rows(kind, rows, coefficients.data(), count, false, sum.data(), rounded.data());
        CHECK((rounded == std::vector<float>(expected.begin(), expected.end())));
      });
    }
  }
}

TEST_CASE("sums over elements have 32 lanes and the same bits on every target") {
  for (const std::size_t count : {0, 1, 31, 32, 33, 4099}) {
    const auto a = some_values(count, 1);
    const auto b = some_values(count, 2);
    double squares[32] = {};
    double products[32] = {};
    for (std::size_t i = 0; i < count; ++i) {
      squares[i % 32] += static_cast<double>(a[i]) * static_cast<double>(a[i]);
      products[i % 32] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    const auto total = [](double* sums) {
      for (int half = 16; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
      }
      return sums[0];
    };
    const double square = total(squares);
    const double product = total(products);
    on_every_target([&] {
      CHECK(sum_of_squares(a.data(), count) == square);
      CHECK(dot(a.data(), b.data(), count) == product);
    });
  }
}

TEST_CASE("a sum of squares is not finite exactly if a value is not") {
  std::vector<float> values(100, std::numeric_limits<float>::max());
  CHECK(std::isfinite(sum_of_squares(values.data(), values.size())));
  for (const std::size_t at : {0, 50, 99}) {
    for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
      auto spoiled = values;
      spoiled[at] = bad;
      on_every_target([&] { CHECK_FALSE(std::isfinite(sum_of_squares(spoiled.data(), spoiled.size()))); });
    }
  }
}

TEST_CASE("spans add up value by value") {
  const auto a = some_values(77, 1);
  const auto b = some_values(77, 2);
  std::vector<float> expected;
  for (std::size_t i = 0; i < a.size(); ++i) expected.push_back(a[i] + b[i]);
  on_every_target([&] {
    std::vector<float> out(a.size());
    add(a.data(), b.data(), a.size(), out.data());
    CHECK(out == expected);
  });
}

}  // namespace skerry::server
