#include "server/net/access.h"

#include "server/net/http_router.h"
#include "skerry/v1/control.pb.h"
#include "skerry/v1/fleet.pb.h"

#include <catch2/catch.hpp>

#include <set>

using namespace skerry;
using namespace skerry::server;

namespace {

std::set<std::string> rpcs_of(const google::protobuf::FileDescriptor& file) {
  std::set<std::string> names;
  for (int s = 0; s < file.service_count(); ++s) {
    for (int m = 0; m < file.service(s)->method_count(); ++m)
      names.insert("/" + file.service(s)->full_name() + "/" + file.service(s)->method(m)->name());
  }
  return names;
}

bool opens(Access access, Role role) {
  const PrivateKey key = PrivateKey::generate().value();
  const Identity identity{role, "alder", "harbour", "00", 0, key.public_key()};
  return check_access(access, "this", &identity, "").ok();
}

}  // namespace

TEST_CASE("every RPC has an entry in the access table, and every gRPC entry is an RPC") {
  std::set<std::string> rpcs = rpcs_of(*v1::Hello::descriptor()->file());
  rpcs.merge(rpcs_of(*v1::CoordinatorStatus::descriptor()->file()));
  REQUIRE(rpcs.size() >= 12);
  for (const std::string& rpc : rpcs) {
    INFO(rpc);
    CHECK(access_for("GRPC", rpc) != Access::kDenied);
    CHECK(access_for("GRPC", rpc) != Access::kAnyone);
  }
  for (const AccessRule& rule : access_table()) {
    if (rule.method == "GRPC") CHECK(rpcs.count(std::string(rule.pattern)) == 1);
  }
}

TEST_CASE("what has no entry is denied to everybody") {
  CHECK(access_for("GRPC", "/skerry.v1.Control/Format") == Access::kDenied);
  CHECK(access_for("DELETE", "/api/v1/runs/{run}") == Access::kDenied);
  for (const Role role : {Role::kNode, Role::kOperator, Role::kViewer, Role::kServer})
    CHECK_FALSE(opens(Access::kDenied, role));
}

TEST_CASE("no entry stands twice, and HEAD is looked up as GET") {
  std::set<std::pair<std::string, std::string>> seen;
  for (const AccessRule& rule : access_table()) {
    INFO(rule.method << ' ' << rule.pattern);
    CHECK(seen.emplace(rule.method, rule.pattern).second);
  }
  CHECK(access_for("HEAD", "/healthz") == Access::kAnyone);
}

TEST_CASE("only enrolment, health, identity questions and the dashboard's shell are open to strangers") {
  for (const AccessRule& rule : access_table()) {
    if (rule.access != Access::kAnyone) continue;
    const std::string path(rule.pattern);
    INFO(path);
    CHECK((path == "/healthz" || path == "/api/v1/ca" || path == "/api/v1/enrol" || path == "/api/v1/whoami" ||
           path.rfind("/api/", 0) != 0));
  }
}

TEST_CASE("each least role opens to exactly these roles") {
  const auto roles = [](Access access) {
    std::string text;
    if (opens(access, Role::kNode)) text += "node ";
    if (opens(access, Role::kViewer)) text += "viewer ";
    if (opens(access, Role::kOperator)) text += "operator ";
    if (opens(access, Role::kServer)) text += "server ";
    return text;
  };
  CHECK(roles(Access::kNode) == "node ");
  CHECK(roles(Access::kNodeOrOperator) == "node operator ");
  CHECK(roles(Access::kNodeOrViewer) == "node viewer operator ");
  CHECK(roles(Access::kViewer) == "viewer operator ");
  CHECK(roles(Access::kOperator) == "operator ");
  CHECK(roles(Access::kAnyMember) == "node viewer operator ");
}

TEST_CASE("a refusal says what is needed and what is there") {
  const auto anonymous = check_access(Access::kOperator, "GET /x", nullptr, "the certificate expired yesterday");
  REQUIRE_FALSE(anonymous.ok());
  CHECK(anonymous.error().code == Code::kUnauthenticated);
  CHECK(anonymous.error().message == "GET /x needs an operator's certificate: the certificate expired yesterday");

  const PrivateKey key = PrivateKey::generate().value();
  const Identity node{Role::kNode, "alder", "harbour", "00", 0, key.public_key()};
  const auto wrong = check_access(Access::kViewer, "GET /x", &node, "");
  REQUIRE_FALSE(wrong.ok());
  CHECK(wrong.error().code == Code::kPermissionDenied);
  CHECK(wrong.error().message == "GET /x needs a viewer's or an operator's certificate, and 'alder' has the role node");
}

TEST_CASE("a caller's rate fills again with time, and callers do not share it") {
  RateLimiter limiter(10, 2);
  CHECK(limiter.take("alder", 0) == 0);
  CHECK(limiter.take("alder", 0) == 0);
  CHECK(limiter.take("alder", 0) == 101);
  CHECK(limiter.take("birch", 0) == 0);
  CHECK(limiter.take("alder", 100) == 0);
  CHECK(limiter.take("alder", 100) > 0);
  CHECK(limiter.take("alder", 1'000'000) == 0);
  RateLimiter none(0, 0);
  for (int i = 0; i < 100; ++i) CHECK(none.take("alder", 0) == 0);
}

TEST_CASE("a peer's address is read from both of gRPC's spellings") {
  CHECK(address_of_peer("ipv4:192.0.2.7:41234") == "192.0.2.7");
  CHECK(address_of_peer("ipv6:[2001:db8::1]:41234") == "2001:db8::1");
  CHECK(address_of_peer("ipv6:%5B2001:db8::1%5D:41234") == "2001:db8::1");
}
