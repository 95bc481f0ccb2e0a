#include "server/coordinator/update_check.h"

#include <catch2/catch.hpp>

#include <nlohmann/json.hpp>

#include <limits>

#include "common/codec/compression.h"
#include "common/crypto/content_id.h"
#include "common/crypto/keys.h"
#include "common/os/files.h"
#include "server/coordinator/run_plan.h"
#include "strategies/catalogue.h"

namespace skerry::server {
namespace {

constexpr const char* kSpec = R"(
name = "t"
purpose = "test"
strategy = "fedavg"
[model]
architecture = "linear"
inputs = 3
outputs = 2
[data]
kind = "csv"
schema = { features = ["a","b","c"], label = "y", classes = 2 }
[training]
learning_rate = 0.1
steps = 1
epochs = 0
[limits]
metrics = ["train_loss"]
)";

RunPlan plan() { return RunPlan::from_spec(parse_run_spec(kSpec, strategies::spec_catalogue()).value()).value(); }

v1::UpdateBody update_of(const RunPlan& plan) {
  v1::UpdateBody body;
  body.set_task_id("r-1.1-x.1");
  body.set_kind(v1::TASK_TRAIN);
  body.set_spec_hash(plan.spec.hash);
  body.set_node("alder");
  v1::FragmentUpdate& fragment = *body.add_fragments();
  fragment.set_fragment("all");
  fragment.set_encoding("f32");
  fragment.set_base_version(4);
  const std::string bytes(4 * plan.shapes[0].elements, '\0');
  fragment.mutable_data()->set_size(bytes.size());
  fragment.mutable_data()->set_inline_data(bytes);
  fragment.mutable_data()->set_content_id(content_id(bytes));
  return body;
}

Identity identity_of(const PrivateKey& key) { return {Role::kNode, "alder", "harbour", "", 0, key.public_key()}; }

v1::SignedUpdate sign(const v1::UpdateBody& body, const PrivateKey& key) {
  v1::SignedUpdate update;
  update.set_body(body.SerializeAsString());
  update.set_signature(key.sign(std::string("skerry update v1\0", 17) + update.body()).value());
  return update;
}

}  // namespace

TEST_CASE("an update signed by its sender opens") {
  const PrivateKey key = PrivateKey::generate().value();
  const auto body = open_update(sign(update_of(plan()), key), identity_of(key));
  REQUIRE(body.ok());
  CHECK(body->fragments(0).base_version() == 4);
}

TEST_CASE("a changed body, another's key and another's name are each refused") {
  const PrivateKey key = PrivateKey::generate().value();
  v1::SignedUpdate changed = sign(update_of(plan()), key);
  changed.mutable_body()->push_back('\x08');
  CHECK(open_update(changed, identity_of(key)).error().code == Code::kUnauthenticated);
  CHECK(open_update(sign(update_of(plan()), PrivateKey::generate().value()), identity_of(key)).error().code ==
        Code::kUnauthenticated);
  v1::UpdateBody other = update_of(plan());
  other.set_node("birch");
  const auto refused = open_update(sign(other, key), identity_of(key));
  CHECK(refused.error().code == Code::kPermissionDenied);
  CHECK(refused.error().message.find("birch") != std::string::npos);
}

TEST_CASE("payloads of the right shape are found") {
  const RunPlan run = plan();
  v1::UpdateBody body = update_of(run);
  const auto payloads = check_payloads(body, run.spec, run.shapes);
  REQUIRE(payloads.ok());
  REQUIRE(payloads->size() == 1);
  CHECK((*payloads)[0].base_version == 4);
  CHECK((*payloads)[0].inline_data.size() == 32);  // 3 · 2 weights and 2 biases
}

TEST_CASE("updates of the coordinator's own process need no content id, and the same shape") {
  const RunPlan run = plan();
  v1::UpdateBody body = update_of(run);
  body.mutable_fragments(0)->mutable_data()->clear_content_id();
  v1::UpdateBody foreign = body;
  CHECK_FALSE(check_payloads(foreign, run.spec, run.shapes).ok());
  v1::UpdateBody shorter = body;
  shorter.mutable_fragments(0)->mutable_data()->mutable_inline_data()->pop_back();
  CHECK_FALSE(check_payloads(shorter, run.spec, run.shapes, /*own=*/true).ok());
  CHECK(check_payloads(body, run.spec, run.shapes, /*own=*/true).ok());
}

TEST_CASE("each way in which a payload can be wrong has its sentence") {
  const RunPlan run = plan();
  const auto why = [&](const std::function<void(v1::UpdateBody&)>& spoil) {
    v1::UpdateBody body = update_of(run);
    spoil(body);
    const auto checked = check_payloads(body, run.spec, run.shapes);
    REQUIRE_FALSE(checked.ok());
    CHECK(checked.error().code == Code::kInvalidArgument);
    return checked.error().message;
  };
  using Catch::Contains;
  CHECK_THAT(why([](auto& body) { body.set_spec_hash("other"); }), Contains("run spec other"));
  CHECK_THAT(why([](auto& body) { body.clear_fragments(); }), Contains("no fragment"));
  CHECK_THAT(why([](auto& body) { body.mutable_fragments(0)->set_fragment("f9"); }), Contains("f9"));
  CHECK_THAT(why([](auto& body) { *body.add_fragments() = body.fragments(0); }), Contains("twice"));
  CHECK_THAT(why([](auto& body) { body.mutable_fragments(0)->set_encoding("bf16"); }), Contains("bf16"));
  CHECK_THAT(why([](auto& body) { body.mutable_fragments(0)->mutable_data()->set_size(31); }), Contains("31 bytes"));
  CHECK_THAT(why([](auto& body) { body.mutable_fragments(0)->mutable_data()->mutable_inline_data()->pop_back(); }),
             Contains("31 bytes came of 32"));
  CHECK_THAT(why([](auto& body) { (*body.mutable_fragments(0)->mutable_data()->mutable_inline_data())[0] = 'x'; }),
             Contains("not those of content id"));
  CHECK_THAT(why([](auto& body) { body.mutable_fragments(0)->mutable_data()->set_content_id("../../etc/passwd"); }),
             Contains("b2-"));
}

TEST_CASE("what comes compressed in a message takes no more memory than a message without compression") {
  std::string spec = R"(name = "test"
[model]
architecture = "mlp"
inputs = 100
outputs = 2
hidden = [)";
  for (int i = 0; i < 40; ++i) spec += "100,";
  spec += R"(]
[data]
kind = "idx"
schema = { shape = [100], classes = 2 }
[training]
learning_rate = 0.1
steps = 1
[exchange]
compression = "zstd"
fragments = 41
)";
  auto parsed = parse_run_spec(spec, strategies::spec_catalogue());
  if (!parsed.ok()) FAIL(parsed.error().message);
  const RunPlan run = RunPlan::from_spec(std::move(parsed).value()).value();
  const auto update_of_first = [&](std::size_t count) {
    v1::UpdateBody body;
    body.set_kind(v1::TASK_TRAIN);
    body.set_spec_hash(run.spec.hash);
    for (std::size_t i = 0; i < count; ++i) {
      const std::string frame = compressed(as_bytes_of(std::string(4 * run.shapes[i].elements, '\0'))).value();
      v1::FragmentUpdate& fragment = *body.add_fragments();
      fragment.set_fragment(run.shapes[i].name);
      fragment.set_encoding("f32+zstd");
      fragment.mutable_data()->set_size(frame.size());
      fragment.mutable_data()->set_inline_data(frame);
      fragment.mutable_data()->set_content_id(content_id(frame));
    }
    return check_payloads(body, run.spec, run.shapes);
  };
  CHECK(update_of_first(25).ok());
  const auto refused = update_of_first(40);
  REQUIRE_FALSE(refused.ok());
  CHECK_THAT(refused.error().message, Catch::Contains("come to more than 1048576; larger ones must be uploaded"));
}

TEST_CASE("the coordinator has no personal fragment, and an update that carries one is refused") {
  const std::string spec = std::string(kSpec) + R"([exchange]
personal = ["bias"]
)";
  const RunPlan run = RunPlan::from_spec(parse_run_spec(spec, strategies::spec_catalogue()).value()).value();
  REQUIRE(run.shapes.size() == 1);
  CHECK(run.shapes[0].elements == 6);
  v1::UpdateBody body = update_of(run);
  REQUIRE(check_payloads(body, run.spec, run.shapes).ok());
  v1::FragmentUpdate& personal = *body.add_fragments();
  personal = body.fragments(0);
  personal.set_fragment("personal");
  const auto refused = check_payloads(body, run.spec, run.shapes);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message == "fragment 'personal': the model has no fragment of this name");
}

TEST_CASE("a control fragment has its twin's shape, and a frozen one its own") {
  std::string spec = kSpec;
  spec.replace(spec.find("learning_rate"), 0, "optimizer = \"sgd\"\ncontrol_variates = true\n");
  spec += "[exchange]\nfrozen = [\"bias\"]\n";
  const RunPlan run = RunPlan::from_spec(parse_run_spec(spec, strategies::spec_catalogue()).value()).value();
  REQUIRE(run.shapes.size() == 3);
  CHECK(run.shapes[1].name == "all-control");
  CHECK(run.shapes[1].role == FragmentRole::kControl);
  CHECK(run.shapes[1].elements == 6);
  CHECK(run.shapes[1].data_offset == run.shapes[0].data_offset);
  CHECK(run.shapes[2].role == FragmentRole::kFrozen);
  CHECK(run.shapes[2].elements == 2);
}

TEST_CASE("only finite metrics that the spec names are kept") {
  v1::UpdateBody body;
  for (const auto& [name, value] : std::map<std::string, double>{{"train_loss", 0.5}, {"secret", 1.0}}) {
    v1::Metric& metric = *body.add_metrics();
    metric.set_name(name);
    metric.set_value(value);
  }
  const RunPlan run = plan();
  CHECK(allowed_metrics(body, run.spec.limits) == std::map<std::string, double>{{"train_loss", 0.5}});
  body.mutable_metrics(0)->set_value(std::numeric_limits<double>::infinity());
  body.mutable_metrics(1)->set_value(std::numeric_limits<double>::quiet_NaN());
  CHECK(allowed_metrics(body, run.spec.limits).empty());
}

}  // namespace skerry::server
