#include "common/identity/join_token.h"

#include <catch2/catch.hpp>

#include "common/base/encoding_text.h"
#include "common/crypto/sha256.h"
#include "tests/unit/identity/world.h"

using namespace skerry;
using namespace skerry::test;

namespace {

JoinToken sample() { return {"port.example.org:7443", std::string(64, 'a'), "s3cret-s3cret", kNow + kDay, Role::kNode, "alder"}; }

std::string with_checksum(const std::string& body) {
  return body + "." + to_base64url(sha256(body)).substr(0, 8);
}

}  // namespace

TEST_CASE("a join token survives being written and read") {
  const std::string text = format_join_token(sample());
  const auto token = parse_join_token("  " + text + "\n", kNow);
  REQUIRE(token.ok());
  CHECK(token->address == "port.example.org:7443");
  CHECK(token->ca_fingerprint == std::string(64, 'a'));
  CHECK(token->secret == "s3cret-s3cret");
  CHECK(token->expires_ms == kNow + kDay);
  CHECK(token->role == Role::kNode);
  CHECK(token->name == "alder");
  CHECK(text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == std::string::npos);
}

TEST_CASE("a join token that was cut or changed anywhere is incomplete, and is never quoted") {
  const std::string text = format_join_token(sample());
  for (std::size_t i = 5; i < text.size(); ++i) {
    std::string changed = text;
    changed[i] = changed[i] == 'x' ? 'y' : 'x';
    const auto token = parse_join_token(changed, kNow);
    REQUIRE_FALSE(token.ok());
    CHECK(token.error().code == Code::kInvalidArgument);
    CHECK(has(token.error(), "incomplete or was changed"));
    CHECK_FALSE(has(token.error(), changed.substr(5, 20)));
    CHECK_FALSE(parse_join_token(text.substr(0, i), kNow).ok());
  }
}

TEST_CASE("an expired join token says since when") {
  const auto token = parse_join_token(format_join_token(sample()), kNow + kDay + 2 * 3600'000);
  REQUIRE_FALSE(token.ok());
  CHECK(token.error().code == Code::kFailedPrecondition);
  CHECK(has(token.error(), "expired on 2027-01-16 08:00:00 UTC, 2 hours ago"));
}

TEST_CASE("another version and other text are told apart") {
  CHECK(has(parse_join_token("skj2.abc.def", kNow).error(), "version 'skj2'"));
  CHECK(has(parse_join_token("hello", kNow).error(), "not a join token"));
  CHECK(has(parse_join_token(" \n", kNow).error(), "empty"));
}

TEST_CASE("a token with a good checksum but without its fields is refused by the field's name") {
  CHECK(has(parse_join_token(with_checksum("skj1." + to_base64url("{}")), kNow).error(), "'address' is missing"));
  CHECK(has(parse_join_token(with_checksum("skj1." + to_base64url("[1]")), kNow).error(), "no JSON object"));
  CHECK(has(parse_join_token(with_checksum("skj1." + to_base64url(
                                 R"({"address":"a:1","ca":"b","secret":"c","role":"king","name":"d","expires_ms":9999999999999})")), kNow).error(),
            "'king' is not a role"));
}
