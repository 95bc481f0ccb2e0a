#include "server/net/grpc_side.h"

#include "server/net/port.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <algorithm>

namespace skerry::server {

namespace {

// What we say ourselves may be large: a task that brings hundreds of small fragments, the metrics of a long run.
constexpr int kMaxSentBytes = 64 << 20;
// Buffers of these sizes stay with every connection; the conversation's messages are small.
constexpr int kTlsFrameBytes = 8 * 1024;
constexpr int kReadBytes = 4 * 1024;

}  // namespace

struct GrpcSide::State {
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor;
  std::unique_ptr<grpc::Server> server;
};

GrpcSide::GrpcSide(std::unique_ptr<State> state) : state_(std::move(state)) {}
GrpcSide::~GrpcSide() = default;

Result<std::unique_ptr<GrpcSide>> GrpcSide::start(const PortOptions& options,
                                                  const std::vector<grpc::Service*>& services) {
  const auto refresh = static_cast<unsigned>(std::max<std::int64_t>(1, options.certificate_check.count()));
  // The provider is shared because gRPC's credentials keep using it for as long as they live.
  auto provider = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      options.key_file, options.certificate_file, refresh);
  grpc::experimental::TlsServerCredentialsOptions tls(std::move(provider));
  tls.watch_identity_key_cert_pairs();
  tls.set_cert_request_type(GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_BUT_DONT_VERIFY);

  const PortLimits& limits = options.limits;
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, static_cast<int>(limits.handshake.count()));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 300'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits.grpc_streams);
  builder.AddChannelArgument(GRPC_ARG_TSI_MAX_FRAME_SIZE, kTlsFrameBytes);
  builder.AddChannelArgument(GRPC_ARG_TCP_READ_CHUNK_SIZE, kReadBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(limits.header_bytes));
  builder.SetMaxReceiveMessageSize(static_cast<int>(limits.grpc_message_bytes));
  builder.SetMaxSendMessageSize(kMaxSentBytes);

  auto state = std::make_unique<State>();
  using Kind = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  state->acceptor = builder.experimental().AddExternalConnectionAcceptor(Kind::FROM_FD,
                                                                         grpc::experimental::TlsServerCredentials(tls));
  for (grpc::Service* service : services) builder.RegisterService(service);
  state->server = builder.BuildAndStart();
  if (!state->server) return internal_error("gRPC did not start; its log says why (GRPC_VERBOSITY=debug)");
  return std::unique_ptr<GrpcSide>(new GrpcSide(std::move(state)));
}

void GrpcSide::take(int descriptor) {
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
  connection.fd = descriptor;
  state_->acceptor->HandleNewConnection(&connection);
}

void GrpcSide::shutdown(std::chrono::system_clock::time_point deadline) { state_->server->Shutdown(deadline); }

}  // namespace skerry::server
