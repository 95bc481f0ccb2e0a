// Identities for a fleet: invited and joined as any data holder's, once; afterwards their profiles are read from disk.
#pragma once

#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/identity/profile.h"
#include "tests/bench/fleet/operator.h"

namespace skerry::bench {

/// The profiles of nodes `prefix`-0 … `prefix`-(count-1) below `directory`. Those that are missing there, or were made for
/// another federation, join through the coordinator with tokens that `inviter` asks for.
Result<std::vector<Profile>> enrol_fleet(Operator& inviter, const std::string& directory, const std::string& prefix, unsigned count);

/// The profiles of the nodes whose tokens stand in `token_file`, one a line; those that joined before are read.
Result<std::vector<Profile>> enrol_with_tokens(const std::string& token_file, const std::string& directory);

}  // namespace skerry::bench
