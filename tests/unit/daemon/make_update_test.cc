#include "client/daemon/update/make_update.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <limits>

#include <nlohmann/json.hpp>

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
