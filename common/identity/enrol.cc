#include "common/identity/enrol.h"

#include <curl/curl.h>

#include <nlohmann/json.hpp>

#include "common/crypto/sha256.h"
#include "common/identity/join_token.h"
#include "common/os/clock.h"
#include "common/os/files.h"

namespace skerry {
namespace {

constexpr std::int64_t kClockTolerance = 2 * 60 * 1000;

std::int64_t now_of(const EnrolOptions& options) { return options.now_ms != 0 ? options.now_ms : SystemClock().unix_ms(); }

Result<HttpResponse> send(const EnrolOptions& options, const HttpOptions& http, const HttpRequest& request) {
  if (options.send) return options.send(http, request);
  return HttpClient(http).send(request);
}

HttpOptions http_options(const EnrolOptions& options, const std::string& ca_pem) {
  HttpOptions http;
  http.ca_pem = ca_pem;
  http.proxy = options.proxy;
  http.cancelled = options.cancelled;
  return http;
}

// The coordinator's own sentence for a refusal: {"error":{"message":…}} or {"error":…} or {"message":…}, else the status.
std::string reason_of(const HttpResponse& response) {
  const nlohmann::json json = nlohmann::json::parse(response.body, nullptr, false);
  if (json.is_object()) {
    const auto error = json.find("error");
    if (error != json.end() && error->is_string()) return error->get<std::string>();
    const nlohmann::json& holder = error != json.end() && error->is_object() ? *error : json;
    const auto message = holder.find("message");
    if (message != holder.end() && message->is_string()) return message->get<std::string>();
  }
  return "status " + std::to_string(response.status) + " without a reason";
}

Error refusal(const std::string& what, const HttpResponse& response, std::int64_t now_ms) {
  std::string message = what + ": " + reason_of(response);
  if (const std::string skew = describe_clock_skew(response.header("date"), now_ms); !skew.empty()) message += "; " + skew;
  if (response.status == 429 || response.status >= 500) return unavailable(message + "; try again later");
  if (response.status == 401 || response.status == 403) return unauthenticated(message);
  return failed_precondition(message);
}

// A certificate problem is often a clock problem: the unverified answer's Date tells.
Error explain_with_clock(Error error, std::string_view date, std::int64_t now_ms) {
  if (const std::string skew = describe_clock_skew(date, now_ms); !skew.empty()) error.message += "; " + skew;
  return error;
}

struct Issued {
  std::string chain_pem;
  std::string ca_pem;
  std::string address;
};

Result<Issued> parse_issued(const HttpResponse& response) {
  const nlohmann::json json = nlohmann::json::parse(response.body, nullptr, false);
  Issued issued;
  for (const auto& [name, target] : {std::pair<const char*, std::string*>{"certificate", &issued.chain_pem},
                                     {"ca", &issued.ca_pem}, {"address", &issued.address}}) {
    const auto field = json.is_object() ? json.find(name) : json.end();
    if (field == json.end() || !field->is_string())
      return data_loss(std::string("the coordinator's answer lacks the field '") + name +
                       "'; check that both programs are of the same version");
    *target = field->get<std::string>();
  }
  return issued;
}

// The certificate must be for our key, role and name, and lead to an anchor that came with it over the verified connection.
Result<void> check_issued(const Issued& issued, const std::string& trusted_ca, const PublicKey& key, Role role,
                          std::string_view name) {
  const auto check = [&]() -> Result<void> {
    SKERRY_ASSIGN(const TrustAnchors trusted, TrustAnchors::from_pem(trusted_ca));
    SKERRY_ASSIGN(const TrustAnchors offered, TrustAnchors::from_pem(issued.ca_pem));
    SKERRY_ASSIGN(const Certificate certificate, Certificate::from_pem(issued.chain_pem));
    SKERRY_ASSIGN(const Identity identity, authenticate(issued.chain_pem, offered, certificate.not_before_ms(), {}));
    if (!(identity.key == key)) return unauthenticated("it is not for the key that was made here");
    if (identity.role != role || identity.name != name || identity.federation != trusted.federation())
      return unauthenticated("it is for " + identity_uri(identity.federation, identity.role, identity.name) + ", not for " +
                             identity_uri(trusted.federation(), role, name));
    return {};
  };
  auto checked = check();
  if (checked.ok()) return {};
  return unauthenticated("the coordinator returned a certificate that cannot be used: " + checked.error().message +
                         "; nothing was stored, tell the operator");
}

// Step 1 of joining: the root that the token pins, from an unverified connection.
struct PinnedRoot {
  std::string ca_pem;
  std::string date;
};

Result<PinnedRoot> fetch_root(const JoinToken& token, const std::string& address, const EnrolOptions& options) {
  HttpOptions http = http_options(options, "");
  http.verify_server = false;
  HttpRequest request;
  request.url = "https://" + address + "/api/v1/ca";
  SKERRY_ASSIGN(const HttpResponse response, send(options, http, request));
  if (response.status != 200)
    return failed_precondition(address + " does not offer a Skerry CA (status " + std::to_string(response.status) +
                               "): check the address in the token with the operator");
  auto chain = parse_chain(response.body);
  if (!chain.ok()) return with_context(std::move(chain).error(), "the CA offered by " + address);
  for (const Certificate& certificate : *chain)
    if (equal_in_constant_time(certificate.thumbprint(), token.ca_fingerprint))
      return PinnedRoot{certificate.pem(), std::string(response.header("date"))};
  std::string offered = chain->empty() ? "none" : chain->front().thumbprint().substr(0, 16) + "…";
  return unauthenticated("the coordinator at " + address + " has another CA (" + offered + ") than the token (" +
                         token.ca_fingerprint.substr(0, 16) +
                         "…): it is another federation, it was set up anew, or something intercepts the connection. "
                         "Nothing secret was sent. Compare the fingerprints with the operator, or ask for a new token");
}

}  // namespace

std::string describe_clock_skew(std::string_view date, std::int64_t now_ms) {
  const time_t seconds = date.empty() ? -1 : curl_getdate(std::string(date).c_str(), nullptr);
  if (seconds < 0) return {};
  const std::int64_t there_ms = static_cast<std::int64_t>(seconds) * 1000;
  const std::int64_t difference = now_ms - there_ms;
  if (difference >= -kClockTolerance && difference <= kClockTolerance) return {};
  return "this machine's clock is " + format_duration(difference) + (difference < 0 ? " behind" : " ahead of") +
         " the coordinator's (here " + format_utc(now_ms) + ", there " + format_utc(there_ms) + "): set the one that is wrong";
}

Result<Profile> join(std::string_view text, const std::string& home, const EnrolOptions& options) {
  const std::int64_t now_ms = now_of(options);
  SKERRY_ASSIGN(const JoinToken token, parse_join_token(text, now_ms));
  if (has_profile(home))
    return already_exists(home + " has joined a federation already; use another directory, or remove its profile to join anew");
  SKERRY_TRY(make_directories(home, 0700));
  const std::string address = options.address.empty() ? token.address : options.address;
  SKERRY_ASSIGN(const PinnedRoot root, fetch_root(token, address, options));

  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::generate());
  SKERRY_ASSIGN(const std::string csr, make_signing_request(key, token.name));
  HttpRequest request;
  request.method = "POST";
  request.url = "https://" + address + "/api/v1/enrol";
  request.body = nlohmann::json{{"secret", token.secret}, {"csr", csr}}.dump();
  auto response = send(options, http_options(options, root.ca_pem), request);
  if (!response.ok()) return explain_with_clock(std::move(response).error(), root.date, now_ms);
  if (response->status != 200) return refusal("the coordinator refused the join token", *response, now_ms);
  SKERRY_ASSIGN(const Issued issued, parse_issued(*response));
  SKERRY_TRY(check_issued(issued, root.ca_pem, key.public_key(), token.role, token.name));
  const std::string kept = options.address.empty() ? issued.address : options.address;
  return create_profile(home, kept.empty() ? address : kept, issued.ca_pem, issued.chain_pem, key);
}

Result<Profile> renew(const Profile& profile, const EnrolOptions& options) {
  const std::int64_t now_ms = now_of(options);
  if (!within_grace(profile.expires_ms, now_ms))
    return failed_precondition("the certificate of " + std::string(role_name(profile.role)) + " '" + profile.name + "' expired on " +
                               format_utc(profile.expires_ms) + ", too long ago to be renewed; ask the operator for a new token "
                               "and join into a new directory (if that date is not past, this machine's clock is off)");
  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::load(profile.key_path()));
  HttpOptions http = http_options(options, profile.ca_pem);
  http.certificate_path = profile.certificate_path();
  http.key_path = profile.key_path();
  HttpRequest request;
  request.method = "POST";
  request.url = "https://" + (options.address.empty() ? profile.address : options.address) + "/api/v1/renew";
  SKERRY_ASSIGN(const std::string csr, make_signing_request(key, profile.name));
  request.body = nlohmann::json{{"csr", csr}}.dump();
  SKERRY_ASSIGN(const HttpResponse response, send(options, http, request));
  if (response.status != 200) {
    Error error = refusal("the coordinator refused to renew the certificate", response, now_ms);
    if (error.code == Code::kUnauthenticated) error.code = Code::kFailedPrecondition;
    return error;
  }
  SKERRY_ASSIGN(const Issued issued, parse_issued(response));
  SKERRY_TRY(check_issued(issued, profile.ca_pem, key.public_key(), profile.role, profile.name));
  return update_profile(profile, issued.ca_pem, issued.chain_pem);
}

Result<Profile> open_profile(const std::string& directory, const EnrolOptions& options) {
  SKERRY_ASSIGN(Profile profile, load_profile(directory));
  const std::int64_t now_ms = now_of(options);
  if (!renewal_due(profile, now_ms)) return profile;
  auto renewed = renew(profile, options);
  if (renewed.ok() || now_ms > profile.expires_ms) return renewed;
  return profile;
}

Result<void> check_identity(const Profile& profile, const EnrolOptions& options) {
  HttpOptions http = http_options(options, profile.ca_pem);
  http.certificate_path = profile.certificate_path();
  http.key_path = profile.key_path();
  HttpRequest request;
  request.url = "https://" + (options.address.empty() ? profile.address : options.address) + "/api/v1/whoami";
  SKERRY_ASSIGN(const HttpResponse response, send(options, http, request));
  if (response.status != 200) return refusal("the coordinator does not say who this is", response, now_of(options));
  const nlohmann::json json = nlohmann::json::parse(response.body, nullptr, false);
  const auto text = [&](const char* field) {
    const auto found = json.is_object() ? json.find(field) : json.end();
    return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  if (text("role") == role_name(profile.role) && text("name") == profile.name) return {};
  std::string message = "the coordinator does not accept this certificate: ";
  message += text("reason").empty() ? "it takes us for '" + text("role") + "' '" + text("name") + "'" : text("reason");
  if (const std::string skew = describe_clock_skew(response.header("date"), now_of(options)); !skew.empty()) message += "; " + skew;
  return unauthenticated(message);
}

}  // namespace skerry
