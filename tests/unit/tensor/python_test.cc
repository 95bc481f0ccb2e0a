// Skerry's safetensors against Python's own package, where that is installed.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "common/tensor/safetensors.h"
#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

bool run_python(const std::string& directory, const std::string& program) {
  const std::string script = directory + "/script.py";
  REQUIRE(write_file_atomic(script, program).ok());
  return std::system(("python3 " + script + " " + directory + " 2>" + directory + "/stderr").c_str()) == 0;
}

}  // namespace

TEST_CASE("Python's safetensors reads what we write and we read what it writes") {
  const test::TempDir dir;
  if (!run_python(dir.path(), "import numpy, safetensors.numpy\n")) {
    WARN("skipped: python3 cannot import numpy and safetensors here");
    return;
  }
  const std::vector<float> values{1.5f, -2.0f, 0.0f, 3e38f, 1e-40f, 7.0f};
  const std::vector<TensorSpec> tensors{{"w", DType::kF32, {2, 2}}, {"b", DType::kF32, {2}}};
  auto writer = SafetensorsWriter::create(dir / "ours.safetensors", tensors, {{"format", "np"}});
  REQUIRE(writer.ok());
  REQUIRE(writer->append(std::as_bytes(std::span(values))).ok());
  REQUIRE(writer->finish().ok());
  REQUIRE(run_python(dir.path(), R"(
import sys, numpy as np
from safetensors.numpy import load_file, save_file
ours = load_file(sys.argv[1] + "/ours.safetensors")
assert ours["w"].tolist() == np.array([[1.5, -2.0], [0.0, 3e38]], np.float32).tolist()
assert ours["b"].tolist() == np.array([1e-40, 7.0], np.float32).tolist()
save_file(dict(ours, half=np.array([1, 65504], np.float16), i=np.array([-5], np.int64)), sys.argv[1] + "/theirs.safetensors")
)"));
  const auto theirs = SafetensorsFile::open(dir / "theirs.safetensors");
  REQUIRE(theirs.ok());
  CHECK(theirs->tensors().size() == 4);
  std::vector<float> read(4);
  REQUIRE(theirs->read_f32(*theirs->find("w"), 0, read).ok());
  CHECK(read == std::vector<float>(values.begin(), values.begin() + 4));
  std::vector<float> half(2);
  REQUIRE(theirs->read_f32(*theirs->find("half"), 0, half).ok());
  CHECK(half == std::vector<float>{1.0f, 65504.0f});
}

}  // namespace skerry
