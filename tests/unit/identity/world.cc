#include "tests/unit/identity/world.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/os/files.h"

namespace skerry::test {
namespace {

server::CertificateAuthority make_authority(const std::string& home, const std::string& federation, std::int64_t now_ms) {
  server::InitOptions options;
  options.federation = federation;
  options.hosts = {"localhost", "127.0.0.1"};
  options.address = "localhost:7443";
  options.now_ms = now_ms;
  const auto made = server::init_home(home, options);
  if (!made.ok()) FAIL(made.error().message);
  return *server::CertificateAuthority::open(home);
}

HttpResponse refused(int status, const Error& error) {
  return {status, {}, nlohmann::json{{"error", {{"message", error.message}}}}.dump()};
}

}  // namespace

World::World(const std::string& federation, std::int64_t now)
    : now_ms(now),
      authority(make_authority(home, federation, now)),
      members(*sqlite::Database::open(home + "/skerry.db"), authority, "localhost:7443") {}

std::string World::chain(Role role, std::string_view name, const PrivateKey& key, std::int64_t lifetime_ms) const {
  return authority.issue_member(key.public_key(), role, name, now_ms, lifetime_ms)->chain_pem;
}

std::string World::chain(Role role, std::string_view name) const { return chain(role, name, *PrivateKey::generate()); }

Result<HttpResponse> World::answer(const HttpOptions& options, const HttpRequest& request) {
  requests.push_back(request);
  const std::string path = request.url.substr(request.url.find("/api/"));
  std::string chain;
  if (!options.certificate_path.empty()) chain = *read_file(options.certificate_path, 64 * 1024);
  const auto answered = [&]() -> HttpResponse {
    if (path == "/api/v1/ca") return {200, {}, authority.ca_pem()};
    if (path == "/api/v1/enrol") {
      const auto reply = members.answer_enrol(request.body, now_ms);
      return reply.ok() ? HttpResponse{200, {}, reply->json} : refused(reply.error().code == Code::kUnauthenticated ? 401 : 400, reply.error());
    }
    if (path == "/api/v1/renew") {
      const auto caller = authenticate(chain, authority.anchors(), now_ms, revoked, kRenewalGraceMs);
      if (!caller.ok()) return refused(401, caller.error());
      const auto reply = members.answer_renew(*caller, request.body, now_ms);
      return reply.ok() ? HttpResponse{200, {}, reply->json} : refused(400, reply.error());
    }
    const auto caller = authenticate(chain, authority.anchors(), now_ms, revoked);
    const nlohmann::json who = caller.ok() ? nlohmann::json{{"role", role_name(caller->role)}, {"name", caller->name}}
                                           : nlohmann::json{{"role", "anonymous"}, {"reason", caller.error().message}};
    return {200, {}, who.dump()};
  };
  HttpResponse response = answered();
  if (!date.empty()) response.headers.emplace_back("date", date);
  return response;
}

EnrolOptions World::enrol_options() {
  EnrolOptions options;
  options.now_ms = now_ms;
  options.send = [this](const HttpOptions& http, const HttpRequest& request) { return answer(http, request); };
  return options;
}

bool has(const Error& error, std::string_view part) { return error.message.find(part) != std::string::npos; }

}  // namespace skerry::test
