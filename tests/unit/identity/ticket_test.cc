#include "server/identity/ticket.h"

#include <catch2/catch.hpp>

#include "common/base/encoding_text.h"
#include "common/crypto/sha256.h"
#include "tests/unit/identity/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::test;

namespace {

const std::string kKey(32, 'k');
const std::string kThumbprint(64, 'a');

Ticket sample() { return {"t-17", kThumbprint, 1000, kNow + 5000}; }

std::string forge(const std::string& fields) {
  const std::string body = to_base64url(fields);
  return body + "." + to_base64url(hmac_sha256(kKey, body));
}

}  // namespace

TEST_CASE("a ticket permits what it was made for, up to its last byte and millisecond") {
  const auto ticket = check_ticket(kKey, make_ticket(kKey, sample()), {kThumbprint, 1000, "t-17"}, kNow + 5000);
  REQUIRE(ticket.ok());
  CHECK(ticket->task_id == "t-17");
  CHECK(ticket->max_bytes == 1000);
  CHECK(check_ticket(kKey, make_ticket(kKey, sample()), {kThumbprint, 1}, kNow).ok());
}

TEST_CASE("each misuse of a ticket has its own answer") {
  const std::string text = make_ticket(kKey, sample());
  const auto late = check_ticket(kKey, text, {kThumbprint, 1}, kNow + 65'000);
  CHECK(late.error().code == Code::kFailedPrecondition);
  CHECK(has(late.error(), "expired 1 minute ago"));
  const auto stolen = check_ticket(kKey, text, {std::string(64, 'b'), 1}, kNow);
  CHECK(stolen.error().code == Code::kPermissionDenied);
  CHECK(has(stolen.error(), "another certificate"));
  const auto other = check_ticket(kKey, text, {kThumbprint, 1, "t-18"}, kNow);
  CHECK(other.error().code == Code::kPermissionDenied);
  CHECK(has(other.error(), "is for task t-17"));
  const auto large = check_ticket(kKey, text, {kThumbprint, 1001}, kNow);
  CHECK(large.error().code == Code::kResourceExhausted);
  CHECK_FALSE(large.error().retryable);
  CHECK(has(large.error(), "1001 bytes"));
  const auto foreign = check_ticket(std::string(32, 'x'), text, {kThumbprint, 1}, kNow);
  CHECK(foreign.error().code == Code::kUnauthenticated);
  CHECK(has(foreign.error(), "not made by this coordinator"));
}

TEST_CASE("a ticket with any character changed is refused") {
  const std::string text = make_ticket(kKey, sample());
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string changed = text;
    changed[i] = changed[i] == 'x' ? 'y' : 'x';
    const auto ticket = check_ticket(kKey, changed, {kThumbprint, 1}, kNow);
    REQUIRE_FALSE(ticket.ok());
    CHECK_FALSE(has(ticket.error(), text.substr(0, 20)));
  }
}

TEST_CASE("malformed tickets are called so") {
  CHECK(has(check_ticket(kKey, "", {kThumbprint, 1}, kNow).error(), "there is no cargo ticket"));
  CHECK(has(check_ticket(kKey, "abc", {kThumbprint, 1}, kNow).error(), "malformed"));
  CHECK(has(check_ticket(kKey, std::string(2000, 'a'), {kThumbprint, 1}, kNow).error(), "too long"));
  CHECK(has(check_ticket(kKey, forge("v2|t|a|1|2"), {kThumbprint, 1}, kNow).error(), "its version"));
  CHECK(has(check_ticket(kKey, forge("v1|t|a|1"), {kThumbprint, 1}, kNow).error(), "its fields"));
  CHECK(has(check_ticket(kKey, forge("v1|t|a|1|2|3"), {kThumbprint, 1}, kNow).error(), "its fields"));
  CHECK(has(check_ticket(kKey, forge("v1|t|a|-1|2"), {kThumbprint, 1}, kNow).error(), "its numbers"));
}
