// The subcommands of `skerry`, one family a file. Each adds itself to the parser; what it prints goes to stdout.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <string>

#include "server/ctl/connection.h"

namespace skerry::ctl {

/// What every command shares.
struct Context {
  std::string profile;
  bool json = false;
  /// The command that was chosen, to be run after parsing.
  std::function<Result<void>()> chosen;

  Result<Connection> connect() const { return Connection::open(profile); }
};

void add_run_commands(CLI::App& app, Context& context);
void add_member_commands(CLI::App& app, Context& context);
void add_model_commands(CLI::App& app, Context& context);
void add_plan_command(CLI::App& app, Context& context);
void add_cargo_commands(CLI::App& app, Context& context);
void add_strategy_commands(CLI::App& app, Context& context);
void add_sdk_commands(CLI::App& app, Context& context);
void add_doctor_command(CLI::App& app, Context& context);

/// A run spec whose data.tokenizer and model.initial name files (relative to `directory`): these are uploaded, and the
/// content ids stand in their places, on the same lines. Errors of reading and uploading.
Result<std::string> upload_named_files(Connection& connection, std::string spec, const std::string& directory);

/// Bash completion of every command and option of `app`.
std::string bash_completion(const CLI::App& app);

}  // namespace skerry::ctl
