#include "tests/bench/parts/bare_server.h"

#include <unistd.h>

#include <grpcpp/grpcpp.h>

#include "common/os/files.h"
#include "skerry/v1/fleet.grpc.pb.h"

namespace skerry::bench {

Result<void> run_bare_server(const std::string& certificate_file, const std::string& key_file, const std::string& ready_file) {
  constexpr std::uint64_t kMaxPem = 64 * 1024;
  grpc::SslServerCredentialsOptions tls;
  SKERRY_ASSIGN(const std::string certificate, read_file(certificate_file, kMaxPem));
  SKERRY_ASSIGN(const std::string key, read_file(key_file, kMaxPem));
  tls.pem_key_cert_pairs.push_back({key, certificate});
  v1::Fleet::CallbackService service;  // answers UNIMPLEMENTED
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::SslServerCredentials(tls), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) return internal_error("gRPC could not open a port");
  SKERRY_TRY(write_file_atomic(ready_file, std::to_string(port) + "\n", 0644));
  char byte = 0;
  while (::read(STDIN_FILENO, &byte, 1) > 0) {
  }
  server->Shutdown();
  return {};
}

}  // namespace skerry::bench
