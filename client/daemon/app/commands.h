// The commands of skerry-client but `run`: each returns its exit code and has said everything a person needs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/daemon/app/home.h"
#include "common/base/result.h"

namespace skerry::client {

// Exit codes.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitRefused = 3;      ///< by policy, by the coordinator, or because identity is not accepted
inline constexpr int kExitNotReached = 4;   ///< no coordinator, no daemon

/// Prints "skerry-client: …" to stderr and gives the code that fits the error.
int report(const Error& error);

/// Writes a table: columns padded, two spaces between.
std::string table_text(const std::vector<std::vector<std::string>>& rows);

int join_command(const Home& home, const std::string& token, const std::string& proxy);
int status_command(const Home& home, bool as_json);
int pause_command(const Home& home, bool now);
int resume_command(const Home& home);
/// Where a daemon runs it does the leaving; else one is started for just that.
int leave_command(const Home& home, const std::string& reason, const std::string& proxy, const std::string& program_directory);

int policy_show_command(const Home& home);
int policy_template_command(const Home& home);
int policy_test_command(const Home& home, const std::string& spec_path, bool as_json);

int data_add_command(const Home& home, const std::string& name, const std::string& kind, const std::string& path, double holdout,
                     const std::string& schema, const std::string& indices);
/// An empty name checks every set; `update` takes over what is there now.
int data_check_command(const Home& home, const std::string& name, bool update);
int data_list_command(const Home& home, bool as_json);
int data_remove_command(const Home& home, const std::string& name);

int egress_list_command(const Home& home, const std::string& run, std::uint64_t last, bool as_json);
int egress_verify_command(const Home& home);

/// Writes the newest model of a run that this node has as safetensors into `directory`.
int model_fetch_command(const Home& home, const std::string& run, const std::string& directory);

/// Looks at everything a daemon needs; says how to mend what is wrong.
int check_command(const Home& home, const std::string& proxy, const std::string& program_directory);

}  // namespace skerry::client
