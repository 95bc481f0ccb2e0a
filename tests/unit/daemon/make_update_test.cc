#include "client/daemon/update/make_update.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include <nlohmann/json.hpp>

#include "common/codec/compression.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::client;

namespace {

struct World {
  explicit World(std::uint64_t inputs = 2) {
    auto built = build_layout(nlohmann::json{{"architecture", "linear"}, {"inputs", inputs}, {"outputs", 2}});
    REQUIRE(built.ok());
    layout = *std::move(built);
    elements = layout.fragments.front().elements;
    base.assign(elements, 1.0f);
    trained.assign(elements, 1.0f);
  }

  UpdateRecipe recipe(const char* encoding = "f32") {
    REQUIRE(write_fragment_file(dir / "base.safetensors", layout, "all", base, Durability::kScratch).ok());
    REQUIRE(write_fragment_file(dir / "out.safetensors", layout, "all", trained, Durability::kScratch).ok());
    auto opened = FragmentFile::open(dir / "base.safetensors", layout, "all");
    REQUIRE(opened.ok());
    file = std::make_unique<FragmentFile>(*std::move(opened));
    UpdateRecipe recipe;
    recipe.layout = &layout;
    recipe.fragments = {{"all", 7, file.get(), dir / "out.safetensors"}};
    recipe.encoding = *find_encoding(encoding);
    recipe.inline_limit = 64 * 1024;
    recipe.file_prefix = dir / "t1";
    return recipe;
  }

  test::TempDir dir;
  ModelLayout layout;
  std::uint64_t elements = 0;
  std::vector<float> base, trained;
  std::unique_ptr<FragmentFile> file;
};

std::vector<float> decoded(const Encoding& encoding, const std::string& payload, std::size_t count) {
  std::vector<float> values(count);
  encoding.decode(as_bytes_of(payload), values);
  return values;
}

}  // namespace

TEST_CASE("the update is base minus trained") {
  World world;
  for (std::size_t i = 0; i < world.elements; ++i) world.trained[i] = 1.0f - static_cast<float>(i);
  const auto made = make_update(world.recipe());
  REQUIRE(made.ok());
  REQUIRE(made->fragments.size() == 1);
  const auto& fragment = made->fragments[0];
  CHECK(fragment.base_version() == 7);
  CHECK(fragment.encoding() == "f32");
  CHECK(fragment.data().content_id() == content_id(fragment.data().inline_data()));
  const auto delta = decoded(**find_encoding("f32"), fragment.data().inline_data(), world.elements);
  double sum = 0;
  for (std::size_t i = 0; i < world.elements; ++i) {
    CHECK(delta[i] == static_cast<float>(i));
    sum += static_cast<double>(i * i);
  }
  CHECK(made->norm == Approx(std::sqrt(sum)));
  CHECK_FALSE(made->clipped);
}

TEST_CASE("values in memory give the same update, without a content id or a file") {
  World world(100'000);
  for (std::size_t i = 0; i < world.elements; ++i) world.trained[i] = 1.0f - static_cast<float>(i % 7);
  UpdateRecipe recipe = world.recipe();
  const auto filed = make_update(recipe);
  REQUIRE(filed.ok());
  REQUIRE(filed->uploads.size() == 1);
  recipe.fragments[0].trained_path.clear();
  recipe.fragments[0].trained = world.trained;
  recipe.in_memory = true;
  const auto made = make_update(recipe);
  REQUIRE(made.ok());
  CHECK(made->uploads.empty());
  const auto& blob = made->fragments[0].data();
  CHECK(blob.content_id().empty());
  CHECK(content_id(blob.inline_data()) == filed->uploads[0].content_id);
  CHECK(blob.size() == filed->uploads[0].size);
  CHECK(made->norm == filed->norm);
}

TEST_CASE("bf16 halves the bytes") {
  World world;
  world.trained[0] = -2.0f;
  const auto made = make_update(world.recipe("bf16"));
  REQUIRE(made.ok());
  CHECK(made->fragments[0].data().inline_data().size() == 2 * world.elements);
  CHECK(decoded(**find_encoding("bf16"), made->fragments[0].data().inline_data(), world.elements)[0] == 3.0f);
}

TEST_CASE("an update over the holder's norm is scaled down to it, one below is left alone") {
  World world;
  world.trained.assign(world.elements, 0.0f);
  auto recipe = world.recipe();
  recipe.maximum_norm = 0.5;
  const auto clipped = make_update(recipe);
  REQUIRE(clipped.ok());
  CHECK(clipped->clipped);
  CHECK(clipped->norm == Approx(0.5));
  recipe.maximum_norm = 100;
  const auto whole = make_update(recipe);
  REQUIRE(whole.ok());
  CHECK_FALSE(whole->clipped);
  CHECK(whole->norm == Approx(std::sqrt(static_cast<double>(world.elements))));
}

TEST_CASE("a value that is not finite makes no update, and the message names the tensor") {
  World world;
  world.trained[1] = std::numeric_limits<float>::quiet_NaN();
  const auto made = make_update(world.recipe());
  REQUIRE_FALSE(made.ok());
  CHECK(made.error().code == Code::kFailedPrecondition);
  CHECK_THAT(made.error().message, Catch::Contains("tensor ") && Catch::Contains("[1]"));
}

TEST_CASE("a trainer's file of another shape makes no update") {
  World world, other(3);
  const auto recipe = world.recipe();
  REQUIRE(write_fragment_file(world.dir / "out.safetensors", other.layout, "all", other.trained, Durability::kScratch).ok());
  CHECK(make_update(recipe).error().code == Code::kInvalidArgument);
}

TEST_CASE("a large payload becomes a file named by its content, in bounded blocks") {
  World world(200'000);
  for (std::size_t i = 0; i < world.elements; ++i) world.trained[i] = static_cast<float>(i % 97);
  const auto made = make_update(world.recipe());
  REQUIRE(made.ok());
  REQUIRE(made->uploads.size() == 1);
  CHECK(made->uploads[0].size == 4 * world.elements);
  CHECK(made->fragments[0].data().inline_data().empty());
  const auto bytes = read_file(payload_path(world.dir / "t1", made->uploads[0].content_id), 1 << 26);
  REQUIRE(bytes.ok());
  CHECK(content_id(*bytes) == made->uploads[0].content_id);
  const auto delta = decoded(**find_encoding("f32"), *bytes, world.elements);
  for (const std::size_t i : {std::size_t{0}, std::size_t{262'143}, std::size_t{262'144}, static_cast<std::size_t>(world.elements - 1)})
    CHECK(delta[i] == 1.0f - static_cast<float>(i % 97));
}

TEST_CASE("an update over the task's limit is not made") {
  World world;
  auto recipe = world.recipe();
  recipe.maximum_bytes = 4;
  CHECK(make_update(recipe).error().code == Code::kResourceExhausted);
}

namespace {

float pseudo(std::size_t i, std::uint32_t seed) {
  const std::uint32_t mixed = (static_cast<std::uint32_t>(i) * 2654435761u + seed * 40503u) >> 8;
  return static_cast<float>(mixed) / 8388608.0f - 1.0f;
}

/// Δ of the task-th task: what the trainer makes of the base of ones.
std::vector<float> learn(World& world, std::uint32_t task) {
  std::vector<float> delta(world.elements);
  for (std::size_t i = 0; i < world.elements; ++i) {
    world.trained[i] = 1.0f - pseudo(i, task);
    delta[i] = 1.0f - world.trained[i];
  }
  return delta;
}

std::vector<float> values_of(const std::string& path, std::size_t count) {
  std::vector<float> values(count);
  const auto bytes = read_file(path, 1 << 24);
  REQUIRE(bytes.ok());
  REQUIRE(bytes->size() == 4 * count);
  std::memcpy(values.data(), bytes->data(), bytes->size());
  return values;
}

}  // namespace

TEST_CASE("what an encoding lost goes into the next update, from files and from memory alike") {
  constexpr double kShare = 0.95;
  for (const char* name : {"topk2", "sign", "e3m0", "int8"}) {
    CAPTURE(name);
    World world(9'000);
    const Encoding& encoding = **find_encoding(name);
    const std::string directory = world.dir / "residuals";
    std::vector<float> expected(world.elements);
    Residual filed, in_memory;
    for (std::uint32_t task = 1; task <= 4; ++task) {
      const std::vector<float> delta = learn(world, task);
      for (std::size_t i = 0; i < delta.size(); ++i)
        expected[i] = static_cast<float>(kShare * static_cast<double>(expected[i]) + static_cast<double>(delta[i]));
      std::string payload(encoding.encoded_bytes(world.elements), '\0');
      const Rounding rounding{task == 3, task, rounding_stream("all")};
      encoding.encode(expected, 0, rounding, std::as_writable_bytes(std::span(payload)));
      const auto sent = decoded(encoding, payload, world.elements);
      for (std::size_t i = 0; i < sent.size(); ++i) expected[i] -= sent[i];

      UpdateRecipe recipe = world.recipe(name);
      recipe.feedback = kShare;
      recipe.stochastic = rounding.stochastic;
      recipe.seed = rounding.seed;
      recipe.residuals = directory;
      recipe.fragments[0].residual = filed;
      auto made = make_update(recipe);
      REQUIRE(made.ok());
      REQUIRE(made->residuals.size() == 1);
      CHECK(made->fragments[0].data().inline_data() == payload);
      filed = made->residuals[0];
      CHECK(verify_residual(directory, filed).ok());
      CHECK(values_of(residual_path(directory, "all", filed.content_id), world.elements) == expected);

      recipe.residuals.clear();
      recipe.in_memory = true;
      recipe.fragments[0].residual = in_memory;
      made = make_update(recipe);
      REQUIRE(made.ok());
      CHECK(made->fragments[0].data().inline_data() == payload);
      in_memory = std::move(made->residuals[0]);
      CHECK(in_memory.values == expected);
    }
  }
}

TEST_CASE("an update that will not count goes back into the residual, which then is what it was made from") {
  World world(9'000);
  const std::string directory = world.dir / "residuals";
  UpdateRecipe recipe = world.recipe("topk2");
  recipe.feedback = 1;
  recipe.residuals = directory;
  const auto delta = learn(world, 1);
  recipe = world.recipe("topk2");
  recipe.feedback = 1;
  recipe.residuals = directory;
  const auto made = make_update(recipe);
  REQUIRE(made.ok());
  const auto back = give_back(directory, "all", made->residuals[0], *recipe.encoding,
                              as_bytes_of(made->fragments[0].data().inline_data()), world.elements);
  REQUIRE(back.ok());
  const auto values = values_of(residual_path(directory, "all", back->content_id), world.elements);
  for (std::size_t i = 0; i < values.size(); ++i) CHECK(values[i] == Approx(delta[i]).margin(1e-6));

  const std::string cut = std::string(made->fragments[0].data().inline_data(), 1);
  CHECK_FALSE(give_back(directory, "all", made->residuals[0], *recipe.encoding, as_bytes_of(cut), world.elements).ok());
}

TEST_CASE("a residual that is damaged, missing or of another fragment is noticed") {
  World world(9'000);
  const std::string directory = world.dir / "residuals";
  learn(world, 1);
  UpdateRecipe recipe = world.recipe("topk2");
  recipe.feedback = 0.5;
  recipe.residuals = directory;
  const auto made = make_update(recipe);
  REQUIRE(made.ok());
  const Residual& residual = made->residuals[0];
  const std::string path = residual_path(directory, "all", residual.content_id);
  auto bytes = *read_file(path, 1 << 24);
  bytes[17] ^= 4;
  REQUIRE(write_file_atomic(path, bytes).ok());
  CHECK(verify_residual(directory, residual).error().code == Code::kDataLoss);
  bytes.resize(bytes.size() - 4);
  REQUIRE(write_file_atomic(path, bytes).ok());
  recipe.fragments[0].residual = residual;
  CHECK(make_update(recipe).error().code == Code::kDataLoss);
  REQUIRE(remove_file(path).ok());
  CHECK(make_update(recipe).error().code == Code::kNotFound);
}

TEST_CASE("the holder's limit is on what is sent, what was carried over included") {
  World world(9'000);
  UpdateRecipe recipe = world.recipe("sign");
  learn(world, 1);
  recipe = world.recipe("sign");
  recipe.feedback = 1;
  recipe.in_memory = true;
  recipe.fragments[0].residual.values.assign(world.elements, 10.0f);
  recipe.maximum_norm = 3;
  const auto made = make_update(recipe);
  REQUIRE(made.ok());
  CHECK(made->clipped);
  CHECK(made->norm == Approx(3));
}

TEST_CASE("payloads are compressed where that pays, and say so") {
  for (const bool file : {false, true}) {
    World world(9'000);
    for (std::size_t i = 0; i < world.elements; ++i) world.trained[i] = i % 50 == 0 ? 0.5f : 1.0f;
    UpdateRecipe recipe = world.recipe("f32");
    recipe.zstd = true;
    recipe.inline_limit = file ? 1'000 : 1'000'000;
    auto made = make_update(recipe);
    REQUIRE(made.ok());
    CHECK(made->fragments[0].encoding() == "f32+zstd");
    const auto& data = made->fragments[0].data();
    CHECK(made->uploads.size() == (file ? 1 : 0));
    const std::string frame = file ? *read_file(payload_path(recipe.file_prefix, data.content_id()), 1 << 24) : data.inline_data();
    CHECK(data.size() == frame.size());
    CHECK(data.content_id() == content_id(frame));
    CHECK(frame.size() < 2 * world.elements);
    const auto delta = decoded(**find_encoding("f32"), *decompressed(as_bytes_of(frame), 4 * world.elements), world.elements);
    for (std::size_t i = 0; i < world.elements; ++i) CHECK(delta[i] == (i % 50 == 0 ? 0.5f : 0.0f));

    std::uint64_t state = 88172645463325252u;
    for (float& value : world.trained) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      value = 1.0f + static_cast<float>(static_cast<std::int32_t>(state >> 32)) * 0x1p-31f;
    }
    recipe = world.recipe("int8_block");
    recipe.zstd = true;
    recipe.inline_limit = file ? 1'000 : 1'000'000;
    made = make_update(recipe);
    REQUIRE(made.ok());
    const auto& plain = made->fragments[0];
    CHECK(plain.encoding() == "int8_block");  // noise
    if (file) CHECK(content_id(*read_file(payload_path(recipe.file_prefix, plain.data().content_id()), 1 << 24)) == plain.data().content_id());
    if (!file) CHECK(content_id(plain.data().inline_data()) == plain.data().content_id());
    CHECK(list_directory(world.dir.path())->size() == (file ? 4 : 2));  // base, out and payloads: nothing half made
  }
}

TEST_CASE("an update of a million parameters takes the bytes it promises, framing and signature included") {
  World world(499'999);
  for (std::size_t i = 0; i < world.elements; ++i) world.trained[i] = 1.0f - 1e-3f * pseudo(i, 3);
  REQUIRE(world.elements == 1'000'000);
  const std::map<std::string, double> most{{"f32", 4.001}, {"bf16", 2.001}, {"f16", 2.001},  {"int8", 1.02},  {"int8_block", 1.02},
                                           {"int4", 0.52}, {"e3m0", 0.52},  {"topk2", 0.03}, {"sign", 0.127}};
  for (const std::string_view name : known_encodings()) {
    const auto made = make_update(world.recipe(std::string(name).c_str()));
    REQUIRE(made.ok());
    v1::UpdateBody body;
    body.set_task_id("r-0123456789abcdef-1.17");
    body.set_run_id("r-0123456789abcdef-1");
    body.set_spec_hash(std::string(64, 'f'));
    body.set_node("a-node-with-a-name");
    body.set_exchange(17);
    body.set_examples(1'000);
    body.set_seconds(12.5);
    double bytes = 0;
    for (const auto& upload : made->uploads) bytes += static_cast<double>(upload.size);
    for (const auto& fragment : made->fragments) *body.add_fragments() = fragment;
    v1::FromNode message;
    message.mutable_update()->set_body(body.SerializeAsString());
    message.mutable_update()->set_signature(std::string(72, 's'));
    bytes += static_cast<double>(message.ByteSizeLong());
    CAPTURE(std::string(name), bytes);
    CHECK(bytes / static_cast<double>(world.elements) <= most.at(std::string(name)));
  }
}
