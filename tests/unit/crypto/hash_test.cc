#include <catch2/catch.hpp>

#include "common/base/encoding_text.h"
#include "common/crypto/random.h"
#include "common/crypto/sha256.h"

using namespace skerry;

TEST_CASE("SHA-256 agrees with FIPS 180-4's examples") {
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_CASE("SHA-256 of pieces is that of the whole, and the hasher can be used again") {
  Sha256 hasher;
  for (int round = 0; round < 2; ++round) {
    hasher.update("a");
    hasher.update("");
    hasher.update("bc");
    CHECK(hasher.finish() == sha256("abc"));
  }
}

TEST_CASE("HMAC-SHA256 agrees with RFC 4231, test case 2") {
  CHECK(to_hex(hmac_sha256("Jefe", "what do ya want for nothing?")) ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST_CASE("comparison in constant time compares") {
  CHECK(equal_in_constant_time("abc", "abc"));
  CHECK_FALSE(equal_in_constant_time("abc", "abd"));
  CHECK_FALSE(equal_in_constant_time("abc", "ab"));
}

TEST_CASE("random secrets differ and are as long as asked") {
  CHECK(random_secret(32)->size() == 32);
  CHECK(*random_secret(32) != *random_secret(32));
}
