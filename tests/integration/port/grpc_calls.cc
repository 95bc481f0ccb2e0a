// The only file of these tests that sees gRPC's stubs.
#include "common/os/files.h"
#include "skerry/v1/control.grpc.pb.h"
#include "tests/integration/port/world.h"

#include <grpcpp/grpcpp.h>

namespace skerry::test {
namespace {

grpc::Status status_of(const Error& error) { return {static_cast<grpc::StatusCode>(error.code), error.message}; }

class TestControl final : public v1::Control::Service {
 public:
  explicit TestControl(server::Gate& gate) : gate_(gate) {}

  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest*,
                         v1::CoordinatorStatus* reply) override {
    auto caller = gate_.authorize(*context, "/skerry.v1.Control/GetStatus");
    if (!caller.ok()) return status_of(caller.error());
    reply->set_name(caller->name);
    return grpc::Status::OK;
  }

  grpc::Status WatchRun(grpc::ServerContext* context, const v1::GetRunRequest*,
                        grpc::ServerWriter<v1::RunDetail>* writer) override {
    auto caller = gate_.authorize(*context, "/skerry.v1.Control/WatchRun");
    if (!caller.ok()) return status_of(caller.error());
    writer->Write({});
    while (!context->IsCancelled()) pause_ms(5);
    return grpc::Status::OK;
  }

 private:
  server::Gate& gate_;
};

std::shared_ptr<grpc::Channel> connect(const World& world, const Member* as, const std::string& ca_file) {
  const auto text = [](const std::string& path) { return read_file(path, 1 << 20).value(); };
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = text(ca_file.empty() ? world.dir / "ca.crt" : ca_file);
  if (as) {
    options.pem_cert_chain = text(as->certificate_file);
    options.pem_private_key = text(as->key_file);
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(world.port->port()), grpc::SslCredentials(options),
                                   arguments);
}

std::string spell(const grpc::Status& status) { return std::string(code_name(static_cast<Code>(status.error_code()))); }

}  // namespace

std::shared_ptr<grpc::Service> make_control(server::Gate& gate) { return std::make_shared<TestControl>(gate); }

std::string World::get_status(const Member* as, const std::string& ca_file) const {
  const auto stub = v1::Control::NewStub(connect(*this, as, ca_file));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::CoordinatorStatus reply;
  const grpc::Status status = stub->GetStatus(&context, {}, &reply);
  return status.ok() ? "OK " + reply.name() : spell(status) + ": " + status.error_message();
}

struct Watcher::State {
  std::unique_ptr<v1::Control::Stub> stub;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::RunDetail>> reader;
};

Watcher::Watcher(const World& world, const Member& as) : state_(std::make_unique<State>()) {
  state_->stub = v1::Control::NewStub(connect(world, &as, ""));
  state_->context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  state_->reader = state_->stub->WatchRun(&state_->context, {});
}
Watcher::~Watcher() = default;

bool Watcher::first_answer() {
  v1::RunDetail detail;
  return state_->reader->Read(&detail);
}

std::string Watcher::end() {
  v1::RunDetail detail;
  while (state_->reader->Read(&detail)) continue;
  return spell(state_->reader->Finish());
}

}  // namespace skerry::test
