#include "common/model/initialise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/model/fragment_file.h"
#include "common/model/philox.h"
#include "common/os/files.h"
#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

TensorLayout tensor_of(std::string name, Initialiser initialiser) {
  TensorLayout tensor;
  tensor.name = std::move(name);
  tensor.initialiser = initialiser;
  return tensor;
}

std::vector<float> draw(const TensorLayout& tensor, std::uint64_t seed, std::uint64_t first, std::size_t count) {
  std::vector<float> values(count);
  initialise_tensor(tensor, seed, first, values);
  return values;
}

}  // namespace

TEST_CASE("Philox4x32-10 gives the known answers of Random123") {
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("a name's stream is its FNV-1a hash") {
  CHECK(stream_of_name("") == 0xCBF29CE484222325u);
  CHECK(stream_of_name("a") == 0xAF63DC4C8601EC8Cu);
  CHECK(stream_of_name("foobar") == 0x85944171F73967E8u);
}

TEST_CASE("initial values are those an independent Python program computes, bit for bit") {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  const auto text = read_file(std::string(source) + "/tests/golden/model/initial_values.json", 1 << 20);
  REQUIRE(text.ok());
  const auto cases = nlohmann::json::parse(*text);
  REQUIRE(cases.size() == 5);
  for (const auto& each : cases) {
    const auto kind = each["kind"] == "normal" ? Initialiser::Kind::kNormal : Initialiser::Kind::kUniform;
    const TensorLayout tensor = tensor_of(each["name"], {kind, each["scale"]});
    const std::uint64_t seed = std::stoull(each["seed"].get<std::string>(), nullptr, 16);
    const std::vector<float> values = draw(tensor, seed, each["first"], each["bits"].size());
    CAPTURE(each["name"].get<std::string>());
    for (std::size_t i = 0; i < values.size(); ++i)
      CHECK(std::bit_cast<std::uint32_t>(values[i]) == std::stoul(each["bits"][i].get<std::string>(), nullptr, 16));
  }
}

TEST_CASE("our logarithm, sine and cosine agree with the mathematics library") {
  const PhiloxStream stream(7, 7);
  double worst = 0.0;
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    const PhiloxCounter words = stream.block(i);
    const NormalPair pair = normal_pair(words[0], words[1]);
    const double radius = std::sqrt(-2.0 * std::log(uniform_from(words[0])));
    const double angle = 2.0 * 3.14159265358979323846 * words[1] / 0x1p32;
    worst = std::max(
        {worst, std::abs(pair.first - radius * std::cos(angle)), std::abs(pair.second - radius * std::sin(angle))});
  }
  CHECK(worst < 1e-14);
  CHECK(std::isfinite(normal_pair(0, 0).first));
  CHECK(normal_pair(0, 0).first < 6.8);
  CHECK(normal_pair(0xFFFFFFFF, 0x80000000).first <= 0.0);
}

TEST_CASE("a block made alone has the values it has in the whole") {
  for (const Initialiser& initialiser :
       {Initialiser{Initialiser::Kind::kNormal, 0.02}, Initialiser{Initialiser::Kind::kUniform, 0.3}}) {
    const TensorLayout tensor = tensor_of("w", initialiser);
    const std::vector<float> whole = draw(tensor, 5, 0, 100);
    for (std::size_t first = 0; first < 20; ++first)
      for (std::size_t count = 0; count < 20; ++count)
        REQUIRE(draw(tensor, 5, first, count) ==
                std::vector<float>(whole.begin() + static_cast<std::ptrdiff_t>(first),
                                   whole.begin() + static_cast<std::ptrdiff_t>(first + count)));
  }
}

TEST_CASE("draws have the moments and limits of their distribution") {
  const std::size_t count = 200'000;
  double sum = 0.0;
  double squares = 0.0;
  for (const float value : draw(tensor_of("w", {Initialiser::Kind::kNormal, 2.0}), 1, 0, count)) {
    sum += value;
    squares += double{value} * value;
  }
  CHECK(std::abs(sum / count) < 0.02);            // standard error 0.0045
  CHECK(std::abs(squares / count - 4.0) < 0.06);  // standard error 0.013

  double largest = 0.0;
  sum = 0.0;
  for (const float value : draw(tensor_of("w", {Initialiser::Kind::kUniform, 0.5}), 1, 0, count)) {
    largest = std::max(largest, std::abs(double{value}));
    sum += value;
  }
  CHECK(largest <= 0.5);
  CHECK(largest > 0.4999);
  CHECK(std::abs(sum / count) < 0.003);
}

TEST_CASE("another seed or another name gives other values") {
  const Initialiser normal{Initialiser::Kind::kNormal, 1.0};
  const std::vector<float> values = draw(tensor_of("a", normal), 1, 0, 8);
  CHECK(values != draw(tensor_of("a", normal), 2, 0, 8));
  CHECK(values != draw(tensor_of("b", normal), 1, 0, 8));
}

TEST_CASE("an initial fragment file holds each tensor's own values, whatever the cut") {
  const test::TempDir dir;
  const char* cut = R"({"architecture":"transformer","layers":2,"width":8,"heads":2,"vocabulary":4,"fragments":2})";
  const char* uncut = R"({"architecture":"transformer","layers":2,"width":8,"heads":2,"vocabulary":4})";
  const ModelLayout two = *build_layout(nlohmann::json::parse(cut));
  const ModelLayout one = *build_layout(nlohmann::json::parse(uncut));
  REQUIRE(write_initial_fragment(one, "all", 9, dir / "all").ok());
  const auto all = SafetensorsFile::open(dir / "all");
  REQUIRE(all.ok());
  std::size_t compared = 0;
  for (const FragmentLayout& fragment : two.fragments) {
    REQUIRE(write_initial_fragment(two, fragment.name, 9, dir / fragment.name, Durability::kScratch).ok());
    const auto file = SafetensorsFile::open(dir / fragment.name);
    REQUIRE(file.ok());
    for (const TensorEntry& tensor : file->tensors()) {
      CHECK(as_text(file->bytes(tensor)) == as_text(all->bytes(*all->find(tensor.name))));
      ++compared;
    }
    CHECK(file->check_finite().ok());
  }
  CHECK(compared == one.tensors.size());
}

TEST_CASE("a range outside of the fragment and an unknown fragment are refused") {
  const ModelLayout layout =
      *build_layout(nlohmann::json::parse(R"({"architecture":"linear","inputs":3,"outputs":2})"));
  std::vector<float> out(4);
  CHECK(initialise_fragment(layout, "all", 1, 4, out).ok());
  const auto beyond = initialise_fragment(layout, "all", 1, 5, out);
  REQUIRE(!beyond.ok());
  CHECK(beyond.error().code == Code::kOutOfRange);
  CHECK(beyond.error().message == "fragment \"all\" has 8 elements, asked for 4 from 5");
  const auto unknown = initialise_fragment(layout, "f0", 1, 0, out);
  REQUIRE(!unknown.ok());
  CHECK(unknown.error().code == Code::kNotFound);
}

}  // namespace skerry
