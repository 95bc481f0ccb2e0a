#include <catch2/catch.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/unit/daemon/client_world.h"

using namespace skerry;
using namespace skerry::client;
using skerry::test::World;

TEST_CASE("the daemon speaks first and names its last incarnation") {
  ClientMachineOptions options;
  options.previous_incarnation = "i-0";
  World world(options);
  world.feed(Started{});
  REQUIRE(world.all<ConnectAfter>().size() == 1);
  CHECK(world.all<ConnectAfter>()[0].delay_ms == 0);
  world.feed(Connected{});
  REQUIRE(world.sent().size() == 1);
  CHECK(world.sent()[0].hello().previous_incarnation() == "i-0");
  CHECK(world.sent()[0].hello().protocol_version() == 1);
}

TEST_CASE("reconnects wait longer and longer at random, never beyond the cap, and start small again after a settled session") {
  ClientMachineOptions options;
  options.seed = 7;
  World world(options);
  world.feed(Started{});
  std::uint64_t longest = 0;
  for (int attempt = 0; attempt < 20; ++attempt) {
    world.feed(Disconnected{unavailable("no route")});
    REQUIRE(world.all<ConnectAfter>().size() == 1);
    const auto delay = world.all<ConnectAfter>()[0].delay_ms;
    CHECK(delay <= std::min<std::uint64_t>(60'000, 500ull << attempt));
    longest = std::max(longest, delay);
    world.now += delay;
  }
  CHECK(longest > 10'000);
  world.connect();
  world.now += 20'000;
  world.feed(Disconnected{unavailable("gone")});
  CHECK(world.all<ConnectAfter>()[0].delay_ms <= 500);
}

TEST_CASE("two seeds give two rows of delays, one seed the same row") {
  const auto delays = [](std::uint64_t seed) {
    ClientMachineOptions options;
    options.seed = seed;
    World world(options);
    world.feed(Started{});
    std::vector<std::uint64_t> row;
    for (int i = 0; i < 8; ++i) {
      world.feed(Disconnected{unavailable("no")});
      row.push_back(world.all<ConnectAfter>()[0].delay_ms);
    }
    return row;
  };
  CHECK(delays(1) == delays(1));
  CHECK(delays(1) != delays(2));
}

TEST_CASE("a node whose identity is used elsewhere steps back for minutes instead of fighting") {
  World world;
  world.start();
  world.feed(Disconnected{{Code::kAborted, "another session took over", false}});
  CHECK(world.all<ConnectAfter>()[0].delay_ms >= 300'000);
}

TEST_CASE("a renewed certificate is tried at once") {
  World world;
  world.start();
  world.feed(Disconnected{unauthenticated("expired")});
  world.feed(IdentityRenewed{});
  REQUIRE(world.all<ConnectAfter>().size() == 1);
  CHECK(world.all<ConnectAfter>()[0].delay_ms == 0);
}

TEST_CASE("a goodbye without a time is final until the holder resumes") {
  World world;
  world.start();
  v1::ToNode message;
  message.mutable_goodbye()->set_reason("revoked");
  world.receive(message);
  CHECK(world.none<ConnectAfter>());
  CHECK(world.machine.status().session == "dismissed");
  world.feed(Resume{});
  CHECK(world.all<ConnectAfter>().size() == 1);
}

TEST_CASE("heartbeats are sent in time and a silent coordinator is left") {
  World world;
  world.start();
  world.now += 5'000;
  world.feed(Tick{});
  REQUIRE(world.sent().size() == 1);
  CHECK(world.sent()[0].has_heartbeat());
  world.now += 25'001;
  world.feed(Tick{});
  CHECK(world.all<CloseSession>().size() == 1);
  CHECK(world.all<ConnectAfter>().size() == 1);
}

TEST_CASE("a coordinator that never says welcome is left after thirty seconds") {
  World world;
  world.feed(Started{});
  world.feed(Connected{});
  world.now += 30'000;
  world.feed(Tick{});
  CHECK(world.all<CloseSession>().size() == 1);
}

TEST_CASE("an announced run is judged by the holder and answered, and only then are its tasks worked on") {
  World world;
  world.start();
  v1::ToNode message;
  message.mutable_run()->set_run_id("r");
  message.mutable_run()->set_spec_hash("hash-r");
  world.receive(message);
  REQUIRE(world.all<JudgeRun>().size() == 1);
  world.give(world.task("r", "t1"));
  CHECK(world.none<StartTrainer>());
  v1::RunAnswer answer;
  answer.set_run_id("r");
  answer.set_spec_hash("hash-r");
  answer.set_accepted(true);
  world.feed(RunJudged{answer});
  REQUIRE(world.sent().size() == 1);
  CHECK(world.sent()[0].run_answer().accepted());
  CHECK(world.all<StartTrainer>().size() == 1);
  CHECK(world.all<Fetch>().size() == 1);
}

TEST_CASE("a task of a refused, unknown or changed run is refused and starts nothing") {
  World world;
  world.start();
  world.announce("refused", false);
  world.announce("ok");
  world.give(world.task("refused", "t1"));
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].code() == static_cast<int>(Code::kPermissionDenied));
  world.give(world.task("unknown", "t2"));
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].code() == static_cast<int>(Code::kFailedPrecondition));
  auto other = world.task("ok", "t3");
  other.set_spec_hash("another");
  world.give(other);
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].code() == static_cast<int>(Code::kPermissionDenied));
  CHECK(world.none<StartTrainer>());
}

TEST_CASE("a task that was given to another session is not worked on") {
  World world;
  world.start();
  world.announce("r");
  auto stranger = world.task("r", "t1");
  stranger.set_incarnation("i-9");
  world.give(stranger);
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].code() == static_cast<int>(Code::kAborted));
}

TEST_CASE("an update leaves only after it is durable, and is forgotten only after a final receipt") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  REQUIRE(world.all<TrainerRequest>().size() == 1);
  world.feed(TrainerDone{"r", "t1", {}});
  CHECK(world.all<StoreUpdate>().size() == 1);
  CHECK(world.sent().empty());
  StoredUpdate update;
  update.task = world.task("r", "t1");
  world.feed(OutboxStored{update});
  REQUIRE(world.sent().size() == 1);
  CHECK(world.sent()[0].has_update());
  world.receipt("t1", v1::UPDATE_ACCEPTED);
  CHECK(world.none<ForgetUpdate>());
  world.receipt("t1", v1::UPDATE_COUNTED);
  REQUIRE(world.all<ForgetUpdate>().size() == 1);
  CHECK(world.all<ForgetUpdate>()[0].state == v1::UPDATE_COUNTED);
  CHECK(world.machine.status().outbox.empty());
}

TEST_CASE("a task whose repetition was under way while its update was decided is not worked on again") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.finish_work("r", "t1");
  world.receipt("t1", v1::UPDATE_COUNTED);
  world.give(world.task("r", "t1"));
  CHECK(world.none<Fetch>());
  CHECK(world.machine.status().runs.at(0).tasks.empty());
  world.give(world.task("r", "t2"));
  CHECK(world.all<Fetch>().size() == 1);
}

TEST_CASE("a run with control variates begins no training while the fate of its latest update is open") {
  World world;
  world.start();
  world.announce("r", true, true);
  world.announce("free");
  world.begin_work("r", "t1");
  world.finish_work("r", "t1");
  world.give(world.task("r", "t2"));
  CHECK(world.none<Fetch>());
  world.give(world.task("r", "e1", v1::TASK_EVALUATE));  // an evaluation changes nothing
  CHECK(world.all<Fetch>().size() == 1);
  world.feed(FetchDone{"e1"});
  world.feed(TrainerDone{"r", "e1", {}});
  StoredUpdate report;
  report.task = world.task("r", "e1", v1::TASK_EVALUATE);
  world.feed(OutboxStored{report});
  CHECK(world.none<Fetch>());
  world.receipt("t1", v1::UPDATE_ACCEPTED);
  CHECK(world.none<Fetch>());
  world.receipt("t1", v1::UPDATE_DISCARDED, "too late");
  REQUIRE(world.all<ForgetUpdate>().size() == 1);
  CHECK(world.all<ForgetUpdate>()[0].run_id == "r");
  CHECK(world.all<ForgetUpdate>()[0].kind == v1::TASK_TRAIN);
  REQUIRE(world.all<Fetch>().size() == 1);
  CHECK(world.all<Fetch>()[0].task.task_id() == "t2");
}

TEST_CASE("large payloads are uploaded before the update is offered") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.finish_work("r", "t1", {{"b2-x", 100}});
  CHECK(world.all<Upload>().size() == 1);
  CHECK(world.sent().empty());
  world.feed(UploadDone{"t1"});
  REQUIRE(world.sent().size() == 1);
  CHECK(world.sent()[0].has_update());
}

TEST_CASE("a broken upload is tried again, a refused one is given up and told") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.finish_work("r", "t1", {{"b2-x", 100}});
  world.feed(UploadFailed{"t1", unavailable("reset")});
  CHECK(world.none<ForgetUpdate>());
  world.now += 1'000;
  world.feed(Tick{});
  REQUIRE(world.all<Upload>().size() == 1);
  world.feed(UploadFailed{"t1", permission_denied("ticket expired")});
  CHECK(world.all<ForgetUpdate>().size() == 1);
  CHECK(world.failures().size() == 1);
}

TEST_CASE("after a reconnect undecided updates are asked for and offered again only where they are unknown") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.finish_work("r", "t1");
  world.begin_work("r", "t2");
  world.finish_work("r", "t2");
  world.feed(Disconnected{unavailable("gone")});
  world.connect("i-2");
  REQUIRE(world.sent().size() == 1);
  REQUIRE(world.sent()[0].receipt_query().task_ids_size() == 2);
  world.receipt("t1", v1::UPDATE_COUNTED);
  CHECK(world.all<ForgetUpdate>().size() == 1);
  world.receipt("t2", v1::UPDATE_STATE_UNSPECIFIED);
  REQUIRE(world.sent().size() == 1);
  CHECK(world.sent()[0].has_update());
}

TEST_CASE("an outbox of the last life is asked for like any other") {
  ClientMachineOptions options;
  StoredUpdate old;
  old.task.set_task_id("t0");
  options.outbox.push_back(old);
  World world(options);
  world.start();
  bool asked = false;
  for (const auto& message : world.sent())
    if (message.has_receipt_query()) asked = message.receipt_query().task_ids(0) == "t0";
  CHECK(asked);
}

TEST_CASE("an update that the coordinator does not know although it was offered is offered again, later") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.finish_work("r", "t1");
  world.receipt("t1", v1::UPDATE_STATE_UNSPECIFIED, "its cargo is not here");
  CHECK(world.sent().empty());
  world.now += 600;
  world.feed(Tick{});
  const auto sent = world.sent();
  CHECK(std::any_of(sent.begin(), sent.end(), [](const auto& message) { return message.has_update(); }));
}

TEST_CASE("work goes on while there is no session, and its update is offered by the next one") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(Disconnected{unavailable("gone")});
  CHECK(world.none<CancelTask>());
  world.finish_work("r", "t1");
  CHECK(world.sent().empty());
  world.connect("i-2");
  world.receipt("t1", v1::UPDATE_STATE_UNSPECIFIED);
  REQUIRE(world.sent().size() == 1);
  CHECK(world.sent()[0].update().body() == "body of t1");
}

TEST_CASE("a task repeated after a reconnect is not begun twice") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(Disconnected{unavailable("gone")});
  world.connect("i-2");
  world.give(world.task("r", "t1"));
  CHECK(world.failures().empty());
  CHECK(world.machine.status().runs[0].tasks.size() == 1);
}

TEST_CASE("a task that can never count any more is stopped") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(Disconnected{unavailable("gone")});
  world.connect("i-2");
  world.receipt("t1", v1::UPDATE_DISCARDED, "exchange 1 is committed");
  CHECK(world.all<CancelTask>().size() == 1);
}

TEST_CASE("evaluations go before training within a run") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.give(world.task("r", "t2"));
  world.give(world.task("r", "e1", v1::TASK_EVALUATE));
  const auto tasks = world.machine.status().runs[0].tasks;
  REQUIRE(tasks.size() == 3);
  CHECK(tasks[0].task_id == "t1");
  CHECK(tasks[1].task_id == "e1");
  CHECK(tasks[2].task_id == "t2");
}

TEST_CASE("no more trainers than the holder allows; an idle one makes room") {
  World world;
  world.start();
  world.announce("a");
  world.announce("b");
  world.begin_work("a", "t1");
  world.give(world.task("b", "t2"));
  CHECK(world.none<StartTrainer>());
  CHECK(world.none<StopTrainer>());
  world.finish_work("a", "t1");
  REQUIRE(world.all<StopTrainer>().size() == 1);
  CHECK(world.all<StopTrainer>()[0].run_id == "a");
  CHECK(world.none<StartTrainer>());
  world.feed(TrainerExited{"a", {Code::kCancelled, "ended", true}});
  REQUIRE(world.all<StartTrainer>().size() == 1);
  CHECK(world.all<StartTrainer>()[0].run_id == "b");
}

TEST_CASE("a trainer keeps its slot for a while: idle as long as its start took, busy ten times as long") {
  World world;
  world.start();
  world.announce("a");
  world.announce("b");
  world.give(world.task("a", "t1"));
  world.feed(FetchDone{"t1"});
  world.now += 500;
  world.feed(TrainerReady{"a"});
  world.give(world.task("b", "t2"));
  world.finish_work("a", "t1");
  CHECK(world.none<StopTrainer>());
  REQUIRE(world.all<WakeAt>().size() == 1);
  CHECK(world.all<WakeAt>()[0].at == world.now + 500);

  // Run a's next task comes within the time and is worked on, although b has waited for longer.
  world.now += 400;
  world.give(world.task("a", "t3"));
  CHECK(world.all<Fetch>().size() == 1);
  world.feed(FetchDone{"t3"});
  world.now += 4'700;  // the slice is over
  world.finish_work("a", "t3");
  CHECK(world.none<StopTrainer>());
  world.give(world.task("a", "t4"));
  REQUIRE(world.all<StopTrainer>().size() == 1);
  CHECK(world.all<Fetch>().empty());
  world.feed(TrainerExited{"a", {Code::kCancelled, "ended", true}});
  REQUIRE(world.all<StartTrainer>().size() == 1);
  CHECK(world.all<StartTrainer>()[0].run_id == "b");
  world.feed(TrainerReady{"b"});

  // A trainer without work goes when its time is over, at the alarm.
  world.feed(FetchDone{"t2"});
  world.finish_work("b", "t2");
  CHECK(world.all<StopTrainer>().size() == 1);
}

TEST_CASE("with two slots two runs train at once") {
  ClientMachineOptions options;
  options.max_trainers = 2;
  World world(options);
  world.start();
  world.announce("a");
  world.announce("b");
  world.begin_work("a", "t1");
  world.give(world.task("b", "t2"));
  CHECK(world.all<StartTrainer>().size() == 1);
}

TEST_CASE("a cancelled task ends silently and a trainer that does not stop is killed") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  v1::ToNode message;
  message.mutable_cancel()->set_task_id("t1");
  world.receive(message);
  CHECK(world.all<CancelTask>().size() == 1);
  CHECK(world.failures().empty());
  world.now += 10'000;
  world.feed(Tick{});
  CHECK(world.all<StopTrainer>().size() == 1);
  world.feed(TrainerExited{"r", {Code::kCancelled, "killed", true}});
  CHECK(world.machine.status().runs[0].tasks.empty());
}

TEST_CASE("a result that comes after its cancellation is not used") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  v1::ToNode message;
  message.mutable_cancel()->set_task_id("t1");
  world.receive(message);
  world.feed(TrainerDone{"r", "t1", {}});
  CHECK(world.none<StoreUpdate>());
  CHECK(world.machine.status().runs[0].tasks.empty());
}

TEST_CASE("a task beyond its deadline or the holder's limit is stopped and told") {
  ClientMachineOptions options;
  options.max_task_ms = 5'000;
  World world(options);
  world.start();
  world.announce("r");
  auto task = world.task("r", "t1");
  task.set_deadline_ms(60'000);
  world.give(task);
  world.feed(FetchDone{"t1"});
  world.feed(TrainerReady{"r"});
  world.now += 5'000;
  world.feed(Tick{});
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].code() == static_cast<int>(Code::kDeadlineExceeded));
  CHECK(world.all<CancelTask>().size() == 1);
}

TEST_CASE("a crashed trainer fails its task once and is started again only after a while") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(TrainerExited{"r", {Code::kAborted, "killed by signal 9", true}});
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].retryable());
  for (int crash = 0; crash < 6; ++crash) {
    world.give(world.task("r", "again" + std::to_string(crash)));
    world.now += 60'000;
    world.feed(Tick{});
    world.connect();  // the silence ended the session; what matters is the trainer
    world.feed(TrainerExited{"r", {Code::kAborted, "crash", true}});
  }
  CHECK(world.machine.status().runs[0].trainer != "ready");
}

TEST_CASE("a failure that happens without a session is told by the next one") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(Disconnected{unavailable("gone")});
  world.feed(TrainerError{"r", "t1", failed_precondition("loss is NaN")});
  CHECK(world.sent().empty());
  world.connect("i-2");
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].task_id() == "t1");
}

TEST_CASE("a paused node finishes what it began, gives back what waits, and takes nothing new") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.give(world.task("r", "t2"));
  world.feed(Pause{});
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].task_id() == "t2");
  CHECK(world.none<CancelTask>());
  bool told = false;
  for (const auto& message : world.sent()) told = told || (message.has_heartbeat() && message.heartbeat().paused());
  CHECK(told);
  world.give(world.task("r", "t3"));
  CHECK(world.failures().size() == 1);
  world.finish_work("r", "t1");
  CHECK(world.sent().size() == 1);
  world.feed(Resume{});
  world.give(world.task("r", "t4"));
  CHECK(world.failures().empty());
}

TEST_CASE("pause --now stops the running task too") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(Pause{true});
  CHECK(world.all<CancelTask>().size() == 1);
  CHECK(world.failures().size() == 1);
}

TEST_CASE("outside the holder's hours no task is taken") {
  World world;
  world.start();
  world.announce("r");
  world.feed(Availability{false, "outside the policy's hours"});
  world.give(world.task("r", "t1"));
  CHECK(world.failures().size() == 1);
  CHECK(world.machine.status().unavailable == "outside the policy's hours");
  world.feed(Availability{true, ""});
  world.give(world.task("r", "t2"));
  CHECK(world.failures().empty());
}

TEST_CASE("a changed policy judges every run again; a run it refuses is stopped") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(PolicyChanged{1, 0, {}, 1, 0});
  REQUIRE(world.all<JudgeRun>().size() == 1);
  v1::RunAnswer answer;
  answer.set_run_id("r");
  answer.set_spec_hash("hash-r");
  world.feed(RunJudged{answer});
  CHECK(world.all<CancelTask>().size() == 1);
  CHECK(world.all<StopTrainer>().size() == 1);
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].code() == static_cast<int>(Code::kPermissionDenied));
}

TEST_CASE("an ended run loses its trainer and is dropped, its undecided updates are kept") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.finish_work("r", "t1");
  v1::ToNode message;
  message.mutable_run_ended()->set_run_id("r");
  message.mutable_run_ended()->set_outcome("completed");
  world.receive(message);
  CHECK(world.all<StopTrainer>().size() == 1);
  CHECK(world.none<DropRun>());
  world.feed(TrainerExited{"r", {Code::kCancelled, "ended", true}});
  CHECK(world.all<DropRun>().size() == 1);
  CHECK(world.machine.status().outbox.size() == 1);
}

TEST_CASE("a run that the coordinator does not announce again is dropped after a minute") {
  World world;
  world.start();
  world.announce("r");
  world.feed(Disconnected{unavailable("gone")});
  world.connect("i-2");
  for (int i = 0; i < 13; ++i) {
    world.now += 5'000;
    v1::ToNode echo;
    echo.mutable_heartbeat()->set_token(1);
    world.receive(echo);
    if (!world.none<DropRun>()) break;
  }
  CHECK(world.all<DropRun>().size() == 1);
}

TEST_CASE("leaving says farewell for good, drops every run and exits when the trainers are gone") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(Leave{"moving house"});
  REQUIRE_FALSE(world.sent().empty());
  CHECK(world.sent().back().farewell().leaving());
  CHECK(world.none<Exit>());
  world.feed(TrainerExited{"r", {Code::kCancelled, "ended", true}});
  CHECK(world.all<DropRun>().size() == 1);
  CHECK(world.all<Exit>().size() == 1);
}

TEST_CASE("a shutdown waits for the update that is being stored") {
  World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t1");
  world.feed(TrainerDone{"r", "t1", {}});
  world.feed(Shutdown{});
  world.feed(TrainerExited{"r", {Code::kCancelled, "ended", true}});
  CHECK(world.none<Exit>());
  StoredUpdate update;
  update.task = world.task("r", "t1");
  world.feed(OutboxStored{update});
  CHECK(world.all<Exit>().size() == 1);
}

TEST_CASE("a coordinator cannot make the daemon spin or remember runs without end") {
  World world;
  world.feed(Started{});
  world.feed(Connected{});
  v1::ToNode welcome;
  welcome.mutable_welcome()->set_incarnation("i-1");
  welcome.mutable_welcome()->set_heartbeat_ms(1);
  world.receive(welcome);
  REQUIRE(world.all<WakeAt>().size() == 1);
  CHECK(world.all<WakeAt>()[0].at >= world.now + 50);
  for (int i = 0; i < 1100; ++i) world.announce("r" + std::to_string(i));
  CHECK(world.machine.status().runs.size() == 1024);
}
