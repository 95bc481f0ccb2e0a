// Every way in which somebody may fail to prove who they are, over the wire: what the caller reads, with which exit code,
// and what the coordinator's log says. The tests of common/identity have the same failures one by one, without processes.
#include <catch2/catch.hpp>

#include <algorithm>
#include <array>

#include "common/base/encoding_text.h"
#include "common/crypto/keys.h"
#include "common/crypto/x509.h"
#include "common/identity/join_token.h"
#include "common/identity/profile.h"
#include "common/os/clock.h"
#include "common/os/files.h"
#include "common/sqlite/database.h"
#include "server/identity/certificate_authority.h"
#include "server/identity/members.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;
using server::kDayMs;

constexpr int kFailed = 1;
constexpr int kRefused = 3;
constexpr int kNotReached = 4;

std::int64_t now_ms() { return static_cast<std::int64_t>(SystemClock().unix_ms()); }

Finished join(const Federation& federation, const std::string& token, const std::string& home) {
  return run_program({program("skerry-client"), "--home", federation.directory() / home, "join", token});
}

JoinToken opened(const std::string& token) { return parse_join_token(token, 0).value(); }

Finished curl(const Federation& federation, const std::string& home, const std::string& path) {
  std::vector<std::string> command = {"/usr/bin/curl", "-sS", "--cacert", federation.operator_profile() + "/ca.crt"};
  if (!home.empty()) command.insert(command.end(), {"--cert", home + "/cert.pem", "--key", home + "/key.pem"});
  command.insert(command.end(), {"-w", "\n%{http_code}", "https://" + federation.address() + path});
  return run_program(command);
}

/// A certificate made by the federation's own CA as if `ago_ms` before now, put in place of the home's.
void replace_certificate(const Federation& federation, const std::string& home, std::int64_t ago_ms, std::int64_t lifetime_ms) {
  const auto authority = server::CertificateAuthority::open(federation.server_home());
  REQUIRE(authority.ok());
  const auto key = PrivateKey::load(home + "/key.pem");
  REQUIRE(key.ok());
  const auto profile = load_profile(home);
  REQUIRE(profile.ok());
  const auto issued = authority->issue_member(key->public_key(), profile->role, profile->name, now_ms() - ago_ms, lifetime_ms);
  REQUIRE(issued.ok());
  REQUIRE(write_file_atomic(home + "/cert.pem", issued->chain_pem).ok());
}

TEST_CASE("a join token that is wrong, cut, changed, used, expired or of another CA is refused, and both sides say why") {
  Federation federation;
  const std::string token = federation.invite("alder");

  SECTION("joining works once; the second time both sides say when it was used") {
    const Finished first = join(federation, token, "alder");
    INFO(first.err);
    REQUIRE(first.ok());
    CHECK(first.out.find("joined federation skerry as node alder") != std::string::npos);
    const Finished again = join(federation, token, "thief");
    CHECK(again.status.code == kFailed);
    CHECK(again.err.find("used") != std::string::npos);
    CHECK_FALSE(path_exists(federation.directory() / "thief/profile.json"));
    CHECK(federation.wait_for_server_log("used"));
    const Finished home_taken = join(federation, federation.invite("other"), "alder");
    CHECK(home_taken.status.code == kFailed);
    CHECK(home_taken.err.find("alder") != std::string::npos);
  }
  SECTION("a token that was cut or mistyped is noticed before anything is sent") {
    const Finished cut = join(federation, token.substr(0, token.size() - 9), "alder");
    CHECK(cut.status.code == kFailed);
    CHECK(cut.err.find("token") != std::string::npos);
    std::string changed = token;
    changed[30] = changed[30] == 'a' ? 'b' : 'a';
    const Finished mistyped = join(federation, changed, "alder");
    CHECK(mistyped.status.code == kFailed);
    CHECK(mistyped.err.find("token") != std::string::npos);
    CHECK(join(federation, token, "alder").ok());
  }
  SECTION("a token whose secret was changed on purpose is unknown to the coordinator") {
    JoinToken forged = opened(token);
    forged.secret = "AAAA" + forged.secret.substr(4);
    const Finished refused = join(federation, format_join_token(forged), "alder");
    CHECK(refused.status.code != 0);
    CHECK(refused.err.find("token") != std::string::npos);
    CHECK(federation.wait_for_server_log("/api/v1/enrol"));
  }
  SECTION("a token that names another CA is refused by the client, who sends no secret") {
    JoinToken other = opened(token);
    other.ca_fingerprint = std::string(64, 'a');
    const Finished refused = join(federation, format_join_token(other), "alder");
    CHECK(refused.status.code == kRefused);
    CHECK(refused.err.find("CA") != std::string::npos);
    CHECK(join(federation, token, "alder").ok());  // the secret is still good
  }
  SECTION("an expired token is refused by the client, and by the coordinator when the client's date was changed") {
    JoinToken old = opened(token);
    old.expires_ms = now_ms() - 3600'000;
    const Finished early = join(federation, format_join_token(old), "alder");
    CHECK(early.status.code == kFailed);
    CHECK(early.err.find("expired") != std::string::npos);

    // Invited two days ago, for a day.
    federation.stop_server();
    {
      const auto authority = server::CertificateAuthority::open(federation.server_home());
      auto database = sqlite::Database::open(federation.server_home() + "/skerry.db");
      REQUIRE((authority.ok() && database.ok()));
      server::Members members(std::move(database).value(), *authority, federation.address());
      const auto invitation = members.invite(Role::kNode, "birch", kDayMs, now_ms() - 2 * kDayMs);
      REQUIRE(invitation.ok());
      old = opened(invitation->token);
    }
    federation.start_server();
    old.expires_ms = now_ms() + kDayMs;
    const Finished late = join(federation, format_join_token(old), "birch");
    CHECK(late.status.code == kFailed);
    CHECK(late.err.find("expired") != std::string::npos);
    CHECK(federation.wait_for_server_log("expired"));
  }
  SECTION("a newer invitation ends the older one") {
    const std::string newer = federation.invite("alder");
    const Finished refused = join(federation, token, "alder");
    CHECK(refused.status.code == kFailed);
    CHECK(refused.err.find("replaced by a newer one") != std::string::npos);
    CHECK(join(federation, newer, "alder").ok());
  }
  SECTION("no token, no log line and no error message ever quotes the secret") {
    REQUIRE(join(federation, token, "alder").ok());
    const Finished again = join(federation, token, "thief");
    const std::string secret = opened(token).secret;
    CHECK(federation.server_log().find(secret) == std::string::npos);
    CHECK(again.err.find(secret) == std::string::npos);
  }
  SECTION("where nobody listens the client says so, with the exit code for that") {
    federation.stop_server();
    const Finished nobody = join(federation, token, "alder");
    CHECK(nobody.status.code == kNotReached);
    CHECK(nobody.err.find(federation.address()) != std::string::npos);
  }
}

/// A home as `skerry-server init` made it 40 days ago. Its operator's certificate has expired, within the grace.
void init_long_ago(const std::string& home, const std::string& address) {
  server::InitOptions options;
  options.federation = "skerry";
  options.hosts = {"127.0.0.1"};
  options.address = address;
  options.now_ms = now_ms() - 40 * kDayMs;
  REQUIRE(server::init_home(home, options).ok());
}

TEST_CASE("a daemon whose certificate has expired, is missing or comes from another CA is told so in words") {
  Federation federation({.init = init_long_ago});
  Node& alder = federation.add_node("alder", {.scripted = true, .start = false});

  SECTION("expired, beyond the grace for renewal") {
    replace_certificate(federation, alder.home(), 39 * kDayMs, 20 * kDayMs);
    alder.start();
    CHECK(alder.wait_for_log("expired"));
    CHECK(federation.wait_for_server_log("expired"));
    CHECK(federation.node_state("alder") == "offline");
    const json status = alder.status();
    CHECK(status.value("detail", "").find("expired") != std::string::npos);
  }
  SECTION("expired, but within the grace: it renews by itself and works, without anybody's help") {
    replace_certificate(federation, alder.home(), 39 * kDayMs, 34 * kDayMs);
    alder.start();
    CHECK(alder.wait_for_log("the certificate was renewed"));
    federation.wait_for_node("alder");
  }
  SECTION("due for renewal: it renews while it is at work") {
    replace_certificate(federation, alder.home(), 25 * kDayMs, 30 * kDayMs);
    alder.start();
    federation.wait_for_node("alder");
    CHECK(alder.wait_for_log("the certificate was renewed"));
    CHECK(federation.node_state("alder") == "connected");
  }
  SECTION("from the future: one of the two clocks is off, and it says so") {
    replace_certificate(federation, alder.home(), -2 * kDayMs, 30 * kDayMs);
    alder.start();
    CHECK(alder.wait_for_log("clock"));
    CHECK(federation.wait_for_server_log("clock"));
  }
  SECTION("another federation's: neither side talks to the other") {
    Federation other;
    Node& stranger = other.add_node("alder", {.start = false});
    // Its own certificate and CA, but this coordinator's address: the daemon does not trust what answers there.
    auto profile = json::parse(*read_file(stranger.home() + "/profile.json", 4096));
    profile["address"] = federation.address();
    REQUIRE(write_file_atomic(stranger.home() + "/profile.json", profile.dump()).ok());
    stranger.start();
    CHECK(stranger.wait_for_log("no session with the coordinator"));
    const bool told = stranger.wait_for_log("signed by another CA");
    INFO(stranger.log());
    CHECK(told);
    // And a caller who does trust it presents a certificate that this coordinator does not know.
    const Finished call = curl(federation, stranger.home(), "/api/v1/cargo/b2-" + std::string(64, '0'));
    CHECK(call.out.find("401") != std::string::npos);
    CHECK(call.out.find("not signed by") != std::string::npos);
    const Finished who = curl(federation, stranger.home(), "/api/v1/whoami");
    CHECK(json::parse(who.out.substr(0, who.out.rfind('\n'))).at("role") == "anonymous");
  }
  SECTION("missing: anonymous callers reach what is public and nothing else") {
    CHECK(curl(federation, "", "/healthz").out == "ok\n\n200");
    for (const char* path : {"/metrics", "/api/v1/runs", "/api/v1/members", "/api/v1/status"}) {
      CAPTURE(path);
      const Finished answer = curl(federation, "", path);
      CHECK(answer.out.find("\n401") != std::string::npos);
      CHECK(answer.out.find("certificate") != std::string::npos);
    }
    // A home without its certificate cannot even start.
    REQUIRE(remove_file(alder.home() + "/cert.pem").ok());
    const Finished run = alder.command({"run"});
    CHECK(run.status.code == kFailed);
    CHECK(run.err.find("cert.pem") != std::string::npos);
  }
}

TEST_CASE("a node that calls the operator's API is refused, by its own command and by the coordinator, whose log names it") {
  Federation federation;
  Node& alder = federation.add_node("alder", {.start = false});
  const Finished listing = run_program({program("skerry"), "--profile", alder.home(), "run", "list"});
  CHECK(listing.status.code == kRefused);
  CHECK(listing.err.find("is a node's") != std::string::npos);
  const Finished inviting = run_program({program("skerry"), "--profile", alder.home(), "operator", "invite", "friend"});
  CHECK(inviting.status.code == kRefused);
  for (const char* path : {"/metrics", "/api/v1/runs", "/api/v1/members"}) {
    CAPTURE(path);
    const Finished answer = curl(federation, alder.home(), path);
    CHECK(answer.out.find("\n403") != std::string::npos);
    CHECK(answer.out.find("'alder' has the role node") != std::string::npos);
  }
  CHECK(federation.wait_for_server_log("'alder' has the role node"));

  // And a viewer may look, but change nothing.
  const json invitation = federation.ask({"operator", "invite", "auditor", "--viewer"});
  const std::string profile = federation.directory() / "auditor";
  REQUIRE(run_program({program("skerry"), "--profile", profile, "join", invitation.at("token")}).ok());
  CHECK(run_program({program("skerry"), "--profile", profile, "run", "list"}).ok());
  const Finished stopping = run_program({program("skerry"), "--profile", profile, "node", "invite", "friend"});
  CHECK(stopping.status.code == kRefused);
  CHECK(stopping.err.find("'auditor' has the role viewer") != std::string::npos);
}

TEST_CASE("revoking a node ends its live session at once, it is told the reason, and it cannot come back") {
  Federation federation;
  Node& alder = federation.add_node("alder", {.scripted = true});
  federation.add_node("birch", {.scripted = true});
  alder.script({{"task_ms", 10}});
  federation.node("birch").script({{"task_ms", 10}});
  RunText run;
  run.rounds = 100'000;
  run.participation = "start_nodes = 2\nquorum = 1\n";
  const std::string id = federation.submit(run);
  federation.wait_for(id, "round 2", [](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= 2; });

  const json revoked = federation.ask({"node", "revoke", "alder", "--reason", "laptop stolen"});
  CHECK(revoked.at("certificates") == 1);
  CHECK(revoked.at("sessions").get<int>() >= 1);
  CHECK(alder.wait_for_log("laptop stolen", 5'000));
  CHECK(federation.node_state("alder") == "revoked");
  CHECK(federation.wait_for_server_log("laptop stolen"));

  SECTION("the run goes on without it") {
    const auto round = Federation::number(federation.show(id).at("summary").at("round"));
    federation.wait_for(id, "three more rounds", [&](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= round + 3; });
  }
  SECTION("neither a restart of the daemon, nor HTTP, nor the old name opens the door again; also after the coordinator's restart") {
    alder.stop();
    const std::size_t seen = alder.log().size();
    federation.stop_server();
    federation.start_server();
    alder.start();
    CHECK(eventually([&] { return alder.log().find("laptop stolen", seen) != std::string::npos; }));
    CHECK(curl(federation, alder.home(), "/api/v1/whoami").out.find("laptop stolen") != std::string::npos);
    const Finished anew = federation.skerry({"node", "invite", "alder"});
    CHECK(anew.status.code != 0);
    CHECK(anew.err.find("revoked") != std::string::npos);
  }
}

}  // namespace
}  // namespace skerry::test
