// The objectives' terms against values worked out by hand. (Whole rounds:
// tests/integration/trainer/objectives_test.cc.)
#include <catch2/catch.hpp>

#include "client/trainer/objective.h"

using namespace skerry::trainer;

namespace {

ObjectiveOptions scaffold() {
  ObjectiveOptions options;
  options.control_variates = true;
  return options;
}

}  // namespace

TEST_CASE("without an objective nothing is kept and the gradient stays") {
  const ObjectiveState state = fresh_objective({}, 3);
  CHECK(state == ObjectiveState{});
  std::vector<float> gradient{1, 2, 3};
  add_objective({}, state, gradient, gradient);
  CHECK(gradient == std::vector<float>{1, 2, 3});
}

TEST_CASE("FedProx adds mu times the way from the received tensors") {
  ObjectiveOptions options;
  options.proximal = 0.5;
  ObjectiveState state = fresh_objective(options, 2);
  CHECK(state.control.empty());
  state.received = {1, 2};
  std::vector<float> gradient{1, 1};
  add_objective(options, state, std::vector<float>{3, 0}, gradient);
  CHECK(gradient == std::vector<float>{2, 0});
}

TEST_CASE("SCAFFOLD adds c - c_i, and sends (x - y) / K eta in the place of c") {
  ObjectiveState state = fresh_objective(scaffold(), 2);
  begin_task(state, "");
  state.received = {1, 1};
  state.control = {4, 0};
  state.own_control = {1, 2};
  std::vector<float> gradient{0, 0};
  add_objective(scaffold(), state, std::vector<float>{0, 0}, gradient);
  CHECK(gradient == std::vector<float>{3, -2});
  state.rates = 0.5;  // two steps of 0.25
  end_task(scaffold(), state, "t-1", std::vector<float>{0, 3});
  CHECK(state.control == std::vector<float>{2, -4});        // c + (c_i+ - c_i)
  CHECK(state.next_control == std::vector<float>{-1, -2});  // c_i - c + (x - y) / K eta
  CHECK(state.own_control == std::vector<float>{1, 2});
}

TEST_CASE("a client's control variate moves on only where its update counted") {
  ObjectiveState state = fresh_objective(scaffold(), 1);
  const auto task = [&](const char* name, const char* counted, float y) {
    begin_task(state, counted);
    state.received = {0};
    state.control = {0};
    state.rates = 1;
    end_task(scaffold(), state, name, std::vector<float>{y});
  };
  task("t-1", "", -1);
  CHECK(state.next_control == std::vector<float>{1});
  task("t-2", "t-1", -2);  // counted
  CHECK(state.own_control == std::vector<float>{1});
  task("t-3", "t-1", -4);  // t-2 was discarded; that t-1 counted is no news
  CHECK(state.own_control == std::vector<float>{1});
  CHECK(state.next_control == std::vector<float>{5});
  const ObjectiveState before = state;
  begin_task(state, "t-3");
  CHECK(state.own_control == std::vector<float>{5});
  begin_task(state, "t-3");  // said again, after a task that failed
  CHECK(state.own_control == std::vector<float>{5});
  state = before;
  begin_task(state, "");
  CHECK(state.own_control == std::vector<float>{1});
}
