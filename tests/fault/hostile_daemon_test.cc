// A member with a good certificate that lies. Every lie is refused with its reason, counted and logged, and the run goes on
// and completes with the honest nodes.
#include <catch2/catch.hpp>

#include <cmath>
#include <limits>

#include <nlohmann/json.hpp>

#include "common/crypto/content_id.h"
#include "tests/support/federation.h"
#include "tests/support/raw_node.h"

namespace skerry::test {
namespace {

using nlohmann::json;

constexpr std::uint64_t kSmall = 10;        // values of the linear model: 4 inputs, 2 outputs
constexpr std::uint64_t kLarge = 163'202;   // of the mlp: cargo
constexpr const char* kLargeModel = "architecture = \"mlp\"\ninputs = 4\nhidden = [400, 400]\noutputs = 2\n";

void set_data(v1::UpdateBody& body, const std::string& data) {
  v1::Blob& blob = *body.mutable_fragments(0)->mutable_data();
  blob.set_content_id(content_id(data));
  blob.set_size(data.size());
  blob.set_inline_data(data);
}

std::string with_value(std::uint64_t elements, float value) {
  std::vector<float> values(elements, 0.001f);
  values[elements / 2] = value;
  return f32_bytes(values);
}

/// "…serial" of a task id, with another serial.
std::string neighbour_of(const std::string& task, int step) {
  const auto dot = task.rfind('.');
  return task.substr(0, dot + 1) + std::to_string(std::stoi(task.substr(dot + 1)) + step);
}

struct World {
  Federation federation;
  RawNode mallory;

  // A raw node says nothing by itself: it must not be taken for dead while a test thinks.
  World() : federation({.heartbeat_ms = 60'000}), mallory(add_liar(federation, "mallory")) {
    for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true});
  }
  static std::string add_liar(Federation& federation, const std::string& name) {
    return federation.add_node(name, {.start = false}).home();
  }

  RunText run() const {
    RunText text;
    text.participation = "start_nodes = 3\nquorum = 2\nreconnect_s = 1\n";
    return text;
  }
  /// The honest nodes have every round, whatever else happened.
  json completed(const std::string& id, std::uint64_t rounds) {
    const json detail = federation.wait_for_status(id, "completed");
    for (const char* node : {"alder", "birch"}) CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == rounds);
    return detail;
  }
};

TEST_CASE("updates that lie are discarded with their reason, counted and logged, and the run completes with the honest nodes") {
  World world;
  RawNode& mallory = world.mallory;
  mallory.connect();
  RunText run = world.run();
  run.limits = "maximum_update_norm = 5\n";

  struct Lie {
    const char* what;
    const char* reason;
    std::function<void(v1::UpdateBody&)> tell;
  };
  const std::vector<Lie> lies = {
      {"fewer values than the fragment has", "10 values in f32 have 40", [](v1::UpdateBody& body) { set_data(body, with_value(9, 0)); }},
      {"more values than the fragment has", "10 values in f32 have 40", [](v1::UpdateBody& body) { set_data(body, with_value(1000, 0)); }},
      {"a size that its bytes do not have", "4 bytes came of 40",
       [](v1::UpdateBody& body) { body.mutable_fragments(0)->mutable_data()->set_inline_data("1234"); }},
      {"bytes that are not those of their content id", "are not those of content id",
       [](v1::UpdateBody& body) { body.mutable_fragments(0)->mutable_data()->mutable_inline_data()->replace(0, 1, "x"); }},
      {"a content id that is none", "content id", [](v1::UpdateBody& body) { body.mutable_fragments(0)->mutable_data()->set_content_id("../../etc/passwd"); }},
      {"not a number", "finite", [](v1::UpdateBody& body) { set_data(body, with_value(kSmall, std::nanf(""))); }},
      {"an infinite value", "finite", [](v1::UpdateBody& body) { set_data(body, with_value(kSmall, std::numeric_limits<float>::infinity())); }},
      {"a norm beyond what the run allows", "the run allows 5", [](v1::UpdateBody& body) { set_data(body, with_value(kSmall, 1e6f)); }},
      {"another encoding than the run's", "its encoding is 'bf16'", [](v1::UpdateBody& body) { body.mutable_fragments(0)->set_encoding("bf16"); }},
      {"a fragment that the model does not have", "no fragment of this name", [](v1::UpdateBody& body) { body.mutable_fragments(0)->set_fragment("backdoor"); }},
      {"the same fragment twice", "twice", [](v1::UpdateBody& body) { *body.add_fragments() = body.fragments(0); }},
      {"no fragment at all", "no fragment", [](v1::UpdateBody& body) { body.clear_fragments(); }},
      {"a base that the task did not give", "against version 4711", [](v1::UpdateBody& body) { body.mutable_fragments(0)->set_base_version(4711); }},
      {"another run spec", "was made for run spec", [](v1::UpdateBody& body) { body.set_spec_hash(std::string(64, 'a')); }},
      {"no examples", "weighs nothing", [](v1::UpdateBody& body) { body.set_examples(0); }},
  };
  run.rounds = static_cast<unsigned>(lies.size()) + 2;
  const std::string id = world.federation.submit(run);
  for (const Lie& lie : lies) {
    CAPTURE(lie.what);
    const v1::Task task = mallory.next_task();
    v1::UpdateBody body = mallory.honest_body(task, kSmall);
    lie.tell(body);
    mallory.offer(body);
    const v1::Receipt receipt = mallory.receipt(task.task_id());
    CHECK(receipt.state() == v1::UPDATE_DISCARDED);
    CHECK(receipt.reason().find(lie.reason) != std::string::npos);
    CAPTURE(receipt.reason());
    CHECK(world.federation.wait_for_server_log(lie.reason));
  }
  // And when it tells the truth, it is counted like everybody else.
  for (int round = 0; round < 2; ++round) {
    const v1::Task task = mallory.next_task();
    mallory.offer(mallory.honest_body(task, kSmall));
    const auto state = mallory.receipt(task.task_id()).state();
    CHECK((state == v1::UPDATE_ACCEPTED || state == v1::UPDATE_COUNTED));  // where it was the last of its round: COUNTED at once
  }
  const json detail = world.completed(id, run.rounds);
  CHECK(Federation::number(Federation::participant(detail, "mallory").at("counted")) == 2);
  CHECK(Federation::number(Federation::participant(detail, "mallory").at("discarded")) == lies.size());
  CHECK(world.federation.metric("skerry_updates_refused_total", "node=\"mallory\"") >= static_cast<double>(lies.size()) - 2);
  CHECK(world.federation.metric("skerry_updates_refused_total", "node=\"alder\"") == 0);
  std::uint64_t discarded = 0;
  for (const auto& [reason, number] : detail.at("discarded").items()) discarded += Federation::number(number);
  CHECK(discarded == lies.size());
}

TEST_CASE("updates in somebody else's name, for somebody else's task or for no run change nothing, and their sender is told") {
  World world;
  RawNode& mallory = world.mallory;
  mallory.connect();
  RunText run = world.run();
  run.rounds = 3;
  // The honest ones are held, so that their tasks are open while mallory tries to answer them.
  for (const char* node : {"alder", "birch"}) world.federation.node(node).script({{"hold", true}});
  const std::string id = world.federation.submit(run);
  const v1::Task task = mallory.next_task();
  const v1::UpdateBody honest = mallory.honest_body(task, kSmall, 1.0f);
  const auto refused = [&](const v1::UpdateBody& body, const char* reason) {
    mallory.offer(body);
    const v1::Receipt receipt = mallory.receipt(body.task_id());
    CHECK(receipt.state() == v1::UPDATE_DISCARDED);
    CAPTURE(receipt.reason());
    CHECK(receipt.reason().find(reason) != std::string::npos);
    CHECK(world.federation.wait_for_server_log(reason));
  };

  {
    INFO("somebody else's task: alder's and birch's have the serial numbers beside");
    v1::UpdateBody body = honest;
    body.set_task_id(neighbour_of(task.task_id(), -1));
    refused(body, "belongs to another node");
    body.set_task_id(neighbour_of(task.task_id(), -2));
    refused(body, "belongs to another node");
  }
  {
    INFO("tasks that nobody gave out, and a run that is none");
    v1::UpdateBody body = honest;
    body.set_task_id(neighbour_of(task.task_id(), 1000));
    refused(body, "not been given out");
    body.set_task_id("somebody-elses-run.1.1");
    mallory.offer(body);
    CHECK(mallory.receipt("somebody-elses-run.1.1").state() == v1::UPDATE_DISCARDED);
    body = honest;
    body.set_run_id("r-0000000000000000-1");
    mallory.offer(body);
    CHECK(mallory.receipt(task.task_id()).reason().find("no open run") != std::string::npos);
    CHECK(world.federation.wait_for_server_log("which is no open run"));
  }
  {
    INFO("no message at all");
    v1::FromNode message;
    message.mutable_update()->set_body("\xff\xff\xff\xff");
    message.mutable_update()->set_signature("no signature");
    const double before = world.federation.metric("skerry_updates_refused_total", "node=\"mallory\"");
    mallory.send(message);
    CHECK(eventually([&] { return world.federation.metric("skerry_updates_refused_total", "node=\"mallory\"") > before; }));
  }
  {
    INFO("a wrong signature under somebody else's task does not decide that task");
    v1::UpdateBody body = honest;
    body.set_task_id(neighbour_of(task.task_id(), -1));
    v1::FromNode message;
    *message.mutable_update() = mallory.sign(honest);
    message.mutable_update()->set_body(body.SerializeAsString());
    mallory.send(message);
    CHECK(mallory.receipt(body.task_id()).state() == v1::UPDATE_DISCARDED);
  }
  CHECK(world.federation.metric("skerry_updates_refused_total", "node=\"mallory\"") >= 4);
  // None of it touched the open task of anybody, mallory's own included.
  mallory.offer(mallory.honest_body(task, kSmall));
  CHECK(mallory.receipt(task.task_id()).state() == v1::UPDATE_ACCEPTED);
  for (const char* node : {"alder", "birch"}) world.federation.node(node).script({{"hold", false}});
  CHECK(mallory.receipt(task.task_id()).state() == v1::UPDATE_COUNTED);
  {
    INFO("in the second round a wrong signature, in the third a body made out to another node: these decide mallory's own task");
    const v1::Task second = mallory.next_task();
    v1::FromNode message;
    *message.mutable_update() = mallory.sign(mallory.honest_body(second, kSmall));
    message.mutable_update()->mutable_body()->append("\x38\x07", 2);  // one more field, after the signing
    mallory.send(message);
    const v1::Receipt receipt = mallory.receipt(second.task_id());
    CHECK(receipt.state() == v1::UPDATE_DISCARDED);
    CHECK(receipt.reason().find("signature is not mallory's") != std::string::npos);
    v1::UpdateBody body = mallory.honest_body(mallory.next_task(), kSmall);
    body.set_node("alder");
    refused(body, "made out to node 'alder'");
  }
  mallory.disconnect();
  world.completed(id, 3);
}

TEST_CASE("an update that is offered a thousand times is counted once, and its answer stays the same after the count") {
  World world;
  RawNode& mallory = world.mallory;
  mallory.connect();
  RunText run = world.run();
  run.rounds = 2;
  world.federation.node("alder").script({{"hold", true}});
  const std::string id = world.federation.submit(run);
  const v1::Task task = mallory.next_task();
  const v1::UpdateBody body = mallory.honest_body(task, kSmall);
  for (int i = 0; i < 1000; ++i) mallory.offer(body);
  for (int i = 0; i < 1000; ++i) REQUIRE(mallory.receipt(task.task_id()).state() == v1::UPDATE_ACCEPTED);
  CHECK(world.federation.show(id).at("fragments").at(0).at("accepted") == 2);  // mallory's and birch's
  world.federation.node("alder").script({{"hold", false}});
  CHECK(mallory.receipt(task.task_id()).state() == v1::UPDATE_COUNTED);
  mallory.offer(body);
  const v1::Receipt again = mallory.receipt(task.task_id());
  CHECK(again.state() == v1::UPDATE_COUNTED);
  CHECK(again.version() == 1);
  mallory.disconnect();
  const json detail = world.completed(id, 2);
  CHECK(Federation::number(Federation::participant(detail, "mallory").at("counted")) == 1);
  CHECK(world.federation.metric("skerry_updates_counted_total") == 5);  // 3 in the first round, 2 in the second
}

TEST_CASE("messages that are too large, come too early or never come end the session with the reason, and nobody else's") {
  World world;
  RawNode& mallory = world.mallory;
  const auto ended = [&] {
    REQUIRE(eventually([&] { return mallory.ended().has_value(); }, 20'000));
    return to_string(*mallory.ended());
  };
  mallory.connect();
  {
    INFO("nine megabytes in one message");
    v1::FromNode message;
    message.mutable_update()->set_body(std::string(9'000'000, 'x'));
    mallory.send(message);
    const std::string reason = ended();
    CAPTURE(reason);
    CHECK(reason.find("RESOURCE_EXHAUSTED") != std::string::npos);
  }
  mallory.connect();
  {
    INFO("a Hello with a library in it");
    v1::FromNode message;
    message.mutable_hello()->set_protocol_version(1);
    for (int i = 0; i < 300; ++i) message.mutable_hello()->add_data_sets()->set_name("set-" + std::to_string(i));
    mallory.send(message);
    const std::string reason = ended();
    CAPTURE(reason);
    INFO(world.federation.server_log());
    CHECK(reason.find("INVALID_ARGUMENT") != std::string::npos);
  }
  // The others never noticed, and mallory may still come back and be honest.
  RunText run = world.run();
  run.rounds = 2;
  mallory.connect();
  const std::string id = world.federation.submit(run);
  for (int round = 0; round < 2; ++round) {
    const v1::Task task = mallory.next_task();
    mallory.offer(mallory.honest_body(task, kSmall));
  }
  world.completed(id, 2);
  for (const char* node : {"alder", "birch"}) CHECK(world.federation.node(node).log().find("no session with the coordinator") == std::string::npos);
}

TEST_CASE("cargo: another's ticket, a changed one, too much, other bytes than their id, not finite: refused, and the run goes on") {
  World world;
  RawNode& mallory = world.mallory;
  RawNode oscar(World::add_liar(world.federation, "oscar"));
  mallory.connect();
  oscar.connect();
  RunText run = world.run();
  run.model = kLargeModel;
  run.participation = "start_nodes = 4\nquorum = 2\nreconnect_s = 1\n";
  run.rounds = 4;
  const std::string id = world.federation.submit(run);
  const v1::Task mine = mallory.next_task();
  const v1::Task others = oscar.next_task();

  const auto upload = [](const RawNode& node, const std::string& cargo, const std::string& data, const std::string& ticket) {
    return node.http("PUT", "/api/v1/cargo/" + cargo + "?offset=0&size=" + std::to_string(data.size()), data, {{"Skerry-Ticket", ticket}});
  };
  const auto body_of = [](const RawNode& node, const v1::Task& task, const std::string& data) {
    v1::UpdateBody body = node.honest_body(task, 1);
    v1::Blob& blob = *body.mutable_fragments(0)->mutable_data();
    blob.set_content_id(content_id(data));
    blob.set_size(data.size());
    blob.clear_inline_data();
    return body;
  };
  const std::string good = with_value(kLarge, 0.5f);

  {
    INFO("another's ticket");
    const HttpResponse answer = upload(mallory, content_id(good), good, others.ticket());
    CHECK(answer.status == 403);
    CHECK(answer.body.find("ticket") != std::string::npos);
  }
  {
    INFO("a ticket that was changed, and none");
    std::string changed = mine.ticket();
    changed[5] = changed[5] == 'A' ? 'B' : 'A';
    CHECK(upload(mallory, content_id(good), good, changed).status == 401);
    CHECK(upload(mallory, content_id(good), good, "").status == 400);
  }
  {
    INFO("more bytes than the task may send");
    const std::string large = good + "1234";
    const HttpResponse answer = upload(mallory, content_id(large), large, mine.ticket());
    CHECK((answer.status == 413 || answer.status == 429));
    CHECK(answer.body.find(std::to_string(good.size())) != std::string::npos);
  }
  {
    INFO("other bytes than their id, and then the right ones");
    const std::string other = with_value(kLarge, 0.7f);
    CHECK(upload(mallory, content_id(good), other, mine.ticket()).status == 422);
    const HttpResponse state = mallory.http("GET", "/api/v1/cargo/" + content_id(good) + "/upload?size=" + std::to_string(good.size()), "", {{"Skerry-Ticket", mine.ticket()}});
    CHECK(state.status == 200);
    CHECK(json::parse(state.body).at("complete") == false);
  }
  {
    INFO("offered before its cargo came: not an answer about the task, and good once the cargo is there");
    mallory.offer(body_of(mallory, mine, good));
    const v1::Receipt early = mallory.receipt(mine.task_id());
    CHECK(early.state() == v1::UPDATE_STATE_UNSPECIFIED);
    CHECK(early.reason().find("not here yet") != std::string::npos);
    CHECK(upload(mallory, content_id(good), good, mine.ticket()).status == 200);
    mallory.offer(body_of(mallory, mine, good));
    CHECK(mallory.receipt(mine.task_id()).state() == v1::UPDATE_ACCEPTED);
  }
  {
    INFO("another's cargo, which is on the coordinator, for one's own task");
    oscar.offer(body_of(oscar, others, good));
    CHECK(oscar.receipt(others.task_id()).state() == v1::UPDATE_STATE_UNSPECIFIED);
  }
  {
    INFO("cargo with a value that is not finite");
    const std::string bad = with_value(kLarge, std::nanf(""));
    CHECK(upload(oscar, content_id(bad), bad, others.ticket()).status == 200);
    oscar.offer(body_of(oscar, others, bad));
    const v1::Receipt receipt = oscar.receipt(others.task_id());
    CHECK(receipt.state() == v1::UPDATE_DISCARDED);
    CHECK(receipt.reason().find("finite") != std::string::npos);
    CHECK(world.federation.metric("skerry_updates_refused_total", "node=\"oscar\"") >= 1);
  }
  CHECK(mallory.receipt(mine.task_id()).state() == v1::UPDATE_COUNTED);
  {
    INFO("downloads: models of runs one takes part in, and nothing else");
    const json versions = world.federation.ask({"model", "list", id});
    const std::string model = versions.at("latest").at(0).at("whole").at("content_id");
    CHECK(mallory.http("GET", "/api/v1/cargo/" + model, "", {{"Range", "bytes=0-99"}}).status == 206);
    RawNode eve(World::add_liar(world.federation, "eve"));
    CHECK(eve.http("GET", "/api/v1/cargo/" + model, "", {{"Range", "bytes=0-99"}}).status == 403);
    CHECK(eve.http("GET", "/api/v1/cargo/b2-" + std::string(64, '0')).status == 404);
    CHECK(eve.http("GET", "/api/v1/cargo/..%2F..%2Fskerry.db").status >= 400);
  }
  mallory.disconnect();
  oscar.disconnect();
  world.completed(id, 4);
}

}  // namespace
}  // namespace skerry::test
