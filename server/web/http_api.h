// The HTTP side: health, metrics, enrolment, and the operator's answers as JSON.
#pragma once

#include <string>

#include "common/os/clock.h"
#include "server/coordinator/coordinator.h"
#include "server/identity/members.h"
#include "server/metrics/metrics.h"
#include "server/net/access.h"
#include "server/net/http_router.h"

namespace skerry::server {

struct HttpApiParts {
  Coordinator& coordinator;
  Members& members;
  const CertificateAuthority& authority;
  Metrics& metrics;
  const Clock& clock;
  Gate& gate;
};

/// The routes of docs/wire-protocol.md but the cargo's, which the port has itself. All of `parts` outlives the router.
HttpRouter make_http_router(HttpApiParts parts);

}  // namespace skerry::server
