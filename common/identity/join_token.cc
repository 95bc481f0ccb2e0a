#include "common/identity/join_token.h"

#include <nlohmann/json.hpp>

#include "common/base/encoding_text.h"
#include "common/crypto/sha256.h"

namespace skerry {
namespace {

constexpr std::string_view kPrefix = "skj1.";
constexpr std::size_t kChecksumBytes = 6;
constexpr std::size_t kMaxToken = 4096;
constexpr std::string_view kSpaces = " \t\r\n";

std::string checksum(std::string_view text) { return to_base64url(sha256(text)).substr(0, kChecksumBytes * 4 / 3); }

bool is_other_version(std::string_view text) {
  return text.size() > 5 && text.substr(0, 3) == "skj" && text[3] >= '0' && text[3] <= '9' && text.substr(0, 5) != kPrefix;
}

Error incomplete(std::string_view detail) {
  return invalid_argument("the join token is incomplete or was changed (" + std::string(detail) +
                          "); copy the whole token again, from \"skj1.\" to its end");
}

}  // namespace

std::string format_join_token(const JoinToken& token) {
  const nlohmann::json fields = {{"address", token.address}, {"ca", token.ca_fingerprint},
                                 {"secret", token.secret},   {"expires_ms", token.expires_ms},
                                 {"role", role_name(token.role)}, {"name", token.name}};
  const std::string text = std::string(kPrefix) + to_base64url(fields.dump());
  return text + "." + checksum(text);
}

Result<JoinToken> parse_join_token(std::string_view text, std::int64_t now_ms) {
  const std::size_t begin = text.find_first_not_of(kSpaces);
  if (begin == text.npos) return invalid_argument("the join token is empty; give the word that the operator's invite command printed");
  text = text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
  if (is_other_version(text))
    return invalid_argument("the join token is of version '" + std::string(text.substr(0, 4)) +
                            "', this program understands 'skj1'; use a program of the coordinator's version");
  if (text.substr(0, kPrefix.size()) != kPrefix)
    return invalid_argument("this is not a join token: those begin with \"skj1.\"; ask the operator to invite this machine");
  if (text.size() > kMaxToken) return incomplete("it is too long");
  const std::size_t dot = text.rfind('.');
  if (dot < kPrefix.size()) return incomplete("its checksum is missing");
  if (text.substr(dot + 1) != checksum(text.substr(0, dot))) return incomplete("its checksum does not fit");
  auto decoded = from_base64url(text.substr(kPrefix.size(), dot - kPrefix.size()));
  if (!decoded.ok()) return incomplete(decoded.error().message);
  const nlohmann::json fields = nlohmann::json::parse(*decoded, nullptr, false);
  if (!fields.is_object()) return incomplete("its content is no JSON object");
  JoinToken token;
  std::string role;
  for (const auto& [name, target] : {std::pair<const char*, std::string*>{"address", &token.address},
                                     {"ca", &token.ca_fingerprint}, {"secret", &token.secret},
                                     {"role", &role}, {"name", &token.name}}) {
    const auto field = fields.find(name);
    if (field == fields.end() || !field->is_string() || field->get_ref<const std::string&>().empty())
      return incomplete(std::string("its field '") + name + "' is missing");
    *target = field->get<std::string>();
  }
  const auto expires = fields.find("expires_ms");
  if (expires == fields.end() || !expires->is_number_integer()) return incomplete("its field 'expires_ms' is missing");
  token.expires_ms = expires->get<std::int64_t>();
  auto parsed_role = parse_role(role);
  if (!parsed_role.ok()) return with_context(std::move(parsed_role).error(), "join token");
  token.role = *parsed_role;
  SKERRY_TRY(check_member_name(token.name));
  if (token.ca_fingerprint.size() != 64) return incomplete("its CA fingerprint is no SHA-256");
  if (now_ms > token.expires_ms)
    return failed_precondition("the join token expired on " + format_utc(token.expires_ms) + ", " +
                               format_duration(now_ms - token.expires_ms) +
                               " ago; ask the operator for a new one (if that date is not past, this machine's clock is off)");
  return token;
}

}  // namespace skerry
