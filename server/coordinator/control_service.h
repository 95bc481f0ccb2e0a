// The operator's gRPC service: the coordinator's answers on the wire.
#pragma once

#include <memory>

#include "server/coordinator/coordinator.h"
#include "server/net/access.h"

namespace grpc {
class Service;
}

namespace skerry::server {

/// The Control service. `gate` and `coordinator` outlive it.
std::unique_ptr<grpc::Service> make_control_service(Gate& gate, Coordinator& coordinator);

}  // namespace skerry::server
