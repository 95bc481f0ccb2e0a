// How a trainer is started: its command line, inside bubblewrap unless the holder's policy says otherwise.
#pragma once

#include <string>
#include <vector>

#include "common/base/result.h"

namespace skerry::client {

struct SandboxPlan {
  bool bubblewrap = true;
  std::vector<std::string> command;    ///< the trainer; absolute
  std::vector<std::string> read_only;  ///< data, cache, the trainer's own files, what policy adds
  std::vector<std::string> read_write; ///< work and state directories
  std::vector<std::string> devices;
  bool network = false;                ///< this machine's, where the policy grants it to an island; else none but a loopback
  std::string working_directory;
  std::string policy_path;             ///< for messages
};

/// The command to spawn. In the sandbox: no network unless granted, new process ids, the system read-only under /usr, nothing of the
/// holder's files but the listed paths, an empty /tmp, killed with its parent.
/// FAILED_PRECONDITION where bubblewrap is wanted and missing, naming the policy line to change; NOT_FOUND for a trainer
/// that is not there.
Result<std::vector<std::string>> sandbox_command(const SandboxPlan& plan);

/// "… bubblewrap could not start …; sandbox = "none" under [trainer] in …/policy.toml (line 42) …".
std::string sandbox_advice(const std::string& policy_path);

}  // namespace skerry::client
