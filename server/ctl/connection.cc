#include "server/ctl/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <nlohmann/json.hpp>

#include <chrono>
#include <utility>

#include "common/crypto/content_id.h"
#include "common/identity/enrol.h"
#include "common/net/http_client.h"
#include "common/os/files.h"
#include "skerry/v1/control.grpc.pb.h"

namespace skerry::ctl {
namespace {

constexpr std::chrono::seconds kCallDeadline{120};
constexpr std::uint64_t kMaxKeyBytes = 64 * 1024;
constexpr std::size_t kMaxMessageBytes = 64u << 20;

}  // namespace

struct Connection::State {
  Profile profile;
  std::shared_ptr<grpc::Channel> channel;  // gRPC's own ownership
  std::unique_ptr<v1::Control::Stub> stub;
  HttpClient http;

  Error explain(const grpc::Status& status) {
    const Code code = static_cast<Code>(static_cast<int>(status.error_code()));
    Error error{code, status.error_message(), code == Code::kUnavailable};
    if (code != Code::kUnavailable) return error;
    auto who = http.send({.url = "https://" + profile.address + "/api/v1/whoami"});
    if (!who.ok()) return who.error();
    const auto answer = nlohmann::json::parse(who->body, nullptr, false);
    if (answer.is_object() && answer.value("role", "") == "anonymous")
      return unauthenticated(answer.value("reason", "the certificate is not accepted"));
    return error;
  }

  template <typename Reply, typename Request, typename Method>
  Result<Reply> call(Method method, const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kCallDeadline);
    Reply reply;
    const grpc::Status status = ((*stub).*method)(&context, request, &reply);
    if (!status.ok()) return explain(status);
    return reply;
  }
};

Connection::Connection(std::unique_ptr<State> state) : state_(std::move(state)) {}
Connection::Connection(Connection&&) noexcept = default;
Connection& Connection::operator=(Connection&&) noexcept = default;
Connection::~Connection() = default;

Result<Connection> Connection::open(const std::string& profile_directory) {
  SKERRY_ASSIGN(Profile profile, open_profile(profile_directory));
  if (profile.role != Role::kOperator && profile.role != Role::kViewer)
    return permission_denied("the profile in " + profile_directory + " is a " + std::string(role_name(profile.role)) +
                             "'s: give an operator's or viewer's with --profile");
  SKERRY_ASSIGN(const std::string key, read_file(profile.key_path(), kMaxKeyBytes));
  grpc::SslCredentialsOptions credentials;
  credentials.pem_root_certs = profile.ca_pem;
  credentials.pem_cert_chain = profile.chain_pem;
  credentials.pem_private_key = key;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  auto channel = grpc::CreateCustomChannel(profile.address, grpc::SslCredentials(credentials), arguments);
  auto stub = v1::Control::NewStub(channel);
  HttpClient http(
      {.ca_pem = profile.ca_pem, .certificate_path = profile.certificate_path(), .key_path = profile.key_path()});
  return Connection(
      std::make_unique<State>(State{std::move(profile), std::move(channel), std::move(stub), std::move(http)}));
}

const Profile& Connection::profile() const { return state_->profile; }

Result<v1::CoordinatorStatus> Connection::status() {
  return state_->call<v1::CoordinatorStatus>(&v1::Control::Stub::GetStatus, v1::GetStatusRequest());
}
Result<v1::SubmitRunReply> Connection::submit(const v1::SubmitRunRequest& request) {
  return state_->call<v1::SubmitRunReply>(&v1::Control::Stub::SubmitRun, request);
}
Result<v1::ListRunsReply> Connection::list_runs() {
  return state_->call<v1::ListRunsReply>(&v1::Control::Stub::ListRuns, v1::ListRunsRequest());
}

static v1::GetRunRequest named(const std::string& run) {
  v1::GetRunRequest request;
  request.set_run_id(run);
  return request;
}

Result<v1::RunDetail> Connection::get_run(const std::string& run) {
  return state_->call<v1::RunDetail>(&v1::Control::Stub::GetRun, named(run));
}
Result<v1::RunDetail> Connection::change_run(const v1::ChangeRunRequest& request) {
  return state_->call<v1::RunDetail>(&v1::Control::Stub::ChangeRun, request);
}
Result<v1::RunMetrics> Connection::run_metrics(const std::string& run) {
  return state_->call<v1::RunMetrics>(&v1::Control::Stub::GetRunMetrics, named(run));
}
Result<v1::ListVersionsReply> Connection::list_versions(const std::string& run) {
  return state_->call<v1::ListVersionsReply>(&v1::Control::Stub::ListVersions, named(run));
}
Result<v1::InviteMemberReply> Connection::invite(const v1::InviteMemberRequest& request) {
  return state_->call<v1::InviteMemberReply>(&v1::Control::Stub::InviteMember, request);
}
Result<v1::RevokeMemberReply> Connection::revoke(const v1::RevokeMemberRequest& request) {
  return state_->call<v1::RevokeMemberReply>(&v1::Control::Stub::RevokeMember, request);
}
Result<v1::ListMembersReply> Connection::list_members(const std::string& role) {
  v1::ListMembersRequest request;
  request.set_role(role);
  return state_->call<v1::ListMembersReply>(&v1::Control::Stub::ListMembers, request);
}

Result<void> Connection::watch(const std::string& run, const std::function<bool(const v1::RunDetail&)>& update) {
  grpc::ClientContext context;
  const auto reader = state_->stub->WatchRun(&context, named(run));
  v1::RunDetail detail;
  bool wanted = true;
  while (wanted && reader->Read(&detail)) wanted = update(detail);
  if (!wanted) context.TryCancel();
  const grpc::Status status = reader->Finish();
  if (!wanted || status.ok()) return {};
  return state_->explain(status);
}

static Error refusal(const std::string& what, const HttpResponse& response) {
  const auto answer = nlohmann::json::parse(response.body, nullptr, false);
  const std::string why = answer.is_object() && answer.contains("error") ? answer["error"].value("message", "")
                                                                         : response.body.substr(0, 200);
  return Error{response.status == 404 ? Code::kNotFound : Code::kFailedPrecondition, what + ": " + why};
}

Result<std::string> Connection::upload(const std::string& path) {
  SKERRY_ASSIGN(const MappedFile mapped, MappedFile::open(path));
  const std::string id = content_id(mapped.bytes(), 0);
  SKERRY_TRY(mapped.check());
  const std::string url = "https://" + state_->profile.address + "/api/v1/cargo/" + id;
  const std::string size = "size=" + std::to_string(mapped.size());
  SKERRY_ASSIGN(const HttpResponse state, state_->http.send({.url = url + "/upload?" + size}));
  if (state.status != 200) return refusal("the coordinator takes no upload of " + path, state);
  const auto answer = nlohmann::json::parse(state.body, nullptr, false);
  if (!answer.is_object() || !answer.contains("missing") || !answer["missing"].is_array())
    return unavailable("the coordinator's answer about the upload of " + path + " is not understood");
  for (const auto& range : answer["missing"]) {
    if (!range.is_array() || range.size() != 2 || !range[0].is_number_unsigned() || !range[1].is_number_unsigned() ||
        range[1] >= mapped.size() || range[0] > range[1])
      return unavailable("the coordinator asks for bytes that " + path + " does not have");
    const auto first = range[0].get<std::uint64_t>();
    HttpRequest put;
    put.method = "PUT";
    put.url = url + "?offset=" + std::to_string(first) + "&" + size;
    put.headers = {{"Content-Type", "application/octet-stream"}};
    put.memory = mapped.bytes().subspan(first, range[1].get<std::uint64_t>() - first + 1);
    SKERRY_ASSIGN(const HttpResponse response, state_->http.send(put));
    if (response.status / 100 != 2) return refusal("upload of " + path, response);
  }
  return id;
}

Result<void> Connection::download(const v1::Blob& blob, const std::string& path) {
  if (!blob.inline_data().empty()) return write_file_atomic(path, blob.inline_data(), 0644);
  SKERRY_ASSIGN(File file, File::open(path + ".part", OpenMode::kCreateOrEmpty, 0644));
  ContentHasher hasher;
  std::uint64_t position = 0;
  HttpRequest request;
  request.url = "https://" + state_->profile.address + "/api/v1/cargo/" + blob.content_id();
  request.sink = [&](int, std::span<const std::byte> piece) -> Result<void> {
    hasher.update(piece);
    SKERRY_TRY(file.pwrite(piece, position));
    position += piece.size();
    return {};
  };
  SKERRY_ASSIGN(const HttpResponse response, state_->http.send(request));
  if (response.status != 200) return refusal("cargo " + blob.content_id(), response);
  if (hasher.finish() != blob.content_id())
    return data_loss("cargo " + blob.content_id() + " arrived with other bytes; try again");
  SKERRY_TRY(file.fsync());
  return rename_durable(path + ".part", path);
}

Result<std::string> Connection::get(const std::string& path) {
  SKERRY_ASSIGN(HttpResponse response, state_->http.send({.url = "https://" + state_->profile.address + path}));
  if (response.status != 200)
    return Error{Code::kFailedPrecondition,
                 "GET " + path + " was answered with status " + std::to_string(response.status)};
  return std::move(response.body);
}

}  // namespace skerry::ctl
