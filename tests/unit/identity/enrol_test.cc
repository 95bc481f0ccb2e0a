#include "common/identity/enrol.h"

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/unit/identity/world.h"

using namespace skerry;
using namespace skerry::test;

namespace {

std::string invite(World& world, const std::string& name = "alder") {
  return world.members.invite(Role::kNode, name, 0, world.now_ms)->token;
}

}  // namespace

TEST_CASE("a token brings a machine into the federation, and its key never leaves it") {
  World world;
  const std::string home = world.directory / "alder";
  const auto profile = join(invite(world), home, world.enrol_options());
  REQUIRE(profile.ok());
  CHECK(profile->name == "alder");
  CHECK(profile->role == Role::kNode);
  CHECK(profile->address == "localhost:7443");
  CHECK(load_profile(home).ok());
  CHECK(check_identity(*profile, world.enrol_options()).ok());
  CHECK(world.members.find(Role::kNode, "alder")->thumbprint == profile->thumbprint);
  for (const HttpRequest& request : world.requests) CHECK(request.body.find("PRIVATE KEY") == std::string::npos);
}

TEST_CASE("the secret is sent only after the CA's fingerprint was compared") {
  World world;
  World impostor("harbour");
  const auto joined = join(invite(world), world.directory / "alder", impostor.enrol_options());
  REQUIRE_FALSE(joined.ok());
  CHECK(joined.error().code == Code::kUnauthenticated);
  CHECK(has(joined.error(), "has another CA"));
  CHECK(has(joined.error(), "Compare the fingerprints"));
  REQUIRE(impostor.requests.size() == 1);
  CHECK(impostor.requests[0].url == "https://localhost:7443/api/v1/ca");
  CHECK(impostor.requests[0].body.empty());
  CHECK_FALSE(has_profile(world.directory / "alder"));
}

TEST_CASE("only the CA is fetched without verification") {
  World world;
  std::vector<bool> verified;
  EnrolOptions options = world.enrol_options();
  options.send = [&](const HttpOptions& http, const HttpRequest& request) {
    verified.push_back(http.verify_server);
    if (http.verify_server) CHECK(Certificate::from_pem(http.ca_pem)->thumbprint() == world.authority.root_fingerprint());
    return world.answer(http, request);
  };
  REQUIRE(join(invite(world), world.directory / "alder", options).ok());
  CHECK(verified == std::vector<bool>{false, true});
}

TEST_CASE("a token works once, and the second user is told when it was used") {
  World world;
  const std::string token = invite(world);
  REQUIRE(join(token, world.directory / "one", world.enrol_options()).ok());
  const auto again = join(token, world.directory / "two", world.enrol_options());
  REQUIRE_FALSE(again.ok());
  CHECK(again.error().code == Code::kFailedPrecondition);
  CHECK(has(again.error(), "was used on 2027-01-15 08:00:00 UTC"));
  CHECK_FALSE(has_profile(world.directory / "two"));
}

TEST_CASE("expired, unknown and tampered tokens each have their own error") {
  World world;
  World stranger;
  const std::string token = invite(world);
  world.now_ms += 2 * kDay;
  CHECK(has(join(token, world.directory / "a", world.enrol_options()).error(), "the join token expired on"));
  CHECK(has(join(token.substr(0, token.size() - 3), world.directory / "a", world.enrol_options()).error(), "incomplete"));
  // A token of this CA whose secret the registry does not know: the registry was set up anew.
  const std::string fresh = invite(world, "birch");
  sqlite::Database database = *sqlite::Database::open(world.home + "/skerry.db");
  REQUIRE(database.execute("DELETE FROM invitations").ok());
  const auto unknown = join(fresh, world.directory / "b", world.enrol_options());
  REQUIRE_FALSE(unknown.ok());
  CHECK(unknown.error().code == Code::kUnauthenticated);
  CHECK(has(unknown.error(), "secret is unknown"));
}

TEST_CASE("a coordinator that counts a token as expired says so although this clock is slow, and the clock is named") {
  World world;
  const std::string token = invite(world);
  world.now_ms += 2 * kDay;
  EnrolOptions options = world.enrol_options();
  options.now_ms = kNow;
  world.date = "Sun, 17 Jan 2027 08:00:00 GMT";
  const auto joined = join(token, world.directory / "a", options);
  REQUIRE_FALSE(joined.ok());
  CHECK(has(joined.error(), "expired on 2027-01-16"));
  CHECK(has(joined.error(), "this machine's clock is 2 days behind the coordinator's"));
}

TEST_CASE("a home that has joined is left alone, and the token is not used") {
  World world;
  REQUIRE(join(invite(world), world.directory / "alder", world.enrol_options()).ok());
  const std::string second = invite(world, "birch");
  const auto again = join(second, world.directory / "alder", world.enrol_options());
  REQUIRE_FALSE(again.ok());
  CHECK(again.error().code == Code::kAlreadyExists);
  CHECK(join(second, world.directory / "birch", world.enrol_options()).ok());
}

TEST_CASE("a certificate for another key or name is not stored") {
  World world;
  EnrolOptions options = world.enrol_options();
  options.send = [&](const HttpOptions& http, const HttpRequest& request) -> Result<HttpResponse> {
    if (request.url.find("/enrol") == std::string::npos) return world.answer(http, request);
    HttpRequest swapped = request;
    const std::string other = *make_signing_request(*PrivateKey::generate(), "alder");
    std::string escaped;
    for (char c : other) escaped += c == '\n' ? std::string("\\n") : std::string(1, c);
    swapped.body.replace(swapped.body.find("-----BEGIN"), swapped.body.find("\",\"secret") - swapped.body.find("-----BEGIN"), escaped);
    return world.answer(http, swapped);
  };
  const auto joined = join(invite(world), world.directory / "alder", options);
  REQUIRE_FALSE(joined.ok());
  CHECK(joined.error().code == Code::kUnauthenticated);
  CHECK(has(joined.error(), "not for the key that was made here"));
  CHECK_FALSE(has_profile(world.directory / "alder"));
}

TEST_CASE("a coordinator that cannot be reached is a retryable error with its own words") {
  World world;
  EnrolOptions options = world.enrol_options();
  options.send = [](const HttpOptions&, const HttpRequest&) -> Result<HttpResponse> { return unavailable("cannot connect"); };
  const auto joined = join(invite(world), world.directory / "alder", options);
  REQUIRE_FALSE(joined.ok());
  CHECK(joined.error().retryable);
}

TEST_CASE("a renewal brings a new certificate for the same key") {
  World world;
  const Profile old = *join(invite(world), world.directory / "alder", world.enrol_options());
  const std::string key = *read_file(old.key_path(), 10'000);
  world.now_ms += 20 * kDay;
  REQUIRE(renewal_due(old, world.now_ms));
  const auto fresh = renew(old, world.enrol_options());
  REQUIRE(fresh.ok());
  CHECK(fresh->thumbprint != old.thumbprint);
  CHECK(fresh->expires_ms == kNow + 50 * kDay);
  CHECK(*read_file(old.key_path(), 10'000) == key);
  CHECK(load_profile(old.directory)->thumbprint == fresh->thumbprint);
  CHECK(check_identity(*fresh, world.enrol_options()).ok());
}

TEST_CASE("a certificate is renewed within the grace after its end, and not beyond") {
  World world;
  const Profile old = *join(invite(world), world.directory / "alder", world.enrol_options());
  world.now_ms = kNow + 30 * kDay + 13 * kDay;
  CHECK(has(check_identity(old, world.enrol_options()).error(), "expired on"));
  REQUIRE(renew(old, world.enrol_options()).ok());
  world.now_ms = kNow + 30 * kDay + 15 * kDay;
  const auto late = renew(old, world.enrol_options());
  REQUIRE_FALSE(late.ok());
  CHECK(late.error().code == Code::kFailedPrecondition);
  CHECK(has(late.error(), "too long ago to be renewed"));
}

TEST_CASE("opening a profile renews it when due, and a coordinator that is away is an error only after the end") {
  World world;
  const Profile first = *join(invite(world), world.directory / "alder", world.enrol_options());
  CHECK(open_profile(first.directory, world.enrol_options())->thumbprint == first.thumbprint);
  EnrolOptions away = world.enrol_options();
  away.send = [](const HttpOptions&, const HttpRequest&) -> Result<HttpResponse> { return unavailable("cannot connect"); };
  away.now_ms = kNow + 25 * kDay;
  CHECK(open_profile(first.directory, away)->thumbprint == first.thumbprint);
  away.now_ms = kNow + 31 * kDay;
  CHECK(has(open_profile(first.directory, away).error(), "cannot connect"));
  world.now_ms = kNow + 31 * kDay;
  CHECK(open_profile(first.directory, world.enrol_options())->expires_ms == kNow + 61 * kDay);
}

TEST_CASE("a revoked member cannot renew, and learns the reason") {
  World world;
  const Profile profile = *join(invite(world), world.directory / "alder", world.enrol_options());
  REQUIRE(world.members.revoke(Role::kNode, "alder", "the disk was sold", kNow).ok());
  world.revoked = *world.members.revocations();
  const auto renewed = renew(profile, world.enrol_options());
  REQUIRE_FALSE(renewed.ok());
  CHECK(renewed.error().code == Code::kFailedPrecondition);
  CHECK(has(renewed.error(), "the disk was sold"));
  CHECK(has(check_identity(profile, world.enrol_options()).error(), "the disk was sold"));
}

TEST_CASE("a member follows the CA from the old root to the new one") {
  World world;
  const Profile old = *join(invite(world), world.directory / "alder", world.enrol_options());
  const std::string old_root = world.authority.root_fingerprint();
  REQUIRE(world.authority.start_rollover(kNow).ok());
  world.now_ms += 20 * kDay;
  const Profile both = *renew(old, world.enrol_options());
  CHECK(TrustAnchors::from_pem(both.ca_pem)->roots().size() == 2);
  REQUIRE(world.authority.switch_rollover(world.now_ms).ok());
  CHECK(world.authority.root_fingerprint() != old_root);
  CHECK(check_identity(both, world.enrol_options()).ok());
  world.now_ms += 20 * kDay;
  const Profile next = *renew(both, world.enrol_options());
  REQUIRE(world.authority.finish_rollover().ok());
  CHECK(check_identity(next, world.enrol_options()).ok());
  CHECK_FALSE(authenticate(both.chain_pem, world.authority.anchors(), world.now_ms, {}).ok());
  world.now_ms += 20 * kDay;
  CHECK(TrustAnchors::from_pem(renew(next, world.enrol_options())->ca_pem)->roots().size() == 1);
  CHECK(load_profile(old.directory).ok());
}

TEST_CASE("a clock that is off is described in both directions, and small differences are not") {
  CHECK(describe_clock_skew("Fri, 15 Jan 2027 08:00:00 GMT", kNow).empty());
  CHECK(describe_clock_skew("Fri, 15 Jan 2027 08:01:59 GMT", kNow).empty());
  CHECK(describe_clock_skew("Fri, 15 Jan 2027 11:00:00 GMT", kNow).find("3 hours behind") != std::string::npos);
  CHECK(describe_clock_skew("Fri, 15 Jan 2027 07:50:00 GMT", kNow).find("10 minutes ahead of") != std::string::npos);
  CHECK(describe_clock_skew("nonsense", kNow).empty());
  CHECK(describe_clock_skew("", kNow).empty());
}
