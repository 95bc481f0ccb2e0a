#include "tests/bench/figures/world.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include <nlohmann/json.hpp>

#include "common/crypto/x509.h"
#include "common/identity/authenticate.h"
#include "common/os/files.h"
#include "tests/bench/fleet/process_watch.h"

namespace skerry::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kStartMs = 30'000;
constexpr std::int64_t kCommandMs = 60'000;
constexpr unsigned kRows = 200;
constexpr unsigned kFeatures = 99;
constexpr unsigned kClasses = 10;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Asks every 200 µs, which is finer than what is measured.
template <typename Condition>
Result<double> seconds_until(Clock::time_point start, test::Child& child, const std::string& what, Condition condition) {
  while (!condition()) {
    if (seconds_since(start) * 1000 > kStartMs || !child.running())
      return unavailable(what + " is not ready after " + std::to_string(seconds_since(start)) + " s; its log:\n" + child.log());
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return seconds_since(start);
}

Result<void> run_to_end(const std::vector<std::string>& command, std::int64_t timeout_ms = kCommandMs) {
  const test::Finished finished = test::run_program(command, {}, {}, timeout_ms);
  if (finished.ok()) return {};
  return failed_precondition(command[0] + " " + command[1] + (finished.timed_out ? " took too long: " : " failed: ") + finished.err);
}

std::string csv_rows(unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> value(-1, 1);
  std::string text;
  for (unsigned i = 0; i < kFeatures; ++i) text += "x" + std::to_string(i) + ",";
  text += "y\n";
  for (unsigned row = 0; row < kRows; ++row) {
    for (unsigned i = 0; i < kFeatures; ++i) text += std::to_string(value(random)) + ",";
    text += std::to_string(random() % kClasses) + "\n";
  }
  return text;
}

std::string policy_text(const std::string& fingerprint, const std::string& trainer) {
  return "coordinators = [\"" + fingerprint +
         "\"]\n"
         "hours = [\"always\"]\n"
         "[allow]\n"
         "purposes = [\"*\"]\n"
         "architectures = [\"linear\", \"mlp\", \"transformer\"]\n"
         "max_parameters = 1_000_000_000\n"
         "metrics = [\"*\"]\n"
         "encodings = [\"f32\", \"bf16\", \"f16\", \"int8\", \"int8_block\", \"int4\", \"e3m0\", \"topk2\", \"sign\"]\n"
         "error_messages = \"full\"\n"
         "[[data]]\n"
         "set = \"rows\"\n"
         "purposes = [\"*\"]\n"
         "[limits]\n"
         "threads = 1\n"
         "[privacy]\n"
         "minimum_examples = 1\n"
         "[trainer]\n"
         "sandbox = \"none\"\n" +
         (trainer.empty() ? std::string() : "command = [\"" + trainer + "\"]\n");
}

/// As policies name coordinators: hex SHA-256 of the root certificate.
Result<std::string> fingerprint_of(const std::string& ca_pem) {
  SKERRY_ASSIGN(const TrustAnchors anchors, TrustAnchors::from_pem(ca_pem));
  return anchors.roots().front().thumbprint();
}

}  // namespace

Result<std::unique_ptr<World>> World::create(WorldOptions options) {
  SKERRY_TRY(make_directories(options.directory));
  std::unique_ptr<World> world(new World(std::move(options)));
  world->port_ = test::free_port();
  const std::string address = "127.0.0.1:" + std::to_string(world->port_);
  SKERRY_TRY(run_to_end({world->options_.programs + "/skerry-server", "init", "--home", world->server_home(), "--federation", "bench",
                         "--address", address, "--listen", "127.0.0.1"}));
  return world;
}

World::~World() {
  stop_daemons();
  stop_coordinator();
}

Result<double> World::start_coordinator(const std::vector<std::string>& prefix) {
  const std::string ready = options_.directory + "/ready";
  SKERRY_TRY(remove_file(ready));
  std::vector<std::string> command = prefix;
  for (const std::string& word : {options_.programs + "/skerry-server", std::string("run"), std::string("--home"), server_home(),
                                  std::string("--ready-file"), ready, std::string("--measure")})
    command.push_back(word);
  const auto start = Clock::now();
  SKERRY_ASSIGN(test::Child child, test::Child::start(command));
  coordinator_ = std::make_unique<test::Child>(std::move(child));
  return seconds_until(start, *coordinator_, "the coordinator", [&] { return path_exists(ready); });
}

void World::stop_coordinator() {
  if (coordinator_) (void)coordinator_->terminate();
  coordinator_.reset();
}

Result<World::Bare> World::bare_server(unsigned settle_ms) {
  const std::string ready = options_.directory + "/bare-ready";
  SKERRY_TRY(remove_file(ready));
  SpawnOptions options;
  options.command = {options_.programs + "/skerry-bench", "bare-server", "--certificate", server_home() + "/server.crt", "--key", server_home() + "/server.key",
                     "--ready-file", ready};
  options.environment = test::child_environment();
  const auto start = Clock::now();
  SKERRY_ASSIGN(Process process, Process::spawn(options));
  while (!path_exists(ready)) {
    if (process.try_wait() || seconds_since(start) * 1000 > kStartMs) return unavailable("the bare gRPC server did not start");
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  Bare bare{seconds_since(start), 0};
  std::this_thread::sleep_for(std::chrono::milliseconds(settle_ms));
  bare.resident_bytes = memory_of(process.pid()).resident_bytes;
  return bare;
}

Result<nlohmann::json> World::fleet(unsigned clients, const std::string& spec_toml, unsigned seconds) {
  const std::string spec = options_.directory + "/fleet-run.toml";
  const std::string report = options_.directory + "/fleet-report.json";
  SKERRY_TRY(write_file_atomic(spec, spec_toml));
  SKERRY_TRY(remove_file(report));
  const test::Finished finished = test::run_program(
      {options_.programs + "/skerry-bench", "fleet", "--home", options_.directory + "/fleet", "--profile", operator_profile(), "--clients",
       std::to_string(clients), "--submit", spec, "--seconds", std::to_string(seconds), "--watch", std::to_string(coordinator_pid()), "--json", report},
      {}, {}, std::int64_t{1000} * (seconds + 600));
  if (!finished.ok()) return failed_precondition("the fleet of " + std::to_string(clients) + " failed: " + finished.err);
  SKERRY_ASSIGN(const std::string text, read_file(report, 64u << 20));
  nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || json["runs"].empty()) return internal_error("the fleet's report is not understood");
  const auto& run = json["runs"].begin().value();
  if (run["outcome"] != "completed" || json["discarded"] != 0 || json["failures"] != 0)
    return failed_precondition("the fleet's run went wrong: " + text);
  return json;
}

Result<void> World::make_holders(unsigned count) {
  SKERRY_ASSIGN(Operator inviter, open_operator());
  SKERRY_ASSIGN(const std::string fingerprint, fingerprint_of(inviter.profile().ca_pem));
  const std::string client = options_.programs + "/skerry-client";
  for (unsigned i = 0; i < count; ++i) {
    const std::string home = holder_home(i);
    if (has_profile(home)) continue;
    SKERRY_ASSIGN(const std::string token, inviter.invite("holder-" + std::to_string(i)));
    SKERRY_TRY(run_to_end({client, "join", token, "--home", home}));
    SKERRY_TRY(write_file_atomic(home + "/rows.csv", csv_rows(i)));
    SKERRY_TRY(run_to_end({client, "data", "add", "rows", "--kind", "csv", "--path", home + "/rows.csv", "--home", home}));
    SKERRY_TRY(write_file_atomic(home + "/policy.toml", policy_text(fingerprint, options_.trainer)));
  }
  return {};
}

Result<double> World::start_daemon(unsigned index) {
  const auto start = Clock::now();
  SKERRY_ASSIGN(test::Child child, test::Child::start({options_.programs + "/skerry-client", "run", "--home", holder_home(index)}));
  daemons_.push_back(std::move(child));
  test::Child& daemon = daemons_.back();
  return seconds_until(start, daemon, "the daemon", [&] { return daemon.log().find("connected to") != std::string::npos; });
}

Result<void> World::route_holder(unsigned index, int port) const {
  const std::string path = holder_home(index) + "/profile.json";
  SKERRY_ASSIGN(const std::string text, read_file(path, 1u << 16));
  nlohmann::json profile = nlohmann::json::parse(text, nullptr, false);
  if (!profile.is_object()) return internal_error(path + " is not understood");
  profile["address"] = "127.0.0.1:" + std::to_string(port);
  return write_file_atomic(path, profile.dump(2) + "\n", 0600);
}

void World::stop_daemons() {
  for (test::Child& daemon : daemons_) (void)daemon.terminate();
  daemons_.clear();
}

}  // namespace skerry::bench
