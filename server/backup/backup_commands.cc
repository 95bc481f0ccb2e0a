#include "server/backup/backup_commands.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <csignal>
#include <cstdio>
#include <memory>

#include <unistd.h>

#include "common/crypto/x509.h"
#include "common/os/clock.h"
#include "common/os/random.h"
#include "server/backup/backup.h"

namespace skerry::server {
namespace {

using nlohmann::json;

constexpr std::uint64_t kQuietMs = 2'000;  // what takes less shows no progress

struct Arguments {
  std::string target;
  std::string backup;
  bool with_keys = false;
  bool link = false;
  bool as_json = false;
};

/// The program blocks these signals, so that the coordinator can wait for them; here they end the work.
Result<void> check_interrupted() {
  sigset_t pending;
  sigemptyset(&pending);
  sigpending(&pending);
  if (sigismember(&pending, SIGINT) == 1 || sigismember(&pending, SIGTERM) == 1)
    return Error{Code::kCancelled, "interrupted; nothing was left behind", false};
  return {};
}

/// Lines of progress on stderr, none for what is done soon.
class Progress {
 public:
  Result<void> operator()(const BackupProgress& progress) {
    const std::uint64_t now = clock_.monotonic_ms();
    if (now >= next_ms_) {
      next_ms_ = now + kQuietMs;
      std::fprintf(stderr, "%s: %llu of %llu MB\n", progress.what.c_str(), static_cast<unsigned long long>(progress.done_bytes >> 20),
                   static_cast<unsigned long long>(progress.total_bytes >> 20));
    }
    return check_interrupted();
  }

 private:
  SystemClock clock_;
  std::uint64_t next_ms_ = clock_.monotonic_ms() + kQuietMs;
};

OnBackupProgress show_progress() {
  return [progress = std::make_shared<Progress>()](const BackupProgress& done) { return (*progress)(done); };
}

std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

void print(const json& value) { std::printf("%s\n", value.dump(2, ' ', false, json::error_handler_t::replace).c_str()); }

json summary_json(const BackupSummary& summary) {
  return {{"path", summary.path},         {"federation", summary.federation}, {"epoch", summary.epoch},
          {"created_ms", summary.created_ms}, {"receipts", summary.receipts}, {"chain_head", summary.chain_head},
          {"files", summary.files},       {"bytes", summary.bytes},           {"with_keys", summary.with_keys}};
}

Result<void> backup(const Arguments& arguments, const std::string& home, std::int64_t now_ms) {
  BackupOptions options;
  options.with_keys = arguments.with_keys;
  options.link = arguments.link;
  options.now_ms = now_ms;
  options.progress = show_progress();
  SKERRY_ASSIGN(const BackupSummary made, make_backup(home, without_slash(arguments.target), options));
  if (arguments.as_json) {
    print(summary_json(made));
    return {};
  }
  std::printf("%s holds federation '%s' up to receipt %llu (epoch %s): %llu files, %llu bytes.\n", made.path.c_str(), made.federation.c_str(),
              static_cast<unsigned long long>(made.receipts), made.epoch.c_str(), static_cast<unsigned long long>(made.files),
              static_cast<unsigned long long>(made.bytes));
  std::printf(made.with_keys ? "It holds the federation's private keys: keep it as secret as the home itself, encrypted where others can read.\n"
                             : "It holds no private keys; keep a copy of those elsewhere (--with-keys), a restored coordinator needs them.\n");
  return {};
}

Result<void> restore(const Arguments& arguments, const std::string& home, std::int64_t now_ms) {
  SystemRandom random;
  SKERRY_ASSIGN(const RestoredHome restored,
                restore_backup(without_slash(arguments.backup), without_slash(home), random, now_ms, show_progress()));
  if (arguments.as_json) {
    print({{"home", home}, {"epoch", restored.epoch}, {"missing", restored.missing}, {"backup", summary_json(restored.backup)}});
    return {};
  }
  std::printf("%s is a coordinator's home again, as of receipt %llu, in the new epoch %s (the backup's was %s).\n", home.c_str(),
              static_cast<unsigned long long>(restored.backup.receipts), restored.epoch.c_str(), restored.backup.epoch.c_str());
  for (const std::string& file : restored.missing) std::printf("  put %s/%s there: the backup was made without keys\n", home.c_str(), file.c_str());
  std::printf("  repeat what was done since the backup: revocations, invitations, new runs\n  start it: skerry-server run --home %s\n", home.c_str());
  return {};
}

Result<void> verify(const Arguments& arguments, const std::string& home, std::int64_t now_ms) {
  SystemRandom random;
  std::string place = home;
  std::vector<std::string> findings;
  if (arguments.backup.empty()) {
    SKERRY_ASSIGN(findings, verify_home(home, random, now_ms, [](const std::string&) {}));
  } else {
    place = without_slash(arguments.backup);
    SKERRY_ASSIGN(CheckedBackup checked, check_backup(place, show_progress()));
    findings = std::move(checked.findings);
  }
  if (arguments.as_json) {
    print({{"path", place}, {"whole", findings.empty()}, {"findings", findings}});
  } else {
    for (const std::string& finding : findings) std::printf("%s\n", finding.c_str());
    if (findings.empty()) std::printf("Everything in %s is as it was written.\n", place.c_str());
  }
  if (findings.empty()) return {};
  return data_loss(place + ": " + std::to_string(findings.size()) + (findings.size() == 1 ? " thing is" : " things are") + " damaged or missing");
}

}  // namespace

void add_backup_commands(CLI::App& app, std::string& home, BackupAction& chosen) {
  const auto arguments = std::make_shared<Arguments>();
  const auto choose = [&chosen, arguments](auto action) {
    return [&chosen, arguments, action] {
      chosen = [arguments, action](const std::string& where, std::int64_t now_ms) { return action(*arguments, where, now_ms); };
    };
  };
  CLI::App* backup_command = app.add_subcommand("backup", "Copy the home of a running or stopped coordinator to a new directory");
  backup_command->add_option("--home", home, "The coordinator's directory");
  backup_command->add_option("DIR", arguments->target, "Where to; it must not be there yet")->required();
  backup_command->add_flag("--with-keys", arguments->with_keys, "Also the private keys of the CA, the coordinator and the first operator");
  backup_command->add_flag("--link", arguments->link, "Link files instead of copying them, where the disk is the same");
  backup_command->add_flag("--json", arguments->as_json, "Print the result as JSON");
  backup_command->callback(choose(backup));

  CLI::App* restore_command = app.add_subcommand("restore", "Make a new home from a backup, in a new epoch");
  restore_command->add_option("--home", home, "The home to make; it must be empty or absent");
  restore_command->add_option("BACKUP", arguments->backup, "A directory that `backup` made")->required();
  restore_command->add_flag("--json", arguments->as_json, "Print the result as JSON");
  restore_command->callback(choose(restore));

  CLI::App* verify_command = app.add_subcommand("verify", "Check everything that is stored: of a stopped coordinator, or of a backup");
  verify_command->add_option("--home", home, "The coordinator's directory");
  verify_command->add_option("--backup", arguments->backup, "A backup to check instead");
  verify_command->add_flag("--json", arguments->as_json, "Print the findings as JSON");
  verify_command->callback(choose(verify));
}

}  // namespace skerry::server
