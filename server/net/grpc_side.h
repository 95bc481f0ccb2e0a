// The gRPC server behind the port: it gets accepted sockets, and does TLS and HTTP/2 itself.
#pragma once

#include "common/base/result.h"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace grpc {
class Service;
}

namespace skerry::server {

struct PortOptions;

class GrpcSide {
 public:
  static Result<std::unique_ptr<GrpcSide>> start(const PortOptions& options,
                                                 const std::vector<grpc::Service*>& services);
  ~GrpcSide();

  /// Takes over a connected, non-blocking socket from which nothing was read yet.
  void take(int descriptor);

  /// Calls under way may finish until `deadline`, then they are cancelled.
  void shutdown(std::chrono::system_clock::time_point deadline);

 private:
  struct State;
  explicit GrpcSide(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace skerry::server
