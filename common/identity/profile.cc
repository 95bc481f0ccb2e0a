#include "common/identity/profile.h"

#include <nlohmann/json.hpp>

#include "common/os/files.h"

namespace skerry {
namespace {

constexpr std::uint64_t kMaxFile = 256 * 1024;

struct OwnChain {
  Certificate certificate;
  Identity identity;
};

// The identity in `chain_pem` whatever the time, and its certificate.
Result<OwnChain> own_chain(const std::string& ca_pem, const std::string& chain_pem) {
  SKERRY_ASSIGN(const TrustAnchors anchors, TrustAnchors::from_pem(ca_pem));
  SKERRY_ASSIGN(Certificate certificate, Certificate::from_pem(chain_pem));
  SKERRY_ASSIGN(Identity identity, authenticate(chain_pem, anchors, certificate.not_before_ms(), {}));
  return OwnChain{std::move(certificate), std::move(identity)};
}

Profile assemble(const std::string& directory, const std::string& address, const std::string& ca_pem,
                 const std::string& chain_pem, const OwnChain& own) {
  return {directory,         address,
          own.identity.federation, own.identity.role,
          own.identity.name, ca_pem,
          chain_pem,         own.certificate.thumbprint(),
          own.certificate.not_before_ms(), own.certificate.not_after_ms()};
}

Result<std::string> read_text(const std::string& path) {
  auto text = read_file(path, kMaxFile);
  if (!text.ok() && text.error().code == Code::kNotFound)
    return not_found("the profile is incomplete: " + path + " is missing; restore it or join again with a new token");
  return text;
}

}  // namespace

bool has_profile(const std::string& directory) { return path_exists(join_path(directory, "profile.json")); }

Result<Profile> load_profile(const std::string& directory) {
  const std::string json_path = join_path(directory, "profile.json");
  if (!path_exists(json_path))
    return not_found("there is no profile in " + directory +
                     ": join a federation first with a token (skerry-client join TOKEN, or skerry join TOKEN), or name "
                     "the right directory");
  SKERRY_ASSIGN(const std::string json_text, read_text(json_path));
  const nlohmann::json json = nlohmann::json::parse(json_text, nullptr, false);
  if (!json.is_object()) return data_loss(json_path + " is not a JSON object; restore it or join again");
  for (const char* field : {"address", "federation", "role", "name"})
    if (!json.contains(field) || !json[field].is_string())
      return data_loss(json_path + " lacks the field '" + field + "'; restore it or join again");
  if (json.value("version", 0) != 1)
    return failed_precondition(json_path + " is not of version 1; use the version of Skerry that wrote it");
  Profile paths;
  paths.directory = directory;
  SKERRY_ASSIGN(const std::string ca_pem, read_text(paths.ca_path()));
  SKERRY_ASSIGN(const std::string chain, read_text(paths.certificate_path()));
  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::load(paths.key_path()));
  auto own = own_chain(ca_pem, chain);
  if (!own.ok())
    return data_loss(paths.certificate_path() + " and " + paths.ca_path() + " do not fit together: " + own.error().message);
  if (!(own->identity.key == key.public_key()))
    return data_loss(paths.key_path() + " is not the key of " + paths.certificate_path() + "; restore both from one backup or join again");
  Profile profile = assemble(directory, json["address"].get<std::string>(), ca_pem, chain, *own);
  if (json["federation"] != profile.federation || json["role"] != role_name(profile.role) || json["name"] != profile.name)
    return data_loss(json_path + " names another member than " + profile.certificate_path() + " (" +
                     identity_uri(profile.federation, profile.role, profile.name) + "); restore both from one backup");
  return profile;
}

Result<Profile> create_profile(const std::string& directory, const std::string& address, const std::string& ca_pem,
                               const std::string& chain_pem, const PrivateKey& key) {
  if (has_profile(directory))
    return already_exists(directory + " is a member's profile already; choose another directory or remove it first");
  SKERRY_ASSIGN(const OwnChain own, own_chain(ca_pem, chain_pem));
  if (!(own.identity.key == key.public_key())) return invalid_argument("the certificate is not for this key");
  const Profile profile = assemble(directory, address, ca_pem, chain_pem, own);
  SKERRY_TRY(make_directories(directory, 0700));
  SKERRY_TRY(key.save(profile.key_path()));
  SKERRY_TRY(write_file_atomic(profile.ca_path(), ca_pem, 0600));
  SKERRY_TRY(write_file_atomic(profile.certificate_path(), chain_pem, 0600));
  const nlohmann::json json = {{"version", 1}, {"address", address}, {"federation", profile.federation},
                               {"role", role_name(profile.role)}, {"name", profile.name}};
  SKERRY_TRY(write_file_atomic(join_path(directory, "profile.json"), json.dump(2) + "\n", 0600));
  return profile;
}

Result<Profile> update_profile(const Profile& profile, const std::string& ca_pem, const std::string& chain_pem) {
  SKERRY_ASSIGN(const OwnChain own, own_chain(ca_pem, chain_pem));
  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::load(profile.key_path()));
  if (!(own.identity.key == key.public_key())) return invalid_argument("the new certificate is not for this member's key");
  if (own.identity.role != profile.role || own.identity.name != profile.name || own.identity.federation != profile.federation)
    return invalid_argument("the new certificate is for another member: " +
                            identity_uri(own.identity.federation, own.identity.role, own.identity.name));
  // In between, both the old and the new certificate must fit what ca.crt says.
  const bool new_anchors = ca_pem != profile.ca_pem;
  if (new_anchors) SKERRY_TRY(write_file_atomic(profile.ca_path(), ca_pem + profile.ca_pem, 0600));
  SKERRY_TRY(write_file_atomic(profile.certificate_path(), chain_pem, 0600));
  if (new_anchors) SKERRY_TRY(write_file_atomic(profile.ca_path(), ca_pem, 0600));
  return assemble(profile.directory, profile.address, ca_pem, chain_pem, own);
}

bool renewal_due(const Profile& profile, std::int64_t now_ms) {
  const std::int64_t lifetime = profile.expires_ms - profile.not_before_ms;
  return now_ms >= profile.not_before_ms + lifetime / 3 * 2;
}

}  // namespace skerry
