#include "server/identity/members.h"

#include <atomic>
#include <thread>

#include <catch2/catch.hpp>

#include "common/identity/join_token.h"
#include "tests/unit/identity/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::test;

namespace {

std::string secret_of(const Invitation& invitation) { return parse_join_token(invitation.token, kNow)->secret; }

std::string request_of(const PrivateKey& key) { return *make_signing_request(key, "x"); }
std::string any_request() { return request_of(*PrivateKey::generate()); }

struct Enrolled {
  Enrolment enrolment;
  Identity identity;
  PrivateKey key;
};

Enrolled enrol(World& world, Role role, const std::string& name) {
  PrivateKey key = *PrivateKey::generate();
  Enrolment enrolment = *world.members.redeem(secret_of(*world.members.invite(role, name, 0, kNow)), request_of(key), kNow);
  Identity identity = *authenticate(enrolment.chain_pem, world.authority.anchors(), kNow, {});
  return {std::move(enrolment), std::move(identity), std::move(key)};
}

}  // namespace

TEST_CASE("an invitation names address, CA and member, and is listed as invited") {
  World world;
  const auto invitation = world.members.invite(Role::kViewer, "gull", 3600'000, kNow);
  REQUIRE(invitation.ok());
  const JoinToken token = *parse_join_token(invitation->token, kNow);
  CHECK(token.address == "localhost:7443");
  CHECK(token.ca_fingerprint == world.authority.root_fingerprint());
  CHECK(token.role == Role::kViewer);
  CHECK(token.name == "gull");
  CHECK(token.expires_ms == kNow + 3600'000);
  const MemberRecord member = *world.members.find(Role::kViewer, "gull");
  CHECK(member.state == MemberRecord::State::kInvited);
  CHECK(member.certificate_expires_ms == kNow + 3600'000);
}

TEST_CASE("invitations keep to names, roles and durations") {
  World world;
  CHECK_FALSE(world.members.invite(Role::kNode, "Bad Name", 0, kNow).ok());
  CHECK_FALSE(world.members.invite(Role::kServer, "alder", 0, kNow).ok());
  CHECK(has(world.members.invite(Role::kNode, "alder", 31 * kDay, kNow).error(), "30 days"));
  CHECK(has(world.members.invite(Role::kNode, "alder", -kDay, kNow).error(), "-1 day"));
  CHECK(world.members.invite(Role::kNode, "alder", 0, kNow)->expires_ms == kNow + kDay);
}

TEST_CASE("the database never holds a secret") {
  World world;
  const std::string secret = secret_of(*world.members.invite(Role::kNode, "alder", 0, kNow));
  sqlite::Database database = *sqlite::Database::open(world.home + "/skerry.db");
  auto row = *database.query("SELECT count(*) FROM invitations WHERE secret_sha256 = ? OR name = ? OR role = ?", secret, secret, secret);
  REQUIRE(*row.next());
  CHECK(row.int64(0) == 0);
}

TEST_CASE("a secret is traded for a certificate once") {
  World world;
  const std::string secret = secret_of(*world.members.invite(Role::kNode, "alder", 0, kNow));
  const auto first = world.members.redeem(secret, any_request(), kNow + 5);
  REQUIRE(first.ok());
  CHECK(first->role == Role::kNode);
  CHECK(first->name == "alder");
  CHECK(first->replaced.empty());
  CHECK(world.members.find(Role::kNode, "alder")->state == MemberRecord::State::kActive);
  const auto second = world.members.redeem(secret, any_request(), kNow + 60'000);
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == Code::kFailedPrecondition);
  CHECK(has(second.error(), "was used on 2027-01-15 08:00:00 UTC"));
}

TEST_CASE("of calls that race for one secret exactly one wins, also through several connections") {
  World world;
  const std::string secret = secret_of(*world.members.invite(Role::kNode, "alder", 0, kNow));
  Members other(*sqlite::Database::open(world.home + "/skerry.db"), world.authority, "localhost:7443");
  std::atomic<int> won = 0;
  std::vector<std::string> requests;
  for (int i = 0; i < 6; ++i) requests.push_back(any_request());
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i)
    threads.emplace_back([&, i] { won += (i % 2 ? other : world.members).redeem(secret, requests[static_cast<std::size_t>(i)], kNow).ok(); });
  for (std::thread& thread : threads) thread.join();
  CHECK(won == 1);
}

TEST_CASE("unknown, expired and replaced secrets each have their own error, none of which quotes the secret") {
  World world;
  const auto unknown = world.members.redeem("no-such-secret", any_request(), kNow);
  REQUIRE_FALSE(unknown.ok());
  CHECK(unknown.error().code == Code::kUnauthenticated);
  CHECK(has(unknown.error(), "unknown"));
  CHECK_FALSE(has(unknown.error(), "no-such-secret"));
  const std::string old = secret_of(*world.members.invite(Role::kNode, "alder", 0, kNow));
  const auto expired = world.members.redeem(old, any_request(), kNow + 3 * kDay);
  CHECK(has(expired.error(), "expired on 2027-01-16 08:00:00 UTC, 2 days ago"));
  CHECK_FALSE(has(expired.error(), old));
  REQUIRE(world.members.invite(Role::kNode, "alder", 0, kNow + 1000).ok());
  CHECK(has(world.members.redeem(old, any_request(), kNow + 2000).error(), "replaced by a newer one"));
}

TEST_CASE("a bad signing request does not use the token up") {
  World world;
  const std::string secret = secret_of(*world.members.invite(Role::kNode, "alder", 0, kNow));
  const auto bad = world.members.redeem(secret, "not a request", kNow);
  REQUIRE_FALSE(bad.ok());
  CHECK(bad.error().code == Code::kInvalidArgument);
  CHECK(world.members.redeem(secret, any_request(), kNow).ok());
}

TEST_CASE("a second enrolment of a name ends its older certificates") {
  World world;
  const Enrolled first = enrol(world, Role::kNode, "alder");
  const Enrolled second = enrol(world, Role::kNode, "alder");
  CHECK(second.enrolment.replaced == std::vector<std::string>{first.identity.thumbprint});
  const Revocations revoked = *world.members.revocations();
  CHECK(revoked.count(first.identity.thumbprint) == 1);
  CHECK(has(authenticate(first.enrolment.chain_pem, world.authority.anchors(), kNow, revoked).error(), "replaced by a new enrolment"));
  CHECK(authenticate(second.enrolment.chain_pem, world.authority.anchors(), kNow, revoked).ok());
}

TEST_CASE("a renewal is for the caller's key and leaves the older certificate good") {
  World world;
  const Enrolled alder = enrol(world, Role::kNode, "alder");
  const auto renewed = world.members.renew(alder.identity, request_of(alder.key), kNow + 20 * kDay);
  REQUIRE(renewed.ok());
  CHECK(renewed->expires_ms == kNow + 50 * kDay);
  CHECK(world.members.revocations()->empty());
  CHECK(world.members.find(Role::kNode, "alder")->thumbprint == renewed->thumbprint);
  const auto other_key = world.members.renew(alder.identity, any_request(), kNow);
  REQUIRE_FALSE(other_key.ok());
  CHECK(has(other_key.error(), "another key"));
}

TEST_CASE("revocation ends a member's certificates, invitations, renewals and name for good") {
  World world;
  const Enrolled alder = enrol(world, Role::kNode, "alder");
  const std::string open_secret = secret_of(*world.members.invite(Role::kNode, "alder", 0, kNow));
  const auto revoked = world.members.revoke(Role::kNode, "alder", "sold\nfake log line", kNow);
  REQUIRE(revoked.ok());
  CHECK(revoked->thumbprints == std::vector<std::string>{alder.identity.thumbprint});
  CHECK(world.members.find(Role::kNode, "alder")->state == MemberRecord::State::kRevoked);
  CHECK(world.members.revocations()->at("node/alder") == "sold fake log line");
  CHECK(has(world.members.renew(alder.identity, request_of(alder.key), kNow).error(), "was revoked on"));
  CHECK(has(world.members.redeem(open_secret, any_request(), kNow).error(), "was revoked on"));
  CHECK(has(world.members.invite(Role::kNode, "alder", 0, kNow).error(), "never used again"));
  CHECK(has(world.members.revoke(Role::kNode, "alder", "again", kNow).error(), "revoked already"));
  CHECK(world.members.revoke(Role::kNode, "nobody", "x", kNow).error().code == Code::kNotFound);
  CHECK(world.members.invite(Role::kViewer, "alder", 0, kNow).ok());
}

TEST_CASE("the last operator cannot be revoked") {
  World world;
  const auto last = world.members.revoke(Role::kOperator, "operator", "x", kNow);
  REQUIRE_FALSE(last.ok());
  CHECK(has(last.error(), "the last operator"));
  REQUIRE(world.members.invite(Role::kOperator, "second", 0, kNow).ok());
  CHECK_FALSE(world.members.revoke(Role::kOperator, "operator", "x", kNow).ok());
  enrol(world, Role::kOperator, "second");
  CHECK(world.members.revoke(Role::kOperator, "operator", "x", kNow).ok());
}

TEST_CASE("last seen is known at once, durable after a flush, and never goes back") {
  World world;
  const Enrolled alder = enrol(world, Role::kNode, "alder");
  world.members.seen(alder.identity, kNow + 7000);
  world.members.seen(alder.identity, kNow + 5000);
  CHECK(world.members.find(Role::kNode, "alder")->last_seen_ms == kNow + 7000);
  REQUIRE(world.members.flush_seen().ok());
  REQUIRE(world.members.flush_seen().ok());
  const Members other(*sqlite::Database::open(world.home + "/skerry.db"), world.authority, "localhost:7443");
  CHECK(other.find(Role::kNode, "alder")->last_seen_ms == kNow + 7000);
}

TEST_CASE("members are listed by role and name") {
  World world;
  enrol(world, Role::kNode, "birch");
  enrol(world, Role::kNode, "alder");
  const auto members = *world.members.list();
  REQUIRE(members.size() == 3);
  CHECK(members[0].name == "alder");
  CHECK(members[1].name == "birch");
  CHECK(members[2].role == Role::kOperator);
}

TEST_CASE("the bodies of enrol and renew are checked before anything else") {
  World world;
  const Enrolled alder = enrol(world, Role::kNode, "alder");
  CHECK(has(world.members.answer_enrol("[]", kNow).error(), "not a JSON object"));
  CHECK(has(world.members.answer_enrol(R"({"secret":1})", kNow).error(), "lacks the text field 'secret'"));
  CHECK(has(world.members.answer_enrol(R"({"secret":"x"})", kNow).error(), "lacks the text field 'csr'"));
  CHECK(has(world.members.answer_enrol(std::string(100'000, ' '), kNow).error(), "at most 65536"));
  CHECK(has(world.members.answer_renew(alder.identity, "{}", kNow).error(), "'csr'"));
}
