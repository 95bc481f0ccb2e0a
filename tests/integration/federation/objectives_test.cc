// What a node minimises and what of the model travels: personal and frozen tensors, SCAFFOLD's control variates.
#include <catch2/catch.hpp>

#include <cmath>
#include <cstdlib>

#include "common/os/files.h"
#include "common/tensor/safetensors.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

/// The tensors of a node's `model fetch`, as bytes.
std::map<std::string, std::string> fetched(Federation& federation, const std::string& node, const std::string& run) {
  const std::string directory = federation.directory() / ("fetched-" + node);
  const Finished fetch = federation.node(node).command({"model", "fetch", run, "-o", directory});
  INFO(fetch.err);
  REQUIRE(fetch.ok());
  const auto file = SafetensorsFile::open(directory + "/model.safetensors");
  REQUIRE(file.ok());
  std::map<std::string, std::string> tensors;
  for (const TensorEntry& tensor : file->tensors()) tensors[tensor.name] = std::string(as_text(file->bytes(tensor)));
  return tensors;
}

/// Whether the bytes stand anywhere below a directory.
bool holds(const std::string& directory, const std::string& bytes) {
  const auto entries = list_directory(directory);
  if (!entries.ok()) return false;
  for (const auto& entry : *entries) {
    const std::string path = join_path(directory, entry.name);
    if (entry.is_directory) {
      if (holds(path, bytes)) return true;
      continue;
    }
    const auto content = read_file(path, 1 << 26);
    if (content.ok() && content->find(bytes) != std::string::npos) return true;
  }
  return false;
}

/// A table whose rows all say y = at * target for one value of a: a parabola with its minimum at `target`.
std::string parabola(Federation& federation, const std::string& node, double at, double target) {
  std::string text = "a,y\n";
  for (int row = 0; row < 20; ++row) text += std::to_string(at) + "," + std::to_string(at * target) + "\n";
  const std::string path = federation.directory() / (node + "-parabola.csv");
  REQUIRE(write_file_atomic(path, text).ok());
  return path;
}

RunText parabolas(const std::string& strategy) {
  RunText run;
  run.name = strategy;
  run.top = "purpose = \"test\"\nstrategy = \"" + strategy + "\"\n";
  run.model = "architecture = \"linear\"\ninputs = 1\noutputs = 1\nbias = false\n";
  run.data = "kind = \"csv\"\nschema = { features = [\"a\"], label = \"y\", classes = 0 }\n";
  run.training = "optimizer = \"sgd\"\nlearning_rate = 0.1\nbatch = 18\nsteps = 20\n";
  run.rounds = 40;
  return run;
}

double weight_of(Federation& federation, const std::string& run) {
  return federation.ask({"model", "inspect", run}).at("tensors").at(0).at("mean").get<double>();
}

}  // namespace

TEST_CASE("personal tensors differ from node to node and never leave, frozen ones stay as they began") {
  Federation federation;
  for (const char* node : {"alder", "birch"}) federation.add_node(node);
  RunText run;
  run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [16]\noutputs = 2\nactivation = \"tanh\"\n";
  run.exchange = "personal = [\"layers.1.*\"]\nfrozen = [\"layers.0.bias\"]\n";
  run.evaluation = "every = 10\n";
  run.rounds = 60;
  const std::string id = federation.submit(run);
  federation.wait_for(id, "some rounds",
                      [](const json& now) { return Federation::number(now.at("summary").at("round")) >= 10; });
  federation.node("birch").kill();  // the next trainer has to read the frozen tensors anew
  federation.node("birch").start();
  const json detail = federation.wait_for_status(id, "completed");
  for (const char* node : {"alder", "birch"})
    CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == 60);
  const auto losses = federation.metric_rows(id, "evaluation", "loss");
  REQUIRE(losses.size() >= 2);
  CHECK(losses.back() < losses.front());

  auto alder = fetched(federation, "alder", id);
  auto birch = fetched(federation, "birch", id);
  REQUIRE(alder.size() == 4);
  CHECK(alder["layers.0.weight"] == birch["layers.0.weight"]);
  CHECK(alder["layers.0.bias"] == std::string(16 * sizeof(float), '\0'));
  CHECK(birch["layers.0.bias"] == alder["layers.0.bias"]);
  for (const char* personal : {"layers.1.weight", "layers.1.bias"}) CHECK(alder[personal] != birch[personal]);

  // The coordinator has the shared tensor, and of the personal ones nothing.
  CHECK(holds(federation.server_home(), alder["layers.0.weight"].substr(0, 64)));
  for (const auto* node : {&alder, &birch}) {
    CHECK_FALSE(holds(federation.server_home(), node->at("layers.1.weight").substr(0, 16)));
    CHECK_FALSE(holds(federation.server_home(), node->at("layers.1.weight").substr(64, 16)));
  }
  const json inspected = federation.ask({"model", "inspect", id});
  CHECK(inspected.at("tensors").size() == 2);
  CHECK(inspected.at("versions").at("frozen") == 0);
  const Finished listed = federation.node("alder").command({"egress", "list", "--json"});
  for (const json& row : json::parse(listed.out))
    if (row.at("kind") == "update") CHECK(row.at("detail") == "all");
}

TEST_CASE("SCAFFOLD finds the optimum of nodes that disagree, where FedAvg's many local steps do not") {
  Federation federation;
  NodeOptions steep, flat;
  steep.path = parabola(federation, "steep", 1.5, 3);
  flat.path = parabola(federation, "flat", 0.5, -1);
  federation.add_node("steep", steep);
  federation.add_node("flat", flat);
  // The mean of 2.25 (w - 3)^2 and 0.25 (w + 1)^2 has its minimum at 2.6. FedAvg comes to rest where the nodes' 20
  // steps cancel out: between 3 and -1, weighed by how near to its own minimum each comes.
  const double rest_steep = std::pow(0.55, 20), rest_flat = std::pow(0.95, 20);
  const double biased = (3 * (1 - rest_steep) - (1 - rest_flat)) / (2 - rest_steep - rest_flat);

  const std::string averaged = federation.submit(parabolas("fedavg"));
  federation.wait_for_status(averaged, "completed");
  CHECK(weight_of(federation, averaged) == Approx(biased).epsilon(1e-3));

  const std::string corrected = federation.submit(parabolas("scaffold"));
  federation.wait_for_status(corrected, "completed");
  CHECK(weight_of(federation, corrected) == Approx(2.6).epsilon(1e-4));
}

TEST_CASE("a node that is killed keeps the control variate that was counted") {
  Federation federation;
  NodeOptions steep, flat;
  steep.path = parabola(federation, "steep", 1.5, 3);
  flat.path = parabola(federation, "flat", 0.5, -1);
  federation.add_node("steep", steep);
  Node& victim = federation.add_node("flat", flat);
  RunText run = parabolas("scaffold");
  run.rounds = 150;
  const std::string id = federation.submit(run);
  const auto round = [](const json& detail) { return Federation::number(detail.at("summary").at("round")); };
  federation.wait_for(id, "some rounds", [&](const json& detail) { return round(detail) >= 20; });
  victim.kill();
  victim.start();
  federation.wait_for_status(id, "completed");
  CHECK(weight_of(federation, id) == Approx(2.6).epsilon(1e-4));
}

}  // namespace skerry::test
