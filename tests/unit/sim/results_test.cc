// The files that tell what a simulation found.
#include "server/sim/results.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

using namespace skerry;
using namespace skerry::sim;

namespace {

SimulationResult small() {
  SimulationResult result;
  result.name = "digits";
  result.strategy = "fedavg";
  result.status = "completed";
  result.virtual_ms = 2500;
  const std::int64_t midnight = 946'684'800'000;
  result.rows = {{"r", "exchange", "all", 1, 1, midnight + 1000, 2, {{"train_loss", 0.5}, {"reduce_seconds", 0.123}}, ""},
                 {"r", "evaluation", "", 1, 1, midnight + 1500, 1, {{"accuracy", 0.25}}, "a"},
                 {"r", "evaluation", "", 1, 1, midnight + 1500, 2, {{"accuracy", 0.75}}, ""},
                 {"r", "exchange", "all", 2, 2, midnight + 2000, 2, {{"train_loss", 0.25}}, ""}};
  result.tests = {{1, {{"loss", 2}}}, {2, {{"loss", 1}}}};
  result.clients = {{.name = "a", .hostile = true, .speed = 0.5, .examples = 8, .tasks = 2, .counted = 2}, {.name = "b"}};
  result.cpu_seconds = 2;
  result.trainer_seconds = 1;
  return result;
}

}  // namespace

TEST_CASE("rounds.csv has one line for each exchange, without what differs from run to run") {
  CHECK(rounds_csv(small()) ==
        "exchange,fragment,version,time_s,updates,train_loss,eval_accuracy,test_loss\n"
        "1,all,1,1,2,0.5,0.75,2\n"
        "2,all,2,2,2,0.25,,1\n");
}

TEST_CASE("clients.csv has one line for each client, with its own latest evaluation") {
  CHECK(clients_csv(small()) ==
        "client,hostile,speed,examples,holdout_examples,tasks,counted,discarded,dropped,killed,bytes_up,bytes_down,busy_s,eval_accuracy\n"
        "a,1,0.5,8,0,2,2,0,0,0,0,0,0,0.25\n"
        "b,0,1,0,0,0,0,0,0,0,0,0,0,\n");
}

TEST_CASE("summary.json tells the end, and timing only where it is asked for") {
  const auto summary = nlohmann::json::parse(summary_json(small(), false));
  CHECK(summary.at("status") == "completed");
  CHECK(summary.at("exchanges") == 2);
  CHECK(summary.at("virtual_seconds") == 2.5);
  CHECK(summary.at("hostile") == nlohmann::json{"a"});
  CHECK(summary.at("test").at("loss") == 1);
  CHECK_FALSE(summary.contains("timing"));
  CHECK(nlohmann::json::parse(summary_json(small(), true)).at("timing").at("compute_share") == 0.5);
}
