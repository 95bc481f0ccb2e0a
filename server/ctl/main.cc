// skerry: the operator's command.
#include <CLI/CLI.hpp>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "server/ctl/commands.h"
#include "server/ctl/console.h"

namespace {

std::string default_profile() {
  const char* home = std::getenv("HOME");
  return std::string(home ? home : ".") + "/.config/skerry";
}

int run(int argc, char** argv) {
  using namespace skerry::ctl;
  Context context;
  context.profile = default_profile();
  CLI::App app{"Runs, nodes, operators and models of a Skerry coordinator.", "skerry"};
  app.set_version_flag("--version", "skerry " SKERRY_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // --json and --profile may stand anywhere
  app.add_option("--profile", context.profile, "The operator's profile directory")
      ->envname("SKERRY_PROFILE")
      ->capture_default_str();
  app.add_flag("--json", context.json, "Print JSON, with the field names of proto/skerry/v1");
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 refused, 4 coordinator not reachable, 5 not found.\n"
      "Documentation: docs/operators.md");
  add_run_commands(app, context);
  add_member_commands(app, context);
  add_model_commands(app, context);
  add_plan_command(app, context);
  add_strategy_commands(app, context);
  add_cargo_commands(app, context);
  add_sdk_commands(app, context);
  add_doctor_command(app, context);
  app.add_subcommand("completion", "Print bash completion")->callback([&] {
    context.chosen = [&app]() -> skerry::Result<void> {
      std::printf("%s", bash_completion(app).c_str());
      return {};
    };
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  const auto result = context.chosen();
  if (result.ok()) return kDone;
  std::fprintf(stderr, "skerry: %s\n", printable(result.error().message).c_str());
  return exit_code(result.error());
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_DFL);
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "skerry: %s\n", error.what());
    return skerry::ctl::kFailed;
  }
}
