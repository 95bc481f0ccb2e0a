#include "common/identity/profile.h"

#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/unit/identity/world.h"

using namespace skerry;
using namespace skerry::test;

namespace {

struct Member {
  World world;
  PrivateKey key = *PrivateKey::generate();
  std::string directory = world.directory / "alder";
  Profile profile = *create_profile(directory, "localhost:7443", world.authority.ca_pem(), world.chain(Role::kNode, "alder", key), key);
};

}  // namespace

TEST_CASE("a profile survives being written and read, in files that only its owner can use") {
  const Member member;
  CHECK(has_profile(member.directory));
  const auto loaded = load_profile(member.directory);
  REQUIRE(loaded.ok());
  CHECK(loaded->address == "localhost:7443");
  CHECK(loaded->federation == "harbour");
  CHECK(loaded->role == Role::kNode);
  CHECK(loaded->name == "alder");
  CHECK(loaded->thumbprint == member.profile.thumbprint);
  CHECK(loaded->expires_ms == kNow + 30 * kDay);
  for (const char* file : {"ca.crt", "cert.pem", "key.pem", "profile.json"}) {
    struct stat status {};
    REQUIRE(::stat((member.directory + "/" + file).c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
  }
}

TEST_CASE("a profile is not overwritten") {
  const Member member;
  const auto again = create_profile(member.directory, "x:1", member.world.authority.ca_pem(),
                                    member.world.chain(Role::kNode, "birch", member.key), member.key);
  REQUIRE_FALSE(again.ok());
  CHECK(again.error().code == Code::kAlreadyExists);
}

TEST_CASE("a directory without a profile says to join first") {
  const TempDir directory;
  CHECK_FALSE(has_profile(directory.path()));
  const auto loaded = load_profile(directory.path());
  REQUIRE_FALSE(loaded.ok());
  CHECK(loaded.error().code == Code::kNotFound);
  CHECK(has(loaded.error(), "join a federation first"));
}

TEST_CASE("a damaged profile names the file that is wrong") {
  const Member member;
  SECTION("missing certificate") {
    REQUIRE(remove_file(member.profile.certificate_path()).ok());
    CHECK(has(load_profile(member.directory).error(), "cert.pem is missing"));
  }
  SECTION("another key") {
    REQUIRE(PrivateKey::generate()->save(member.profile.key_path()).ok());
    CHECK(has(load_profile(member.directory).error(), "key.pem is not the key of"));
  }
  SECTION("a key that others may read") {
    REQUIRE(::chmod(member.profile.key_path().c_str(), 0644) == 0);
    CHECK(load_profile(member.directory).error().code == Code::kPermissionDenied);
  }
  SECTION("another federation's CA") {
    const World other("lagoon");
    REQUIRE(write_file_atomic(member.profile.ca_path(), other.authority.ca_pem(), 0600).ok());
    CHECK(has(load_profile(member.directory).error(), "do not fit together"));
  }
  SECTION("profile.json of another member") {
    REQUIRE(write_file_atomic(member.directory + "/profile.json",
                              R"({"version":1,"address":"a:1","federation":"harbour","role":"operator","name":"alder"})", 0600).ok());
    CHECK(has(load_profile(member.directory).error(), "names another member"));
  }
  SECTION("profile.json cut off") {
    REQUIRE(write_file_atomic(member.directory + "/profile.json", "{\"version\":1", 0600).ok());
    CHECK(has(load_profile(member.directory).error(), "not a JSON object"));
  }
}

TEST_CASE("an update of the certificate keeps key and member, and refuses another's") {
  const Member member;
  const std::string fresh = member.world.chain(Role::kNode, "alder", member.key, 60 * kDay);
  const auto updated = update_profile(member.profile, member.world.authority.ca_pem(), fresh);
  REQUIRE(updated.ok());
  CHECK(updated->expires_ms == kNow + 60 * kDay);
  CHECK(load_profile(member.directory)->thumbprint == updated->thumbprint);
  CHECK(has(update_profile(*updated, member.world.authority.ca_pem(), member.world.chain(Role::kNode, "birch", member.key)).error(),
            "another member"));
  CHECK(has(update_profile(*updated, member.world.authority.ca_pem(), member.world.chain(Role::kNode, "alder")).error(),
            "not for this member's key"));
  CHECK(load_profile(member.directory)->thumbprint == updated->thumbprint);
}

TEST_CASE("a certificate is due for renewal at two thirds of its lifetime") {
  const Member member;
  CHECK_FALSE(renewal_due(member.profile, kNow + 19 * kDay));
  CHECK(renewal_due(member.profile, kNow + 20 * kDay));
}
