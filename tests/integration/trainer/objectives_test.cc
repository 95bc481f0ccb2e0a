// Rounds of FedProx, SCAFFOLD, FedPer and frozen tensors through real trainers, against tests/oracle/objectives.py,
// which walks in float64 from the papers' formulas. This test is the coordinator.
#include <algorithm>
#include <memory>
#include <optional>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/integration/trainer/trainer_process.h"
#include "tests/support/child.h"

using namespace skerry;
using namespace skerry::test;

namespace {

constexpr int kRows = 12;

// Client i's table [[[a, b], y], …]: the clients disagree about the weights and the bias, and see other inputs.
json table(int client) {
  json rows = json::array();
  for (int i = 0; i < kRows; ++i) {
    const double a = (i * 7 % 12) / 4.0 - 1 + client;
    const double b = (i * 5 % 12) / 8.0 - client;
    const double y = client == 0 ? 2 * a - b + 1 : 0.5 * b - a - 2;
    rows.push_back({{a, b}, y});
  }
  return rows;
}

struct Method {
  json training;
  json model = json::object();
  std::size_t exchanged = 3;  // of the three parameters
  std::size_t frozen = 0;
  std::vector<float> start{0.5f, -0.25f, 0.125f};  // two weights and the bias
};

struct Client {
  World world;
  std::optional<TrainerProcess> trainer;
  json open;
  std::string counted;
  std::string latest;

  Client(int number, const Method& method) {
    open = world.open({{"learning_rate", 0.05}, {"batch", kRows}, {"loss", "mse"}}, {{"outputs", 1}});
    open["training"].update(method.training);
    open["model"].update(method.model);
    std::string text = "a,b,y\n";
    for (const json& row : table(number))
      text += row[0][0].dump() + "," + row[0][1].dump() + "," + row[1].dump() + "\n";
    REQUIRE(write_file_atomic(world.path() + "/table.csv", text).ok());
    open["data"]["schema"]["classes"] = 0;
    open["data"]["splits"] = {{"train", {{"from", 0.0}, {"to", 1.0}}}};
    start();
  }

  void start() {
    trainer.emplace(TrainerProcess::shipped());
    const json opened = trainer->ask(open);
    INFO(opened);
    REQUIRE(opened["type"] == "opened");
  }

  void restart() {
    trainer->kill();
    start();
  }
};

/// Two clients and a coordinator that averages.
class Rounds {
 public:
  Rounds(const Method& method, int steps) : method_(method), steps_(steps) {
    for (int i = 0; i < 2; ++i) clients_.push_back(std::make_unique<Client>(i, method));
    json model = clients_[0]->open["model"];
    layout_ = *build_layout(model);
    x_.assign(method.start.begin(), method.start.begin() + static_cast<std::ptrdiff_t>(method.exchanged));
    c_.assign(method.exchanged, 0.0);
  }

  void round(const std::vector<std::size_t>& counted) {
    ++number_;
    std::vector<double> x(x_.size(), 0.0), c(c_.size(), 0.0);
    for (std::size_t i = 0; i < clients_.size(); ++i) {
      Client& client = *clients_[i];
      const json done = client.trainer->ask(task(client));
      INFO(done);
      REQUIRE(done["type"] == "done");
      done_ = done;
      const std::string out = client.world.work("all-out");
      const auto y = fragment_values(out, layout_, "all");
      if (std::find(counted.begin(), counted.end(), i) == counted.end()) continue;
      client.counted = client.latest;
      for (std::size_t j = 0; j < x.size(); ++j) x[j] += (y[j] - x_[j]) / static_cast<double>(counted.size());
      if (!scaffold()) continue;
      const auto said = fragment_values(client.world.work("control-out"), layout_, "all-control");
      for (std::size_t j = 0; j < c.size(); ++j) c[j] += (said[j] - c_[j]) / static_cast<double>(clients_.size());
    }
    for (std::size_t j = 0; j < x.size(); ++j) x_[j] = static_cast<float>(x_[j] + x[j]);
    for (std::size_t j = 0; j < c.size(); ++j) c_[j] = static_cast<float>(c_[j] + c[j]);
  }

  void restart() {
    for (auto& client : clients_) client->restart();
    first_ = true;
  }

  Client& client(std::size_t index) { return *clients_[index]; }
  const json& done() const { return done_; }
  const std::vector<double>& x() const { return x_; }
  const std::vector<double>& c() const { return c_; }
  const ModelLayout& layout() const { return layout_; }

  json task(Client& client) {
    client.latest = "t-" + std::to_string(number_);
    json line = {
        {"type", "train"}, {"task", client.latest}, {"steps", steps_}, {"seed", 3}, {"counted", client.counted}};
    const auto fragment = [&](const char* name, const char* file, const std::vector<double>& values) {
      put_fragment(client.world.work(file), layout_, {values.begin(), values.end()}, name);
      line["read"][name] = {{"path", client.world.work(file)}, {"version", number_}};
    };
    fragment("all", "all-in", x_);
    line["write"]["all"] = client.world.work("all-out");
    if (scaffold()) {
      fragment("all-control", "control-in", c_);
      line["write"]["all-control"] = client.world.work("control-out");
    }
    if (method_.frozen > 0 && first_) fragment("frozen", "frozen-in", {method_.start.back()});
    if (&client == clients_.back().get()) first_ = false;
    return line;
  }

 private:
  bool scaffold() const { return method_.training.value("control_variates", false); }

  const Method method_;
  const int steps_;
  ModelLayout layout_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<double> x_, c_;  // as floats, because that is what travels
  int number_ = 0;
  bool first_ = true;
  json done_;
};

void check_against_oracle(const Method& method, int steps, const std::vector<std::vector<std::size_t>>& counted,
                          std::size_t restart_before = SIZE_MAX) {
  const char* source = std::getenv("SKERRY_SOURCE");
  const json question = {{"tables", {table(0), table(1)}},
                         {"start", method.start},
                         {"exchanged", method.exchanged},
                         {"frozen", method.frozen},
                         {"steps", steps},
                         {"rate", 0.05},
                         {"mu", method.training.value("proximal", 0.0)},
                         {"scaffold", method.training.value("control_variates", false)},
                         {"counted", counted}};
  const auto answer =
      run_program({"/usr/bin/python3", std::string(source != nullptr ? source : ".") + "/tests/oracle/objectives.py",
                   question.dump()});
  REQUIRE(answer.ok());
  const json expected = json::parse(answer.out);
  Rounds rounds(method, steps);
  for (std::size_t round = 0; round < counted.size(); ++round) {
    if (round == restart_before) rounds.restart();
    rounds.round(counted[round]);
    CAPTURE(round);
    for (std::size_t j = 0; j < method.exchanged; ++j) {
      CHECK(rounds.x()[j] == Approx(expected[round]["x"][j].get<double>()).epsilon(1e-4).margin(1e-5));
      CHECK(rounds.c()[j] == Approx(expected[round]["c"][j].get<double>()).epsilon(1e-4).margin(1e-4));
    }
  }
}

bool skipped() {
  if (python_has("numpy")) return false;
  WARN("Debian's Python has no NumPy (python3-numpy): not tested");
  return true;
}

const std::vector<std::vector<std::size_t>> kBoth(5, {0, 1});

}  // namespace

TEST_CASE("FedAvg and FedProx take the oracle's rounds") {
  if (skipped()) return;
  check_against_oracle({json::object()}, 7, kBoth);
  check_against_oracle({{{"proximal", 0.8}}}, 7, kBoth);
}

TEST_CASE("SCAFFOLD takes the oracle's rounds, also where updates are discarded and trainers killed") {
  if (skipped()) return;
  const Method method{{{"control_variates", true}}, {{"control", true}}};
  check_against_oracle(method, 7, kBoth);
  const std::vector<std::vector<std::size_t>> some{{0, 1}, {0}, {0, 1}, {1}, {1}, {0, 1}};
  check_against_oracle(method, 7, some);
  check_against_oracle(method, 7, some, 2);  // c_i and both candidates live in the checkpoint
}

TEST_CASE("a personal bias stays with its trainer, over a restart too") {
  if (skipped()) return;
  Method method{json::object(), {{"personal", {"bias"}}}};
  method.exchanged = 2;
  method.start[2] = 0;  // the trainer draws it from the run's seed
  check_against_oracle(method, 7, kBoth, 3);
  method.training = {{"proximal", 0.5}, {"control_variates", true}};
  method.model["control"] = true;
  check_against_oracle(method, 7, kBoth, 3);
}

TEST_CASE("a frozen bias is read once after each start and never moves") {
  if (skipped()) return;
  Method method{{{"weight_decay", 0.0}}, {{"frozen", {"bias"}}}};
  method.exchanged = 2;
  method.frozen = 1;
  check_against_oracle(method, 7, kBoth, 3);

  Rounds rounds(method, 3);
  rounds.round({0, 1});
  Client& client = rounds.client(0);
  const auto refused = [&](const json& change) {
    json line = rounds.task(client);
    line.merge_patch(change);
    const json answer = client.trainer->ask(line);
    INFO(answer);
    REQUIRE(answer["type"] == "error");
    return answer["message"].get<std::string>();
  };
  CHECK_THAT(refused({{"write", {{"frozen", client.world.work("f")}}}}), Catch::Contains("is frozen"));
  CHECK_THAT(refused({{"emit", {{{"fragment", "frozen"}, {"at_step", 1}, {"path", client.world.work("f")}}}}}),
             Catch::Contains("not exchanged"));
  client.restart();
  CHECK_THAT(refused(json::object()), Catch::Contains("frozen tensors were never read"));
  const json evaluated = client.trainer->ask({{"type", "evaluate"}, {"task", "e"}, {"split", "train"}});
  CHECK(evaluated["code"] == "FAILED_PRECONDITION");
}

TEST_CASE("a trainer reads no personal fragment, and writes its own for its daemon") {
  Method method{json::object(), {{"personal", {"bias"}}}};
  method.exchanged = 2;
  Rounds rounds(method, 3);
  rounds.round({0, 1});
  Client& client = rounds.client(0);
  put_fragment(client.world.work("foreign"), rounds.layout(), {9}, "personal");
  json line = rounds.task(client);
  line["read"]["personal"] = {{"path", client.world.work("foreign")}, {"version", 1}};
  CHECK_THAT(client.trainer->ask(line)["message"].get<std::string>(), Catch::Contains("is personal"));
  line = rounds.task(client);
  line["write"]["personal"] = client.world.work("own");
  REQUIRE(client.trainer->ask(line)["type"] == "done");
  const float own = fragment_values(client.world.work("own"), rounds.layout(), "personal")[0];
  CHECK(own != 0.0f);
  CHECK(own != 9.0f);
}

TEST_CASE("the loss at the start is that of the received model, over the whole training split") {
  Method method{{{"start_loss", true}, {"batch", 5}}};
  Rounds rounds(method, 3);
  const auto loss_at = [&](const std::vector<double>& w) {
    double sum = 0;
    for (const json& row : table(1)) {
      const double error =
          row[0][0].get<double>() * w[0] + row[0][1].get<double>() * w[1] + w[2] - row[1].get<double>();
      sum += error * error;
    }
    return sum / kRows;
  };
  for (int i = 0; i < 3; ++i) {
    const double expected = loss_at(rounds.x());
    rounds.round({0, 1});
    CHECK(rounds.done()["metrics"]["start_loss"].get<double>() == Approx(expected).epsilon(1e-5));
    CHECK(rounds.done()["metrics"]["train_loss"].get<double>() < expected);
  }
}

TEST_CASE("a trainer refuses an objective that it does not know or cannot follow") {
  const auto refusal = [](const json& training, const json& model) {
    World world;
    TrainerProcess trainer = TrainerProcess::shipped();
    const json answer = trainer.ask(world.open(training, model));
    CHECK(answer["fatal"] == true);
    return answer["message"].get<std::string>();
  };
  CHECK_THAT(refusal({{"proximality", 1}}, json::object()), Catch::Contains("\"proximality\" is not known"));
  CHECK_THAT(refusal({{"control_variates", true}, {"momentum", 0.9}}, {{"control", true}}),
             Catch::Contains("momentum"));
  CHECK_THAT(refusal({{"control_variates", true}}, json::object()), Catch::Contains("differ"));
}
