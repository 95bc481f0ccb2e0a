#include "server/identity/certificate_authority.h"

#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "common/identity/profile.h"
#include "common/os/files.h"
#include "tests/unit/identity/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::test;

namespace {

std::vector<Certificate> server_chain(const World& world) { return *parse_chain(*read_file(world.home + "/server.crt", 1 << 16)); }

}  // namespace

TEST_CASE("init makes a CA, a server certificate, a ticket key and the first operator") {
  World world;
  const auto server = server_chain(world);
  REQUIRE(server.size() == 2);
  CHECK(server[0].dns_names() == std::vector<std::string>{"localhost"});
  CHECK(server[0].ip_addresses() == std::vector<std::string>{"127.0.0.1"});
  CHECK(server[0].is_for(LeafUse::kServer));
  CHECK(verify_chain(server, world.authority.anchors().roots()).ok());
  CHECK(load_ticket_key(world.home)->size() == 32);
  const auto profile = load_profile(world.home + "/operator");
  REQUIRE(profile.ok());
  CHECK(profile->role == Role::kOperator);
  CHECK(profile->address == "localhost:7443");
  CHECK(world.members.find(Role::kOperator, "operator")->thumbprint == profile->thumbprint);
  for (const char* secret : {"ca/root.key", "ca/issuing.key", "server.key", "ticket.key", "operator/key.pem"}) {
    struct stat status {};
    REQUIRE(::stat((world.home + "/" + secret).c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
  }
}

TEST_CASE("init never replaces a CA") {
  World world;
  InitOptions options;
  options.federation = "harbour";
  options.hosts = {"localhost"};
  options.address = "localhost:1";
  options.now_ms = kNow;
  const auto again = init_home(world.home, options);
  REQUIRE_FALSE(again.ok());
  CHECK(again.error().code == Code::kAlreadyExists);
}

TEST_CASE("init refuses bad names, no hosts and an address without a port, and leaves nothing behind") {
  const TempDir directory;
  InitOptions good;
  good.federation = "harbour";
  good.hosts = {"localhost"};
  good.address = "localhost:1";
  InitOptions bad = good;
  bad.federation = "My Federation";
  CHECK(has(init_home(directory / "a", bad).error(), "federation name"));
  bad = good;
  bad.hosts.clear();
  CHECK(has(init_home(directory / "a", bad).error(), "no host name"));
  bad = good;
  bad.address = "localhost";
  CHECK(has(init_home(directory / "a", bad).error(), "not host:port"));
  CHECK_FALSE(path_exists(directory / "a"));
}

TEST_CASE("a home without a CA says to run init") {
  const TempDir directory;
  const auto opened = CertificateAuthority::open(directory.path());
  REQUIRE_FALSE(opened.ok());
  CHECK(opened.error().code == Code::kNotFound);
  CHECK(has(opened.error(), "skerry-server init"));
}

TEST_CASE("a CA whose files do not belong together names them") {
  World world;
  World other;
  SECTION("issuing certificate of another root") {
    REQUIRE(write_file_atomic(world.home + "/ca/issuing.crt", *read_file(other.home + "/ca/issuing.crt", 1 << 16), 0644).ok());
    CHECK(has(CertificateAuthority::open(world.home).error(), "issuing.crt is not signed by"));
  }
  SECTION("another key") {
    REQUIRE(write_file_atomic(world.home + "/ca/issuing.key", *read_file(other.home + "/ca/issuing.key", 1 << 16), 0600).ok());
    CHECK(has(CertificateAuthority::open(world.home).error(), "issuing.key is not the key of"));
  }
  SECTION("a damaged ticket key") {
    REQUIRE(write_file_atomic(world.home + "/ticket.key", "abc", 0600).ok());
    CHECK(has(load_ticket_key(world.home).error(), "ticket.key does not hold 32 bytes"));
  }
}

TEST_CASE("the coordinator runs without the root's key") {
  World world;
  REQUIRE(remove_file(world.home + "/ca/root.key").ok());
  const auto authority = CertificateAuthority::open(world.home);
  REQUIRE(authority.ok());
  CHECK(authority->issue_member(PrivateKey::generate()->public_key(), Role::kNode, "alder", kNow).ok());
}

TEST_CASE("members get no server certificates, and a server none that poses as a member") {
  World world;
  const PublicKey key = PrivateKey::generate()->public_key();
  CHECK_FALSE(world.authority.issue_member(key, Role::kServer, "alder", kNow).ok());
  CHECK_FALSE(world.authority.issue_member(key, Role::kNode, "a/b", kNow).ok());
  const auto member = *world.authority.issue_member(key, Role::kNode, "alder", kNow);
  CHECK_FALSE(member.certificate.is_for(LeafUse::kServer));
  const auto server = *world.authority.issue_server(key, "coordinator", {"localhost"}, kNow);
  CHECK(authenticate(server.chain_pem, world.authority.anchors(), kNow, {})->role == Role::kServer);
}

TEST_CASE("the server's certificate is renewed at two thirds of its lifetime, with key and hosts kept") {
  World world;
  const auto before = server_chain(world);
  CHECK_FALSE(*world.authority.renew_server_certificate(kNow + 59 * kDay));
  CHECK(server_chain(world)[0].thumbprint() == before[0].thumbprint());
  CHECK(*world.authority.renew_server_certificate(kNow + 61 * kDay));
  const auto after = server_chain(world);
  CHECK(after[0].thumbprint() != before[0].thumbprint());
  CHECK(*after[0].public_key() == *before[0].public_key());
  CHECK(after[0].dns_names() == before[0].dns_names());
  CHECK(after[0].ip_addresses() == before[0].ip_addresses());
  CHECK(after[0].uris() == before[0].uris());
  CHECK(after[0].not_after_ms() == kNow + 151 * kDay);
}

TEST_CASE("the server's certificate can name other hosts") {
  World world;
  REQUIRE(world.authority.set_server_hosts({"port.example.org", "::1"}, kNow).ok());
  CHECK(server_chain(world)[0].dns_names() == std::vector<std::string>{"port.example.org"});
  CHECK(server_chain(world)[0].ip_addresses() == std::vector<std::string>{"::1"});
  CHECK_FALSE(world.authority.set_server_hosts({"not a host"}, kNow).ok());
}

TEST_CASE("a rollover's steps keep their order") {
  World world;
  CHECK(world.authority.switch_rollover(kNow).error().code == Code::kNotFound);
  REQUIRE(world.authority.start_rollover(kNow).ok());
  CHECK(world.authority.start_rollover(kNow).error().code == Code::kAlreadyExists);
  CHECK(world.authority.finish_rollover().error().code == Code::kFailedPrecondition);
  REQUIRE(world.authority.switch_rollover(kNow).ok());
  REQUIRE(world.authority.finish_rollover().ok());
  CHECK(world.authority.anchors().roots().size() == 1);
  CHECK_FALSE(path_exists(world.home + "/ca-previous"));
}

TEST_CASE("during a rollover old and new certificates are good, and the server's is signed by the CA in use") {
  World world;
  const std::string old_member = world.chain(Role::kNode, "alder");
  const TrustAnchors only_old = world.authority.anchors();
  REQUIRE(world.authority.start_rollover(kNow).ok());
  CHECK(world.authority.anchors().roots().size() == 2);
  CHECK(verify_chain(server_chain(world), only_old.roots()).ok());
  REQUIRE(world.authority.switch_rollover(kNow).ok());
  CHECK_FALSE(verify_chain(server_chain(world), only_old.roots()).ok());
  CHECK(verify_chain(server_chain(world), world.authority.anchors().roots()).ok());
  CHECK(authenticate(old_member, world.authority.anchors(), kNow, {}).ok());
  CHECK(authenticate(parse_chain(old_member)->front().pem(), world.authority.anchors(), kNow, {}).ok());
  CHECK(authenticate(world.chain(Role::kNode, "birch"), world.authority.anchors(), kNow, {}).ok());
  REQUIRE(world.authority.finish_rollover().ok());
  CHECK_FALSE(authenticate(old_member, world.authority.anchors(), kNow, {}).ok());
}

TEST_CASE("a switch to the new CA that a crash interrupted is ended or undone when the home is opened") {
  World world;
  REQUIRE(world.authority.start_rollover(kNow).ok());
  const std::string old_root = world.authority.root_fingerprint();
  REQUIRE(rename_durable(world.home + "/ca/next", world.home + "/ca-next").ok());
  SECTION("before the old directory was moved: nothing has happened") {
    CHECK(CertificateAuthority::open(world.home)->root_fingerprint() == old_root);
    CHECK(world.authority.switch_rollover(kNow).ok());
  }
  SECTION("after it was moved: the new CA is in use") {
    REQUIRE(rename_durable(world.home + "/ca", world.home + "/ca-previous").ok());
    const auto opened = CertificateAuthority::open(world.home);
    REQUIRE(opened.ok());
    CHECK(opened->root_fingerprint() != old_root);
  }
}
