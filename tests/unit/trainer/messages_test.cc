// The trainer's lines: what is understood, and what is said where one is not.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "client/trainer/line_channel.h"
#include "client/trainer/messages.h"
#include "client/trainer/options.h"

using namespace skerry;
using namespace skerry::trainer;
using nlohmann::json;

namespace {

std::string refusal(const std::string& line) {
  const ParsedLine parsed = parse_request(line);
  REQUIRE_FALSE(parsed.request.ok());
  CHECK(parsed.request.error().code == Code::kInvalidArgument);
  return parsed.request.error().message;
}

}  // namespace

TEST_CASE("the train line of the protocol's page is understood") {
  const ParsedLine parsed = parse_request(
      R"({"type":"train","task":"t-1","read":{"all":{"path":"/w/all-7.safetensors","version":7}},)"
      R"("write":{"all":"/w/out.safetensors"},"steps":50,"epochs":0,"seed":18446744073709551615,"first_step":350,)"
      R"("progress_ms":500,"after":"t-0","emit":[{"fragment":"f0","at_step":25,"exchange":7,"path":"/w/f0","base_path":"/w/b"}],)"
      R"("merge":[{"fragment":"f0","exchange":6,"at_step":30,"rule":"lerp","alpha":0.25,"on_late":"on-arrival"}],"later":[1]})");
  REQUIRE(parsed.request.ok());
  const auto& train = std::get<TrainRequest>(*parsed.request);
  CHECK(train.task == "t-1");
  CHECK(train.read.at("all").path == "/w/all-7.safetensors");
  CHECK(train.read.at("all").version == 7);
  CHECK(train.write.at("all") == "/w/out.safetensors");
  CHECK(train.steps == 50);
  CHECK(train.seed == ~std::uint64_t{0});
  CHECK(train.first_step == 350);
  CHECK(train.checkpoint);
  REQUIRE(train.emit.size() == 1);
  CHECK(train.emit[0].at_step == 25);
  CHECK(train.emit[0].exchange == 7);
  CHECK(train.emit[0].base_path == "/w/b");
  CHECK(train.after == "t-0");
  REQUIRE(train.merge.size() == 1);
  CHECK(train.merge[0].rule == MergeRule::kLerp);
  CHECK(train.merge[0].exchange == 6);
  CHECK(train.merge[0].alpha == 0.25);
  CHECK_FALSE(train.merge[0].block);
}

TEST_CASE("a number that a writer printed with a fraction of zero is still whole") {
  const ParsedLine parsed = parse_request(R"({"type":"train","task":"t","steps":50.0})");
  REQUIRE(parsed.request.ok());
  CHECK(std::get<TrainRequest>(*parsed.request).steps == 50);
}

TEST_CASE("a line that is wrong is refused with the member, its value and what is allowed") {
  CHECK(refusal("nonsense").find("not a JSON object") != std::string::npos);
  CHECK(refusal("[1,2]").find("not a JSON object") != std::string::npos);
  CHECK(refusal("{}") == "member \"type\" is missing");
  CHECK(refusal(R"({"type":7})") == "member \"type\" is 7, must be a text");
  CHECK(refusal(R"({"type":"dance"})").find("\"dance\", must be open, train") != std::string::npos);
  CHECK(refusal(R"({"type":"train"})") == "member \"task\" is missing");
  CHECK(refusal(R"({"type":"train","task":"t"})").find("both 0") != std::string::npos);
  CHECK(refusal(R"({"type":"train","task":"t","steps":-1})").find("\"steps\" is -1") != std::string::npos);
  CHECK(refusal(R"({"type":"train","task":"t","steps":1.5})").find("whole number") != std::string::npos);
  CHECK(refusal(R"({"type":"train","task":"t","epochs":1e99})").find("\"epochs\"") != std::string::npos);
  CHECK(refusal(R"({"type":"train","task":"t","steps":1,"read":{"all":"/p"}})").find("\"read\"") != std::string::npos);
  CHECK(refusal(R"({"type":"train","task":"t","steps":1,"write":{"all":7}})").find("\"write\"") != std::string::npos);
  CHECK(refusal(R"({"type":"train","task":"t","steps":1,"emit":[{"fragment":"f","at_step":0,"path":"p"}]})")
            .find("count from 1") != std::string::npos);
  CHECK(refusal(R"({"type":"train","task":"t","steps":1,"merge":[{"fragment":"f","rule":"guess"}]})")
            .find("replace, lerp or eager") != std::string::npos);
  CHECK(refusal(R"({"type":"open","work_dir":"w","state_dir":"s","threads":0,"model":{},"training":{},"data":{}})")
            .find("\"threads\" is 0") != std::string::npos);
  CHECK(refusal(R"({"type":"open","work_dir":"w","state_dir":"s","model":[],"training":{},"data":{}})") ==
        "member \"model\" is [], must be an object");
  CHECK(refusal(R"({"type":"generate","task":"t","tokens":1000000})").find("\"tokens\"") != std::string::npos);
}

TEST_CASE("the task of a refused line is still known, so that its sender hears of it") {
  CHECK(parse_request(R"({"type":"train","task":"t-9","steps":"many"})").task == "t-9");
  CHECK(parse_request(std::string(100000, '[')).task.empty());
}

TEST_CASE("bytes that are not UTF-8 still make a line that is JSON") {
  const json line = json::parse(generated_line("t", "caf\xE9"));
  CHECK(line["text"] == "caf\xEF\xBF\xBD");
}

TEST_CASE("lines come whole however they were cut on the way, and an overlong one does not fill the memory") {
  int pipe_ends[2];
  REQUIRE(::pipe(pipe_ends) == 0);
  LineChannel channel(pipe_ends[0], -1);
  CHECK_FALSE(channel.poll().has_value());
  REQUIRE(::write(pipe_ends[1], "{\"a\"", 4) == 4);
  CHECK_FALSE(channel.poll().has_value());
  REQUIRE(::write(pipe_ends[1], ":1}\r\n\n{\"b\":2}\n{\"c", 16) == 16);
  CHECK(channel.poll() == "{\"a\":1}");
  CHECK(channel.wait() == "{\"b\":2}");
  CHECK_FALSE(channel.poll().has_value());
  CHECK_FALSE(channel.ended());
  ::close(pipe_ends[1]);
  CHECK_FALSE(channel.wait().has_value());
  CHECK(channel.ended());
  ::close(pipe_ends[0]);
}

TEST_CASE("a training section has the defaults of the protocol's page") {
  const auto options = parse_training(R"({"learning_rate":0.1})");
  REQUIRE(options.ok());
  CHECK(options->optimizer.kind == OptimizerKind::kAdamW);
  CHECK(options->optimizer.beta2 == 0.999);
  CHECK(options->batch == 32);
  CHECK(options->clip_norm == 0);
  CHECK(options->keep_optimizer_state);
  CHECK_FALSE(options->loss.has_value());
}

TEST_CASE("a training section that is wrong is refused with its member") {
  const auto message = [](const char* section) { return parse_training(section).error().message; };
  CHECK(message("{}") == "training: member \"learning_rate\" is missing");
  CHECK(message(R"({"learning_rate":-1})").find("\"learning_rate\" is -1") != std::string::npos);
  CHECK(message(R"({"learning_rate":1,"optimizer":"lion"})").find("sgd, adam, adamw") != std::string::npos);
  CHECK(message(R"({"learning_rate":1,"momentum":1.0})").find("\"momentum\" is 1.0") != std::string::npos);
  CHECK(message(R"({"learning_rate":1,"optimizer":"sgd","nesterov":true})").find("momentum") != std::string::npos);
  CHECK(message(R"({"learning_rate":1,"schedule":"cosine"})").find("schedule_steps") != std::string::npos);
  CHECK(message(R"({"learning_rate":1,"schedule":"wsd","schedule_steps":9,"decay_steps":10})").find("1 … schedule_steps (9)") !=
        std::string::npos);
  CHECK(message(R"({"learning_rate":1,"batch":4,"accumulate":5})").find("1 … batch (4)") != std::string::npos);
  CHECK(message(R"({"learning_rate":1,"precision":"f16"})").find("one of f32, bf16") != std::string::npos);
  CHECK(message(R"({"learning_rate":1,"batch":0})").find("\"batch\" is 0") != std::string::npos);
  CHECK(message("7").find("not a JSON object") != std::string::npos);
}

TEST_CASE("the learning rate warms up, falls and stays at its final fraction") {
  ScheduleOptions schedule{ScheduleKind::kLinear, 1.0, 110, 10, 0.1};
  CHECK(learning_rate_at(schedule, 0) == Approx(0.1));
  CHECK(learning_rate_at(schedule, 9) == Approx(1.0));
  CHECK(learning_rate_at(schedule, 10) == Approx(1.0));
  CHECK(learning_rate_at(schedule, 60) == Approx(0.55));
  CHECK(learning_rate_at(schedule, 110) == Approx(0.1));
  CHECK(learning_rate_at(schedule, 5000) == Approx(0.1));
  schedule.kind = ScheduleKind::kCosine;
  CHECK(learning_rate_at(schedule, 60) == Approx(0.55));
  CHECK(learning_rate_at(schedule, 35) == Approx(0.1 + 0.9 * 0.5 * (1 + std::cos(0.25 * 3.14159265358979))));
  schedule.kind = ScheduleKind::kConstant;
  CHECK(learning_rate_at(schedule, 5000) == 1.0);
  // Warm-up to 10, the peak until 90, then down by steps of 0.9/20.
  schedule = {ScheduleKind::kWsd, 1.0, 110, 10, 0.1, 20};
  CHECK(learning_rate_at(schedule, 4) == Approx(0.5));
  CHECK(learning_rate_at(schedule, 10) == 1.0);
  CHECK(learning_rate_at(schedule, 90) == 1.0);
  CHECK(learning_rate_at(schedule, 95) == Approx(0.1 + 0.9 * 0.75));
  CHECK(learning_rate_at(schedule, 109) == Approx(0.145));
  CHECK(learning_rate_at(schedule, 110) == Approx(0.1));
  // A warm-up longer than the schedule ends at the final fraction, not in a division by zero.
  CHECK(learning_rate_at({ScheduleKind::kLinear, 1.0, 5, 10, 0.5}, 10) == Approx(0.5));
}
