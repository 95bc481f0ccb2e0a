// Errors as gRPC statuses: the codes are the same numbers.
#pragma once

#include <grpcpp/support/status.h>

#include "common/base/result.h"

namespace skerry::server {

inline grpc::Status to_grpc_status(const Error& error) {
  return {static_cast<grpc::StatusCode>(static_cast<int>(error.code)), error.message};
}

}  // namespace skerry::server
