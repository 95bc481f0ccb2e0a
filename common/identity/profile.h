// A profile: the four files by which a program is a member of a federation. The client's home holds one, and so does an
// operator's directory.
//
//   ca.crt        trust anchors, PEM            cert.pem      own chain, leaf first, PEM
//   key.pem       own key, PEM, mode 0600       profile.json  {"address","federation","role","name","version":1}
#pragma once

#include <cstdint>
#include <string>

#include "common/base/result.h"
#include "common/crypto/keys.h"
#include "common/crypto/x509.h"
#include "common/identity/authenticate.h"

namespace skerry {

struct Profile {
  std::string directory;
  std::string address;     ///< "host:port"
  std::string federation;
  Role role = Role::kNode;
  std::string name;
  std::string ca_pem;      ///< trust anchors
  std::string chain_pem;   ///< own chain, leaf first
  std::string thumbprint;  ///< of the own certificate
  std::int64_t not_before_ms = 0;
  std::int64_t expires_ms = 0;

  std::string ca_path() const { return directory + "/ca.crt"; }
  std::string certificate_path() const { return directory + "/cert.pem"; }
  std::string key_path() const { return directory + "/key.pem"; }
};

/// Whether `directory` holds a profile.json.
bool has_profile(const std::string& directory);

/// Reads and checks a profile: every file is there, the key fits the certificate, the certificate leads to ca.crt, its
/// URI says what profile.json says. Does not look at the time. NOT_FOUND (says to join first), INVALID_ARGUMENT or DATA_LOSS (names the
/// file and what is wrong with it), PERMISSION_DENIED.
Result<Profile> load_profile(const std::string& directory);

/// Writes a new profile: the directory (0700) if need be, then each file whole or not at all with mode 0600, profile.json
/// last. ALREADY_EXISTS if one is there. Takes federation, role and name from the certificate.
Result<Profile> create_profile(const std::string& directory, const std::string& address, const std::string& ca_pem,
                               const std::string& chain_pem, const PrivateKey& key);

/// Replaces certificate and trust anchors after a renewal (the key stays). Each file is replaced whole.
Result<Profile> update_profile(const Profile& profile, const std::string& ca_pem, const std::string& chain_pem);

/// Two thirds of the certificate's lifetime have passed.
bool renewal_due(const Profile& profile, std::int64_t now_ms);

}  // namespace skerry
