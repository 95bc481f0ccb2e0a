// Cargo tickets: the right to upload one task's update, without any state on the coordinator.
//
// base64url of "v1|task|thumbprint|max bytes|expires (Unix ms)", ".", base64url of HMAC-SHA256 of the part before the dot.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace skerry::server {

struct Ticket {
  std::string task_id;         ///< without '|'
  std::string thumbprint;      ///< of the certificate it is for
  std::uint64_t max_bytes = 0;  ///< of the whole upload
  std::int64_t expires_ms = 0;  ///< Unix time
};

/// `key` as from load_ticket_key.
std::string make_ticket(std::string_view key, const Ticket& ticket);

/// What somebody wants to do with a ticket.
struct TicketUse {
  std::string_view thumbprint;    ///< of the caller's certificate
  std::uint64_t bytes = 0;        ///< total size of the upload
  std::string_view task_id = {};  ///< empty: any task (the caller takes it from the ticket)
};

/// The ticket if it permits `use` at `now_ms`. INVALID_ARGUMENT (none or malformed), UNAUTHENTICATED (not made with this key),
/// FAILED_PRECONDITION (expired, by how much), PERMISSION_DENIED (another certificate's, another task's), RESOURCE_EXHAUSTED and not
/// retryable (more bytes than permitted, both numbers). No message quotes the ticket.
Result<Ticket> check_ticket(std::string_view key, std::string_view text, const TicketUse& use, std::int64_t now_ms);

}  // namespace skerry::server
