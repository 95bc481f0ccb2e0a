#include "server/web/http_api.h"

#include <google/protobuf/util/json_util.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <future>
#include <memory>
#include <utility>

namespace skerry::server {
namespace {

// The coordinator answers on its own thread; a request's thread waits for it.
template <typename T>
Result<T> wait_for(const std::function<void(Coordinator::Done<T>)>& ask) {
  auto promise = std::make_shared<std::promise<Result<T>>>();
  std::future<Result<T>> answer = promise->get_future();
  ask([promise](Result<T> result) { promise->set_value(std::move(result)); });
  promise.reset();
  try {
    return answer.get();
  } catch (const std::future_error&) {
    return unavailable("the coordinator is stopping; try again soon");
  }
}

template <typename T>
HttpResponse respond(const Result<T>& result) {
  if (!result.ok()) return HttpResponse::error(result.error());
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(*result, &json, options);
  if (!status.ok()) return HttpResponse::error(internal_error("the answer could not be written as JSON: " + status.ToString()));
  return HttpResponse::text(std::move(json), "application/json");
}

template <typename T>
Result<T> parse(const HttpRequest& request) {
  T message;
  const auto status = google::protobuf::util::JsonStringToMessage(request.body, &message);
  if (!status.ok()) return invalid_argument("the body is not the expected JSON: " + status.ToString());
  return message;
}

std::string who(const HttpRequest& request) {
  return request.identity ? std::string(role_name(request.identity->role)) + "/" + request.identity->name : "anonymous";
}

HttpResponse enrolment(const HttpApiParts& parts, const HttpRequest& request, const Result<Members::Answer>& answer) {
  if (answer.ok()) {
    const auto& enrolment = answer->enrolment;
    spdlog::info("{} '{}' at {} has a new certificate", role_name(enrolment.role), enrolment.name, request.peer_address);
    return HttpResponse::text(answer->json, "application/json");
  }
  parts.metrics.counter("skerry_enrolments_refused_total", "Requests for a certificate that were refused", {{"code", std::string(code_name(answer.error().code))}}).add();
  parts.gate.tell(with_context(answer.error(), request.path), request.peer_address);
  return HttpResponse::error(answer.error());
}

void add_public_routes(HttpRouter& router, const HttpApiParts& parts) {
  router.add("GET", "/healthz", [](const HttpRequest&) { return HttpResponse::text("ok\n"); });
  router.add("GET", "/metrics", [parts](const HttpRequest&) {
    return HttpResponse::text(parts.metrics.prometheus_text(), std::string(kPrometheusContentType));
  });
  router.add("GET", "/api/v1/ca", [parts](const HttpRequest&) {
    return HttpResponse::text(parts.authority.ca_pem(), "application/x-pem-file");
  });
  router.add("GET", "/api/v1/whoami", [](const HttpRequest& request) {
    if (!request.identity) return HttpResponse::json({{"role", "anonymous"}, {"reason", request.anonymous_reason}});
    return HttpResponse::json({{"role", std::string(role_name(request.identity->role))},
                               {"name", request.identity->name},
                               {"federation", request.identity->federation},
                               {"expires_ms", request.identity->expires_ms}});
  });
  router.add("POST", "/api/v1/enrol", [parts](const HttpRequest& request) {
    const auto answer = parts.members.answer_enrol(request.body, static_cast<std::int64_t>(parts.clock.unix_ms()));
    if (answer.ok())
      for (const std::string& thumbprint : answer->enrolment.replaced) parts.coordinator.replaced(thumbprint);
    return enrolment(parts, request, answer);
  });
  router.add("POST", "/api/v1/renew", [parts](const HttpRequest& request) {
    // The gate accepts a certificate that expired within its grace for this route alone.
    const auto now = static_cast<std::int64_t>(parts.clock.unix_ms());
    if (!request.identity) return HttpResponse::error(unauthenticated(request.anonymous_reason));
    return enrolment(parts, request, parts.members.answer_renew(*request.identity, request.body, now));
  });
}

nlohmann::json to_json(const strategies::Value& value) {
  return std::visit([](const auto& known) { return nlohmann::json(known); }, value);
}

nlohmann::json to_json(const strategies::PartInfo& rule) {
  nlohmann::json parameters = nlohmann::json::array();
  for (const strategies::ParameterInfo& parameter : rule.parameters)
    parameters.push_back({{"name", parameter.name}, {"meaning", parameter.meaning}, {"default", to_json(parameter.fallback)}});
  return {{"name", rule.name}, {"meaning", rule.meaning}, {"parameters", std::move(parameters)}};
}

void add_operator_routes(HttpRouter& router, Coordinator& coordinator) {
  router.add("GET", "/api/v1/status", [&coordinator](const HttpRequest&) {
    return respond(wait_for<v1::CoordinatorStatus>([&](auto done) { coordinator.status(done); }));
  });
  router.add("GET", "/api/v1/rules", [&coordinator](const HttpRequest&) {
    nlohmann::json rules = nlohmann::json::array();
    for (const strategies::PartInfo& rule : coordinator.rules().infos()) rules.push_back(to_json(rule));
    return HttpResponse::json({{"rules", std::move(rules)}});
  });
  router.add("GET", "/api/v1/runs", [&coordinator](const HttpRequest&) {
    return respond(wait_for<v1::ListRunsReply>([&](auto done) { coordinator.list_runs(done); }));
  });
  router.add("POST", "/api/v1/runs", [&coordinator](const HttpRequest& request) {
    auto submission = parse<v1::SubmitRunRequest>(request);
    if (!submission.ok()) return HttpResponse::error(submission.error());
    return respond(wait_for<v1::SubmitRunReply>([&](auto done) { coordinator.submit(*submission, who(request), done); }));
  }, {.max_body_bytes = 256 * 1024});
  router.add("GET", "/api/v1/runs/{run}", [&coordinator](const HttpRequest& request) {
    return respond(wait_for<v1::RunDetail>([&](auto done) { coordinator.get_run(std::string(request.param("run")), done); }));
  });
  router.add("POST", "/api/v1/runs/{run}/{action}", [&coordinator](const HttpRequest& request) {
    v1::ChangeRunRequest change;
    change.set_run_id(std::string(request.param("run")));
    const std::string_view action = request.param("action");
    if (action == "pause") change.set_action(v1::ChangeRunRequest::PAUSE);
    else if (action == "resume") change.set_action(v1::ChangeRunRequest::RESUME);
    else if (action == "stop") change.set_action(v1::ChangeRunRequest::STOP);
    else return HttpResponse::error(not_found("a run can be told to pause, resume or stop, not '" + std::string(action.substr(0, 32)) + "'"));
    return respond(wait_for<v1::RunDetail>([&](auto done) { coordinator.change_run(change, who(request), done); }));
  });
  router.add("GET", "/api/v1/runs/{run}/metrics", [&coordinator](const HttpRequest& request) {
    return respond(wait_for<v1::RunMetrics>([&](auto done) { coordinator.run_metrics(std::string(request.param("run")), done); }));
  });
  router.add("GET", "/api/v1/runs/{run}/versions", [&coordinator](const HttpRequest& request) {
    return respond(wait_for<v1::ListVersionsReply>([&](auto done) { coordinator.list_versions(std::string(request.param("run")), done); }));
  });
  router.add("GET", "/api/v1/members", [&coordinator](const HttpRequest& request) {
    return respond(wait_for<v1::ListMembersReply>([&](auto done) { coordinator.list_members(std::string(request.query_value("role")), done); }));
  });
  router.add("POST", "/api/v1/members/invite", [&coordinator](const HttpRequest& request) {
    auto invitation = parse<v1::InviteMemberRequest>(request);
    if (!invitation.ok()) return HttpResponse::error(invitation.error());
    return respond(wait_for<v1::InviteMemberReply>([&](auto done) { coordinator.invite(*invitation, who(request), done); }));
  });
  router.add("POST", "/api/v1/members/revoke", [&coordinator](const HttpRequest& request) {
    auto revocation = parse<v1::RevokeMemberRequest>(request);
    if (!revocation.ok()) return HttpResponse::error(revocation.error());
    return respond(wait_for<v1::RevokeMemberReply>([&](auto done) { coordinator.revoke(*revocation, who(request), done); }));
  });
}

}  // namespace

HttpRouter make_http_router(HttpApiParts parts) {
  HttpRouter router;
  add_public_routes(router, parts);
  add_operator_routes(router, parts.coordinator);
  return router;
}

}  // namespace skerry::server
