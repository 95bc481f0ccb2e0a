#include "tests/support/federation.h"

#include <cstdlib>
#include <random>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "common/os/files.h"

namespace skerry::test {
namespace {

using nlohmann::json;

constexpr std::size_t kLogTail = 3000;

void must(const Result<void>& result) {
  if (!result.ok()) throw std::runtime_error(to_string(result.error()));
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

std::string list_text(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) out += (out.empty() ? "\"" : ", \"") + text + "\"";
  return "[" + out + "]";
}

std::string tail(const std::string& text) { return text.size() <= kLogTail ? text : "…" + text.substr(text.size() - kLogTail); }

/// Rows that a line separates, and no two nodes with the same.
std::string table_text(const std::string& node, unsigned rows) {
  std::seed_seq seed(node.begin(), node.end());
  std::mt19937 random(seed);
  const auto uniform = [&random] { return static_cast<double>(random() >> 8) / double{1 << 24} * 2 - 1; };
  std::ostringstream out;
  out << "a,b,c,d,y\n";
  for (unsigned row = 0; row < rows; ++row) {
    const double x[4] = {uniform(), uniform(), uniform(), uniform()};
    for (const double value : x) out << value << ",";
    out << (x[0] + 2 * x[1] - x[2] > 0 ? 1 : 0) << "\n";
  }
  return out.str();
}

std::string policy_text(const NodeOptions& options, const std::vector<std::string>& trainer) {
  std::ostringstream out;
  out << "coordinators = [\"@CA@\"]\nhours = [\"always\"]\n\n[allow]\n"
      << "purposes = " << list_text(options.purposes) << "\n"
      << "architectures = [\"linear\", \"mlp\", \"cnn\", \"resnet\", \"transformer\"]\n"
      << "max_parameters = 100_000_000\n"
      << "metrics = " << list_text(options.metrics) << "\n"
      << "encodings = [\"f32\", \"bf16\", \"f16\", \"int8\", \"int8_block\", \"int4\", \"e3m0\", \"topk2\", \"sign\"]\n"
      << "tokenizers = [\"*\"]\n"
      << "error_messages = \"" << options.error_messages << "\"\n\n"
      << "[[data]]\nset = \"table\"\npurposes = [\"*\"]\n\n"
      << "[limits]\nthreads = " << options.threads << "\ntrainers = 4\n";
  if (options.task_seconds > 0) out << "task_seconds = " << options.task_seconds << "\n";
  out << "\n[privacy]\nminimum_examples = 1\n\n[trainer]\nsandbox = \"" << options.sandbox << "\"\n";
  if (!trainer.empty()) out << "command = " << list_text(trainer) << "\n";
  return out.str();
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) text.replace(at, from.size(), to);
}

}  // namespace

std::string RunText::toml() const {
  return "name = \"" + name + "\"\n" + top + "[model]\n" + model + "[data]\n" + data + "[training]\n" + training + "[participation]\n" +
         participation + "[exchange]\n" + exchange + (aggregation.empty() ? "" : "[aggregation]\n" + aggregation) + (outer.empty() ? "" : "[outer]\n" + outer) + "[evaluation]\n" + evaluation + "[limits]\n" + limits +
         "[stop]\nrounds = " + std::to_string(rounds) + "\n";
}

// ---- nodes

void Node::start() {
  std::vector<std::string> command = {program("skerry-client"), "--home", home_, "run"};
  auto child = Child::start(command);
  if (!child.ok()) throw std::runtime_error(to_string(child.error()));
  daemon_.emplace(std::move(child).value());
}

ExitStatus Node::stop() {
  const ExitStatus status = daemon_->terminate();
  earlier_log_ += daemon_->log();
  daemon_.reset();
  return status;
}

void Node::kill() {
  daemon_->kill();
  earlier_log_ += daemon_->log();
  daemon_.reset();
}

std::string Node::log() const { return earlier_log_ + (daemon_ ? daemon_->log() : ""); }

bool Node::wait_for_log(const std::string& text, std::int64_t timeout_ms) const {
  return eventually([&] { return log().find(text) != std::string::npos; }, timeout_ms);
}

Finished Node::command(std::vector<std::string> words) const {
  std::vector<std::string> command = {program("skerry-client"), "--home", home_};
  command.insert(command.end(), words.begin(), words.end());
  return run_program(command);
}

json Node::status() const {
  const Finished finished = command({"status", "--json"});
  return json::parse(finished.out, nullptr, /*allow_exceptions=*/false);
}

void Node::script(const json& script) const { must(write_file_atomic(script_path_, script.dump(), 0644)); }

// ---- the coordinator

Federation::Federation(ServerOptions options) : port_(free_port()), options_(std::move(options)) {
  if (options_.init) {
    options_.init(server_home(), address());
  } else {
    const Finished made = run_program({program("skerry-server"), "init", "--home", server_home(), "--address", address(), "--listen", "127.0.0.1"});
    if (!made.ok()) throw std::runtime_error("skerry-server init failed: " + made.err);
  }
  configure_server(options_);
  start_server();
}

Federation::~Federation() {
  // Daemons first: they should not spend their last moments with looking for a coordinator.
  nodes_.clear();
  server_.reset();
}

void Federation::configure_server(ServerOptions options) {
  options_ = std::move(options);
  must(write_file_atomic(server_home() + "/server.toml",
                         "federation = \"skerry\"\nlisten = \"127.0.0.1\"\nport = " + std::to_string(port_) + "\naddress = \"" + address() +
                             "\"\nthreads = " + std::to_string(options_.threads) + "\nheartbeat_ms = " + std::to_string(options_.heartbeat_ms) + "\n" + options_.plugins,
                         0600));
}

void Federation::start_server() {
  const std::string ready = directory_ / "ready";
  (void)remove_file(ready).ok();
  auto child = Child::start({program("skerry-server"), "run", "--home", server_home(), "--ready-file", ready});
  if (!child.ok()) throw std::runtime_error(to_string(child.error()));
  server_.emplace(std::move(child).value());
  if (!eventually([&] { return path_exists(ready) || !server_->running(); }, 20'000) || !path_exists(ready)) fail("the coordinator does not start");
}

void Federation::kill_server() {
  server_->kill();
  earlier_log_ += server_->log();
  server_.reset();
}

ExitStatus Federation::stop_server() {
  const ExitStatus status = server_->terminate();
  earlier_log_ += server_->log();
  server_.reset();
  return status;
}

void Federation::reconnect() {
  for (const auto& [name, node] : nodes_)
    if (node->running()) (void)node->command({"resume"});
  for (const auto& [name, node] : nodes_)
    if (node->running()) wait_for_node(name);
}

std::string Federation::server_log() const { return earlier_log_ + (server_ ? server_->log() : ""); }

bool Federation::wait_for_server_log(const std::string& text, std::int64_t timeout_ms) const {
  return eventually([&] { return server_log().find(text) != std::string::npos; }, timeout_ms);
}

double Federation::metric(const std::string& name, const std::string& labels) {
  const Finished answer =
      run_program({"/usr/bin/curl", "-sS", "--fail", "--cacert", operator_profile() + "/ca.crt", "--cert", operator_profile() + "/cert.pem", "--key",
                   operator_profile() + "/key.pem", "https://" + address() + "/metrics"});
  if (!answer.ok()) fail("/metrics: " + answer.err);
  std::istringstream lines(answer.out);
  double sum = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name) || (line[name.size()] != '{' && line[name.size()] != ' ') || line.find(labels) == std::string::npos) continue;
    sum += std::strtod(line.c_str() + line.rfind(' '), nullptr);
  }
  return sum;
}

// ---- the operator

Finished Federation::skerry(std::vector<std::string> words, std::int64_t timeout_ms) const {
  std::vector<std::string> command = {program("skerry"), "--profile", operator_profile()};
  command.insert(command.end(), words.begin(), words.end());
  return run_program(command, {}, {}, timeout_ms);
}

json Federation::ask(std::vector<std::string> words) const {
  std::vector<std::string> with_json = words;
  with_json.push_back("--json");
  const Finished finished = skerry(with_json);
  if (!finished.ok()) fail("skerry " + joined(words) + ": " + finished.err);
  json answer = json::parse(finished.out, nullptr, /*allow_exceptions=*/false);
  if (answer.is_discarded()) fail("skerry " + joined(words) + " printed no JSON: " + finished.out);
  return answer;
}

std::string Federation::invite(const std::string& node) const { return ask({"node", "invite", node}).at("token"); }

// ---- nodes

Node& Federation::add_node(const std::string& name, NodeOptions options) {
  auto owned = std::make_unique<Node>();
  Node& node = *owned;
  node.name_ = name;
  node.home_ = directory_ / name;
  node.script_path_ = directory_ / (name + ".script.json");
  nodes_[name] = std::move(owned);
  std::vector<std::string> join = {"join", invite(name)};
  if (!options.proxy.empty()) join.insert(join.end(), {"--proxy", options.proxy});
  const Finished joined_in = node.command(join);
  if (!joined_in.ok()) fail("node " + name + " cannot join: " + joined_in.err);

  std::string path = options.path;
  if (path.empty()) {
    path = directory_ / (name + ".csv");
    must(write_file_atomic(path, table_text(name, options.rows), 0644));
  }
  std::vector<std::string> add = {"data", "add", "table", "--kind", options.kind, "--path", path, "--holdout", std::to_string(options.holdout)};
  if (!options.indices.empty()) add.insert(add.end(), {"--indices", options.indices});
  const Finished added = node.command(add);
  if (!added.ok()) fail("node " + name + " cannot add its data: " + added.err);

  std::vector<std::string> trainer = options.trainer;
  const char* source = std::getenv("SKERRY_SOURCE");
  if (options.scripted)
    trainer = {"/usr/bin/python3", std::string(source != nullptr ? source : ".") + "/tests/support/scripted_trainer.py", node.script_path_};
  std::string policy = options.policy.empty() ? policy_text(options, trainer) : options.policy;
  const auto written = read_file(node.home_ + "/policy.toml", 1 << 20);
  if (!written.ok()) fail("join wrote no policy: " + to_string(written.error()));
  const std::size_t begin = written->find("coordinators = [\"") + 17;
  replace_all(policy, "@CA@", written->substr(begin, 64));
  must(write_file_atomic(node.home_ + "/policy.toml", policy, 0600));
  if (options.start) {
    node.start();
    wait_for_node(name);
  }
  return node;
}

Node& Federation::node(const std::string& name) { return *nodes_.at(name); }

Node& Federation::adopt_home(const std::string& name, const std::string& home, const Node& like) {
  auto node = std::make_unique<Node>();
  node->name_ = name;
  node->home_ = home;
  node->script_path_ = like.script_path_;
  return *(nodes_[name] = std::move(node));
}

std::string Federation::node_state(const std::string& name) const {
  const json members = ask({"node", "list"});
  for (const json& member : members.value("members", json::array()))
    if (member.value("name", "") == name) return member.value("state", "");
  return "";
}

void Federation::wait_for_node(const std::string& name, const std::string& state, std::int64_t timeout_ms) {
  if (!eventually([&] { return node_state(name) == state; }, timeout_ms)) fail("node " + name + " is " + node_state(name) + ", not " + state);
}

// ---- runs

std::string Federation::spec_file(const RunText& run) const {
  const std::string path = directory_ / ("run-" + run.name + ".toml");
  must(write_file_atomic(path, run.toml(), 0644));
  return path;
}

std::string Federation::submit(const RunText& run) { return ask({"run", "submit", spec_file(run)}).at("run_id"); }

json Federation::show(const std::string& run) const { return ask({"run", "show", run}); }

std::string Federation::status_of(const std::string& run) const { return show(run).at("summary").at("status"); }

json Federation::wait_for(const std::string& run, const std::string& what, const std::function<bool(const json&)>& condition, std::int64_t timeout_ms) {
  json detail;
  if (!eventually(
          [&] {
            detail = show(run);
            return condition(detail);
          },
          timeout_ms)) {
    detail.erase("spec_json");
    fail("waited in vain for run " + run + ": " + what + "\n" + detail.dump(1));
  }
  return detail;
}

json Federation::wait_for_status(const std::string& run, const std::string& status, std::int64_t timeout_ms) {
  const json detail = wait_for(
      run, "status " + status,
      [&](const json& now) {
        const std::string is = now.at("summary").at("status");
        return is == status || is == "completed" || is == "failed" || is == "stopped";
      },
      timeout_ms);
  const std::string is = detail.at("summary").at("status");
  if (is != status) fail("run " + run + " is " + is + " (" + detail.at("summary").value("status_reason", "") + "), not " + status);
  return detail;
}

std::map<std::string, std::string> Federation::final_model(const std::string& run) const {
  std::map<std::string, std::string> ids;
  const json versions = ask({"model", "list", run});
  for (const json& version : versions.at("latest"))
    ids[version.at("fragment")] = version.at("whole").at("content_id");
  return ids;
}

std::vector<double> Federation::metric_rows(const std::string& run, const std::string& kind, const std::string& metric) const {
  std::vector<double> values;
  const json metrics = ask({"run", "metrics", run});
  for (const json& row : metrics.value("rows", json::array())) {
    if (row.at("kind") != kind || !row.value("node", "").empty()) continue;
    for (const json& one : row.at("metrics"))
      if (one.at("name") == metric) values.push_back(one.at("value"));
  }
  return values;
}

json Federation::participant(const json& detail, const std::string& node) {
  for (const json& one : detail.value("participants", json::array()))
    if (one.value("node", "") == node) return one;
  return nullptr;
}

std::uint64_t Federation::number(const json& value) {
  return value.is_string() ? std::strtoull(value.get<std::string>().c_str(), nullptr, 10) : value.is_number() ? value.get<std::uint64_t>() : 0;
}

std::string Federation::logs() const {
  std::string text = "---- coordinator\n" + tail(server_log());
  for (const auto& [name, node] : nodes_) text += "\n---- node " + name + "\n" + tail(node->log());
  return text;
}

void Federation::fail(const std::string& what) const { throw std::runtime_error(what + "\n" + logs()); }

}  // namespace skerry::test
