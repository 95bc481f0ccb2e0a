#include "server/identity/ticket.h"

#include <array>
#include <cassert>
#include <charconv>

#include "common/base/encoding_text.h"
#include "common/crypto/sha256.h"
#include "common/crypto/x509.h"

namespace skerry::server {
namespace {

constexpr std::size_t kMaxTicket = 1024;

std::string code_of(std::string_view key, std::string_view body) { return to_base64url(hmac_sha256(key, body)); }

Error malformed(const char* what) {
  return invalid_argument(std::string("the cargo ticket is malformed (") + what + "); send the task's ticket unchanged");
}

template <typename Number>
bool parse_number(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string make_ticket(std::string_view key, const Ticket& ticket) {
  assert(ticket.task_id.find('|') == std::string::npos);
  const std::string body = to_base64url("v1|" + ticket.task_id + "|" + ticket.thumbprint + "|" +
                                        std::to_string(ticket.max_bytes) + "|" + std::to_string(ticket.expires_ms));
  return body + "." + code_of(key, body);
}

Result<Ticket> check_ticket(std::string_view key, std::string_view text, const TicketUse& use, std::int64_t now_ms) {
  if (text.empty()) return invalid_argument("there is no cargo ticket; send the task's ticket in the header Skerry-Ticket");
  if (text.size() > kMaxTicket) return malformed("it is too long");
  const std::size_t dot = text.find('.');
  if (dot == text.npos) return malformed("its code is missing");
  const std::string_view body = text.substr(0, dot);
  if (!equal_in_constant_time(text.substr(dot + 1), code_of(key, body)))
    return unauthenticated("the cargo ticket was not made by this coordinator, or was changed; wait for the task to be given again");
  auto decoded = from_base64url(body);
  if (!decoded.ok()) return malformed("its text");
  std::array<std::string_view, 5> fields;
  std::string_view rest = *decoded;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const std::size_t bar = rest.find('|');
    if ((bar == rest.npos) != (i + 1 == fields.size())) return malformed("its fields");
    fields[i] = rest.substr(0, bar);
    rest.remove_prefix(bar == rest.npos ? rest.size() : bar + 1);
  }
  Ticket ticket;
  ticket.task_id = fields[1];
  ticket.thumbprint = fields[2];
  if (fields[0] != "v1") return malformed("its version");
  if (!parse_number(fields[3], ticket.max_bytes) || !parse_number(fields[4], ticket.expires_ms)) return malformed("its numbers");
  if (now_ms > ticket.expires_ms)
    return failed_precondition("the cargo ticket of task " + ticket.task_id + " expired " +
                               format_duration(now_ms - ticket.expires_ms) + " ago, on " + format_utc(ticket.expires_ms));
  if (ticket.thumbprint != use.thumbprint)
    return permission_denied("the cargo ticket of task " + ticket.task_id +
                             " was given to another certificate than the one presented; use the certificate of the session "
                             "that brought the task");
  if (!use.task_id.empty() && ticket.task_id != use.task_id)
    return permission_denied("the cargo ticket is for task " + ticket.task_id + ", not for this one");
  if (use.bytes > ticket.max_bytes) {
    Error error = resource_exhausted("the upload has " + std::to_string(use.bytes) + " bytes, the ticket of task " +
                                     ticket.task_id + " permits " + std::to_string(ticket.max_bytes));
    error.retryable = false;
    return error;
  }
  return ticket;
}

}  // namespace skerry::server
