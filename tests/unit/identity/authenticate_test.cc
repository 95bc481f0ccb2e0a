#include "common/identity/authenticate.h"

#include <atomic>
#include <thread>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/unit/identity/world.h"

using namespace skerry;
using namespace skerry::test;

namespace {

// Why `chain` is refused, from an Authenticator and from the plain function, which must agree.
Error refusal(const World& world, const std::string& chain, std::int64_t now_ms = kNow, const Revocations& revoked = {}) {
  const auto plain = authenticate(chain, world.authority.anchors(), now_ms, revoked);
  const Authenticator authenticator(world.authority.anchors(), revoked);
  const auto remembering = authenticator.authenticate(chain, now_ms);
  REQUIRE_FALSE(plain.ok());
  REQUIRE_FALSE(remembering.ok());
  CHECK(plain.error().code == Code::kUnauthenticated);
  CHECK_FALSE(plain.error().retryable);
  CHECK(plain.error().message == remembering.error().message);
  return plain.error();
}

// A leaf of this world's own CA with any URI.
std::string chain_with_uri(const World& world, const std::string& uri) {
  const Certificate issuing = *Certificate::from_pem(*read_file(world.home + "/ca/issuing.crt", 1 << 16));
  const PrivateKey issuing_key = *PrivateKey::load(world.home + "/ca/issuing.key");
  LeafOptions options;
  options.common_name = "x";
  options.uri = uri;
  options.now_ms = kNow;
  options.lifetime_ms = kDay;
  return make_leaf(PrivateKey::generate()->public_key(), options, issuing, issuing_key)->pem() + issuing.pem();
}

}  // namespace

TEST_CASE("a member's certificate proves role, name and key") {
  const World world;
  const PrivateKey key = *PrivateKey::generate();
  const Role role = GENERATE(Role::kNode, Role::kOperator, Role::kViewer);
  const auto identity = authenticate(world.chain(role, "alder", key), world.authority.anchors(), kNow, {});
  REQUIRE(identity.ok());
  CHECK(identity->role == role);
  CHECK(identity->name == "alder");
  CHECK(identity->federation == "harbour");
  CHECK(identity->key == key.public_key());
  CHECK(identity->thumbprint.size() == 64);
  CHECK(identity->expires_ms == kNow + 30 * kDay);
}

TEST_CASE("the leaf alone is enough where the issuing CA is known") {
  const World world;
  const std::string leaf = parse_chain(world.chain(Role::kNode, "alder"))->front().pem();
  CHECK(authenticate(leaf, world.authority.anchors(), kNow, {}).ok());
}

TEST_CASE("a caller without a certificate is told how to get one") {
  const World world;
  CHECK(has(refusal(world, ""), "no client certificate was presented"));
  CHECK(has(refusal(world, "nonsense"), "holds no certificate"));
}

TEST_CASE("a damaged certificate is called damaged") {
  const World world;
  std::string chain = world.chain(Role::kNode, "alder");
  chain[100] = '*';
  CHECK(has(refusal(world, chain), "damaged"));
}

TEST_CASE("a certificate of another CA names its issuer") {
  const World world;
  const World other("lagoon");
  const Error error = refusal(world, other.chain(Role::kNode, "alder"));
  CHECK(has(error, "O=lagoon"));
  CHECK(has(error, "not signed by the CA of the federation 'harbour'"));
}

TEST_CASE("a CA that merely bears this federation's name is another CA") {
  const World world;
  const World impostor("harbour");
  CHECK(has(refusal(world, impostor.chain(Role::kOperator, "operator")), "not signed by the CA"));
  // Also when it brings its own root along.
  CHECK(has(refusal(world, impostor.chain(Role::kOperator, "operator") + impostor.authority.ca_pem()), "not signed by the CA"));
}

TEST_CASE("an expired certificate says when it ended and that it can be renewed, or no more") {
  const World world;
  const std::string chain = world.chain(Role::kNode, "alder", *PrivateKey::generate(), kDay);
  CHECK(authenticate(chain, world.authority.anchors(), kNow + kDay, {}).ok());
  const Error soon = refusal(world, chain, kNow + kDay + 3 * kMinute);
  CHECK(has(soon, "expired on 2027-01-16 08:00:00 UTC, 3 minutes ago"));
  CHECK(has(soon, "can still be renewed until 2027-01-30"));
  CHECK(has(refusal(world, chain, kNow + 16 * kDay), "join again with a new token"));
}

TEST_CASE("within the grace an expired certificate is accepted for its renewal, and not after it") {
  const World world;
  const std::string chain = world.chain(Role::kNode, "alder", *PrivateKey::generate(), kDay);
  const TrustAnchors& anchors = world.authority.anchors();
  CHECK(authenticate(chain, anchors, kNow + 10 * kDay, {}, kRenewalGraceMs).ok());
  CHECK(authenticate(chain, anchors, kNow + kDay + kRenewalGraceMs, {}, kRenewalGraceMs).ok());
  CHECK_FALSE(authenticate(chain, anchors, kNow + kDay + kRenewalGraceMs + 1, {}, kRenewalGraceMs).ok());
}

TEST_CASE("a certificate that is not yet valid hints at a clock and says how far it is off") {
  const World world;
  const std::string chain = world.chain(Role::kNode, "alder");
  CHECK(authenticate(chain, world.authority.anchors(), kNow - kBackdateMs, {}).ok());
  const Error error = refusal(world, chain, kNow - 65 * kMinute);
  CHECK(has(error, "not yet valid"));
  CHECK(has(error, "1 hour after this machine's time"));
  CHECK(has(error, "a clock is off"));
}

TEST_CASE("a revoked certificate tells the reason, by thumbprint and by member") {
  const World world;
  const std::string chain = world.chain(Role::kNode, "alder");
  const std::string thumbprint = authenticate(chain, world.authority.anchors(), kNow, {})->thumbprint;
  CHECK(has(refusal(world, chain, kNow, {{thumbprint, "laptop stolen"}}), "node 'alder' is revoked: laptop stolen"));
  CHECK(has(refusal(world, chain, kNow, {{"node/alder", "left"}}), "revoked: left"));
  CHECK(authenticate(chain, world.authority.anchors(), kNow, {{"operator/alder", "left"}}).ok());
  // Revocation also counts where only a renewal is wanted.
  CHECK_FALSE(authenticate(chain, world.authority.anchors(), kNow + 31 * kDay, {{"node/alder", "left"}}, kRenewalGraceMs).ok());
}

TEST_CASE("a certificate without a usable URI names nobody") {
  const World world;
  CHECK(has(refusal(world, chain_with_uri(world, "")), "no skerry:// URI"));
  CHECK(has(refusal(world, chain_with_uri(world, "https://harbour/node/alder")), "no skerry:// URI"));
  for (const char* uri : {"skerry://harbour/node", "skerry://harbour/node/", "skerry://harbour/node/Alder", "skerry:///node/alder",
                          "skerry://harbour/node/a/b", "skerry://harbour/node/-a"})
    CHECK(has(refusal(world, chain_with_uri(world, uri)), "malformed"));
}

TEST_CASE("a role that is not known and another federation are told apart") {
  const World world;
  const Error role = refusal(world, chain_with_uri(world, "skerry://harbour/admiral/alder"));
  CHECK(has(role, "'admiral' is not a role"));
  CHECK(has(refusal(world, chain_with_uri(world, "skerry://lagoon/node/alder")), "for the federation 'lagoon', this is 'harbour'"));
}

TEST_CASE("an expired CA is named as the cause, not the member's certificate") {
  const World world;
  const std::string chain = world.chain(Role::kNode, "alder", *PrivateKey::generate(), 10 * server::kIssuingLifetimeMs);
  const Error error = refusal(world, chain, kNow + server::kIssuingLifetimeMs + kDay);
  CHECK(has(error, "expired on"));
  const auto graceful = authenticate(chain, world.authority.anchors(), kNow + server::kIssuingLifetimeMs + kDay, {}, kRenewalGraceMs);
  REQUIRE_FALSE(graceful.ok());
  CHECK(has(graceful.error(), "the CA 'O=harbour, CN=Skerry issuing CA"));
}

TEST_CASE("a remembered certificate is still judged by time and revocation at every call") {
  const World world;
  Authenticator authenticator(world.authority.anchors());
  const std::string chain = world.chain(Role::kNode, "alder", *PrivateKey::generate(), kDay);
  REQUIRE(authenticator.authenticate(chain, kNow).ok());
  CHECK(has(authenticator.authenticate(chain, kNow + 2 * kDay).error(), "expired"));
  CHECK(has(authenticator.authenticate(chain, kNow - kDay).error(), "not yet valid"));
  REQUIRE(authenticator.authenticate(chain, kNow).ok());
  authenticator.revoke("node/alder", "left");
  CHECK(has(authenticator.authenticate(chain, kNow).error(), "left"));
  authenticator.set_revocations({});
  CHECK(authenticator.authenticate(chain, kNow).ok());
}

TEST_CASE("new trust anchors take effect on remembered certificates") {
  const World world;
  const World other("harbour");
  Authenticator authenticator(world.authority.anchors());
  const std::string chain = world.chain(Role::kNode, "alder");
  REQUIRE(authenticator.authenticate(chain, kNow).ok());
  authenticator.set_anchors(other.authority.anchors());
  CHECK(has(authenticator.authenticate(chain, kNow).error(), "not signed"));
}

TEST_CASE("many threads may authenticate while revocations change") {
  const World world;
  Authenticator authenticator(world.authority.anchors());
  std::vector<std::string> chains;
  for (int i = 0; i < 4; ++i) chains.push_back(world.chain(Role::kNode, "node-" + std::to_string(i)));
  std::atomic<int> accepted = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) accepted += authenticator.authenticate(chains[static_cast<std::size_t>((i + t) % 4)], kNow).ok();
    });
  for (int i = 0; i < 50; ++i) authenticator.revoke("node/other-" + std::to_string(i), "left");
  for (std::thread& thread : threads) thread.join();
  CHECK(accepted == 800);
}

TEST_CASE("trust anchors must be CAs of one federation") {
  const World world;
  const World other("lagoon");
  CHECK(TrustAnchors::from_pem(world.authority.ca_pem())->federation() == "harbour");
  CHECK(has(TrustAnchors::from_pem(world.authority.ca_pem() + other.authority.ca_pem()).error(), "two federations"));
  CHECK(has(TrustAnchors::from_pem("").error(), "no self-signed CA"));
  CHECK(has(TrustAnchors::from_pem(world.chain(Role::kNode, "alder")).error(), "not a CA certificate"));
}

TEST_CASE("names keep to their rule") {
  for (const char* good : {"a", "0", "alder-2", "a--b"}) CHECK(check_member_name(good).ok());
  for (const std::string& bad : {std::string(), std::string("-a"), std::string("A"), std::string("a_b"), std::string("a b"),
                                 std::string("a/b"), std::string(64, 'a')})
    CHECK_FALSE(check_member_name(bad).ok());
  CHECK(check_member_name(std::string(63, 'a')).ok());
}
