// skerry-client: the daemon beside private data, and its holder's command.
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <string>

#include "client/daemon/app/commands.h"
#include "client/daemon/app/daemon.h"
#include "common/os/files.h"

namespace skerry::client {
namespace {

constexpr const char* kFooter =
    "Exit codes: 0 done, 1 failure, 2 wrong usage, 3 refused (by policy or identity), 4 coordinator or daemon not reached.\n"
    "docs/data-holders.md is the guide for data holders.";

std::string default_home() {
  const char* user = std::getenv("HOME");
  return std::string(user != nullptr ? user : ".") + "/.skerry-client";
}

std::string program_directory() {
  char path[4096];
  const auto length = ::readlink("/proc/self/exe", path, sizeof path);
  return length > 0 ? parent_directory(std::string(path, static_cast<std::size_t>(length))) : ".";
}

int run_command(const Home& home, const std::string& proxy, bool log_json) {
  start_log(log_json);
  DaemonOptions options;
  options.home = home;
  options.proxy = proxy;
  options.program_directory = program_directory();
  auto daemon = Daemon::create(std::move(options));
  if (!daemon.ok()) return report(daemon.error());
  switch ((*daemon)->run()) {
    case DaemonEnd::kStopped:
    case DaemonEnd::kLeft: return kExitOk;
    case DaemonEnd::kNotReached: return kExitNotReached;
    case DaemonEnd::kFailed: break;
  }
  return kExitFailure;
}

int run_program(int count, char** words) {
  CLI::App app{"Stands beside private data: trains where the data is, and lets out what its holder's policy allows."};
  app.name("skerry-client");
  app.footer(kFooter);
  app.set_version_flag("--version", "skerry-client " SKERRY_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  Home home{default_home()};
  std::string proxy;
  app.add_option("--home", home.path, "directory of this node: identity, policy, outbox")->envname("SKERRY_CLIENT_HOME")->capture_default_str();
  app.add_option("--proxy", proxy, "CONNECT proxy for every connection, http://HOST:PORT")->envname("SKERRY_PROXY");
  std::function<int()> action;

  std::string token;
  auto* join = app.add_subcommand("join", "Join a federation with the one-time token of its operator");
  join->add_option("token", token, "what `skerry node invite` printed")->required();
  join->callback([&] { action = [&] { return join_command(home, token, proxy); }; });

  bool log_json = false;
  auto* run = app.add_subcommand("run", "Run the daemon in the foreground until SIGTERM");
  run->add_flag("--log-json", log_json, "log one JSON object a line");
  run->callback([&] { action = [&] { return run_command(home, proxy, log_json); }; });

  bool as_json = false;
  auto* status = app.add_subcommand("status", "What the daemon is doing");
  status->add_flag("--json", as_json, "as JSON");
  status->callback([&] { action = [&] { return status_command(home, as_json); }; });

  bool now = false;
  auto* pause = app.add_subcommand("pause", "Take no new work; what has begun is finished");
  pause->add_flag("--now", now, "cancel what has begun, too");
  pause->callback([&] { action = [&] { return pause_command(home, now); }; });
  app.add_subcommand("resume", "Take work again, and connect now if the daemon is waiting")->callback([&] {
    action = [&] { return resume_command(home); };
  });

  std::string reason;
  auto* leave = app.add_subcommand("leave", "Leave the federation: every run goes on without this node");
  leave->add_option("--reason", reason, "a sentence for the operator");
  leave->callback([&] {
    action = [&] {
      start_log(false);
      return leave_command(home, reason, proxy, program_directory());
    };
  });

  std::string spec;
  auto* policy = app.add_subcommand("policy", "What this node allows");
  policy->require_subcommand(1);
  auto* test = policy->add_subcommand("test", "Explain what the policy says about a run; exit code 0 allowed, 3 refused");
  test->add_option("spec", spec, "run spec: RUN.toml, or resolved RUN.json")->required();
  test->add_flag("--json", as_json, "as JSON");
  test->callback([&] { action = [&] { return policy_test_command(home, spec, as_json); }; });
  policy->add_subcommand("show", "The policy in force, with defaults")->callback([&] { action = [&] { return policy_show_command(home); }; });
  policy->add_subcommand("template", "Print a commented policy that allows nothing")->callback([&] {
    action = [&] { return policy_template_command(home); };
  });

  std::string name, kind, path, schema, indices;
  double holdout = 0.1;
  auto* data = app.add_subcommand("data", "The data sets of this node");
  data->require_subcommand(1);
  auto* add = data->add_subcommand("add", "Look at a data set and add it to the catalogue");
  add->add_option("name", name, "your name for it")->required();
  add->add_option("--kind", kind, "text, jsonl, tokens, idx or csv")->required()->check(CLI::IsMember({"text", "jsonl", "tokens", "idx", "csv"}));
  add->add_option("--path", path, "directory or file")->required();
  add->add_option("--holdout", holdout, "fraction kept for measuring, the last part of the data")->capture_default_str();
  add->add_option("--schema", schema, "JSON; default: what the data says (csv: the last column is the label)");
  add->add_option("--indices", indices, "file with the rows that belong to the set, one number a line (idx, csv)");
  add->callback([&] { action = [&] { return data_add_command(home, name, kind, path, holdout, schema, indices); }; });
  bool update = false;
  auto* check_data = data->add_subcommand("check", "Look again at a data set, or at all");
  check_data->add_option("name", name, "one data set; default: all");
  check_data->add_flag("--update", update, "take what is there now into the catalogue");
  check_data->callback([&] { action = [&] { return data_check_command(home, name, update); }; });
  auto* list_data = data->add_subcommand("list", "The catalogue");
  list_data->add_flag("--json", as_json, "as JSON");
  list_data->callback([&] { action = [&] { return data_list_command(home, as_json); }; });
  auto* remove = data->add_subcommand("remove", "Take a data set out of the catalogue; the data itself stays");
  remove->add_option("name", name, "the data set")->required();
  remove->callback([&] { action = [&] { return data_remove_command(home, name); }; });

  std::string run_id;
  std::uint64_t last = 0;
  auto* egress = app.add_subcommand("egress", "Everything that left this machine");
  egress->require_subcommand(1);
  auto* list_egress = egress->add_subcommand("list", "The ledger's rows");
  list_egress->add_option("--run", run_id, "of one run only");
  list_egress->add_option("--last", last, "the last N rows only");
  list_egress->add_flag("--json", as_json, "as JSON");
  list_egress->callback([&] { action = [&] { return egress_list_command(home, run_id, last, as_json); }; });
  egress->add_subcommand("verify", "Check the chain of hashes; names the first altered row")->callback([&] {
    action = [&] { return egress_verify_command(home); };
  });

  std::string directory;
  auto* model = app.add_subcommand("model", "Models this node has received");
  model->require_subcommand(1);
  auto* fetch = model->add_subcommand("fetch", "Write the newest model of a run as safetensors");
  fetch->add_option("run", run_id, "the run's id, its beginning, or its name")->required();
  fetch->add_option("-o,--output", directory, "directory; default: the run's id");
  fetch->callback([&] { action = [&] { return model_fetch_command(home, run_id, directory.empty() ? run_id : directory); }; });

  app.add_subcommand("check", "Look at everything the daemon needs, and say how to mend what is wrong")->callback([&] {
    action = [&] { return check_command(home, proxy, program_directory()); };
  });

  try {
    app.parse(count, words);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? kExitOk : kExitUsage;
  }
  while (home.path.size() > 1 && home.path.ends_with('/')) home.path.pop_back();
  if (!home.path.starts_with('/')) {
    char here[4096];
    if (::getcwd(here, sizeof here) != nullptr) home.path = std::string(here) + "/" + home.path;
  }
  return action();
}

}  // namespace
}  // namespace skerry::client

int main(int count, char** words) {
  try {
    return skerry::client::run_program(count, words);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "skerry-client: %s\n", error.what());
    return skerry::client::kExitFailure;
  }
}
