#include "tests/bench/fleet/operator.h"

#include <chrono>
#include <cstdlib>
#include <string_view>
#include <thread>

#include <nlohmann/json.hpp>

namespace skerry::bench {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxAnswer = 256u << 20;

/// A 64-bit number as protobuf's JSON writes it: a string.
std::uint64_t number(const json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return 0;
  if (found->is_string()) return std::strtoull(found->get<std::string>().c_str(), nullptr, 10);
  return found->is_number() ? found->get<std::uint64_t>() : 0;
}

std::string text(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

Result<json> parse(const std::string& body) {
  json parsed = json::parse(body, nullptr, false);
  if (!parsed.is_object()) return internal_error("the coordinator's answer is not a JSON object");
  return parsed;
}

Code code_of(int status) {
  switch (status) {
    case 400: return Code::kInvalidArgument;
    case 401: return Code::kUnauthenticated;
    case 403: return Code::kPermissionDenied;
    case 404: return Code::kNotFound;
    case 409: return Code::kAlreadyExists;
    case 429: return Code::kResourceExhausted;
    case 503: return Code::kUnavailable;
    default: return Code::kInternal;
  }
}

}  // namespace

Result<Operator> Operator::open(const std::string& directory) {
  SKERRY_ASSIGN(Profile profile, load_profile(directory));
  HttpOptions options;
  options.ca_pem = profile.ca_pem;
  options.certificate_path = profile.certificate_path();
  options.key_path = profile.key_path();
  return Operator(std::move(profile), std::move(options));
}

Result<std::string> Operator::ask(const std::string& method, const std::string& path, std::string body) {
  HttpRequest request;
  request.method = method;
  request.url = "https://" + profile_.address + path;
  request.body = std::move(body);
  request.max_body = kMaxAnswer;
  SKERRY_ASSIGN(HttpResponse response, http_.send(request));
  if (response.status == 200) return std::move(response.body);
  return Error{code_of(response.status), method + " " + path + " is answered " + std::to_string(response.status) + ": " + response.body,
               response.status == 429 || response.status == 503};
}

Result<std::string> Operator::invite(const std::string& node) {
  SKERRY_ASSIGN(const std::string body, ask("POST", "/api/v1/members/invite", json{{"role", "node"}, {"name", node}}.dump()));
  SKERRY_ASSIGN(const json answer, parse(body));
  return text(answer, "token");
}

Result<std::string> Operator::submit(const std::string& spec_toml) {
  SKERRY_ASSIGN(const std::string body, ask("POST", "/api/v1/runs", json{{"spec_toml", spec_toml}}.dump()));
  SKERRY_ASSIGN(const json answer, parse(body));
  return text(answer, "run_id");
}

Result<RunState> Operator::run(const std::string& run_id) {
  SKERRY_ASSIGN(const std::string body, ask("GET", "/api/v1/runs/" + run_id));
  SKERRY_ASSIGN(const json answer, parse(body));
  const json summary = answer.value("summary", json::object());
  RunState state{text(summary, "status"), text(summary, "status_reason"), number(summary, "round"), 0};
  const json discarded = answer.value("discarded", json::object());
  for (const auto& [reason, count] : discarded.items()) state.discarded += number(discarded, reason.c_str());
  return state;
}

Result<RunState> Operator::wait(const std::string& run_id, std::uint64_t timeout_ms, std::uint64_t poll_ms) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    SKERRY_ASSIGN(RunState state, run(run_id));
    if (state.over()) return state;
    if (std::chrono::steady_clock::now() >= end)
      return Error{Code::kDeadlineExceeded, "run " + run_id + " is still " + state.status + " at round " + std::to_string(state.round) +
                                                " after " + std::to_string(timeout_ms / 1000) + " s", true};
    std::this_thread::sleep_for(std::chrono::milliseconds(poll_ms));
  }
}

Result<std::vector<ExchangeRow>> Operator::exchanges(const std::string& run_id) {
  SKERRY_ASSIGN(const std::string body, ask("GET", "/api/v1/runs/" + run_id + "/metrics"));
  SKERRY_ASSIGN(const json answer, parse(body));
  std::vector<ExchangeRow> rows;
  for (const json& row : answer.value("rows", json::array())) {
    if (text(row, "kind") != "exchange") continue;
    ExchangeRow exchange{number(row, "exchange"), number(row, "time_ms"), number(row, "updates"), 0};
    for (const json& metric : row.value("metrics", json::array()))
      if (text(metric, "name") == "reduce_seconds") exchange.reduce_seconds = metric.value("value", 0.0);
    rows.push_back(exchange);
  }
  return rows;
}

Result<std::uint64_t> Operator::nodes_connected() {
  SKERRY_ASSIGN(const std::string body, ask("GET", "/api/v1/status"));
  SKERRY_ASSIGN(const json answer, parse(body));
  return number(answer, "nodes_connected");
}

Result<double> Operator::metric(const std::string& name) {
  SKERRY_ASSIGN(const std::string body, ask("GET", "/metrics"));
  double sum = 0;
  std::string_view rest = body;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (!line.starts_with(name) || line.size() == name.size()) continue;
    if (line[name.size()] != ' ' && line[name.size()] != '{') continue;
    const auto space = line.rfind(' ');
    sum += std::strtod(std::string(line.substr(space + 1)).c_str(), nullptr);
  }
  return sum;
}

}  // namespace skerry::bench
