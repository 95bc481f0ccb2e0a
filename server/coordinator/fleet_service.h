// The gRPC side of the fleet conversation: authenticated streams become Sessions.
#pragma once

#include <memory>

#include "server/coordinator/session.h"
#include "server/net/access.h"

namespace grpc {
class Service;
}

namespace skerry::server {

/// The Fleet service. `gate` and `events` outlive it. Streams that the gate does not authorize end at once with its error.
std::unique_ptr<grpc::Service> make_fleet_service(Gate& gate, SessionEvents& events);

}  // namespace skerry::server
