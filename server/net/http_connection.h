// One HTTPS connection: handshake, then request after request.
#pragma once

#include "server/net/connections.h"
#include "server/net/http_side.h"
#include "server/net/tls_stream.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace skerry::server {

/// Serves an accepted socket from which nothing was read yet, until one side ends it. `context` is shared because a
/// reload replaces it while handshakes are under way. The TLS handshake may last `handshake_left`.
void serve_http(HttpSide& side, StrandSocket socket, const std::shared_ptr<SSL_CTX>& context, Connections::Slot slot,
                std::string peer, std::chrono::milliseconds handshake_left);

}  // namespace skerry::server
