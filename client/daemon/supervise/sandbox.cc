#include "client/daemon/supervise/sandbox.h"

#include <sys/stat.h>
#include <unistd.h>

#include "common/os/files.h"
#include "common/os/process.h"

namespace skerry::client {
namespace {

bool is_symlink(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0 && S_ISLNK(info.st_mode);
}

/// " (line 42)" of the line that says `sandbox`, or nothing.
std::string sandbox_line(const std::string& policy_path) {
  const auto text = read_file(policy_path, 1 << 20);
  if (!text.ok()) return "";
  unsigned line = 1;
  for (std::size_t at = 0; at < text->size(); ++line) {
    const auto end = std::min(text->find('\n', at), text->size());
    auto start = at;
    while (start < end && ((*text)[start] == ' ' || (*text)[start] == '\t')) ++start;
    if (text->compare(start, 7, "sandbox") == 0) return " (line " + std::to_string(line) + ")";
    at = end + 1;
  }
  return "";
}

}  // namespace

std::string sandbox_advice(const std::string& policy_path) {
  return "the trainer's sandbox could not be made; let unprivileged users make namespaces (on Debian: sysctl "
         "kernel.unprivileged_userns_clone=1; in containers: a profile that allows them), or accept a trainer without a sandbox by "
         "sandbox = \"none\" under [trainer] in " +
         policy_path + sandbox_line(policy_path);
}

Result<std::vector<std::string>> sandbox_command(const SandboxPlan& plan) {
  if (plan.command.empty() || ::access(plan.command.front().c_str(), X_OK) != 0)
    return not_found("there is no trainer at " + (plan.command.empty() ? std::string("(no command)") : plan.command.front()) +
                     "; install skerry-trainer beside skerry-client, or name one by command under [trainer] in " + plan.policy_path);
  if (!plan.bubblewrap) return plan.command;
  auto bwrap = find_program("bwrap");
  if (!bwrap.ok())
    return failed_precondition("bubblewrap is not installed (Debian: apt install bubblewrap), and " + sandbox_advice(plan.policy_path));
  std::vector<std::string> command{*bwrap, "--die-with-parent", "--unshare-all", "--new-session", "--cap-drop", "ALL", "--hostname", "trainer",
                                   "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--ro-bind", "/usr", "/usr"};
  if (plan.network) command.insert(command.begin() + 3, "--share-net");
  const auto add = [&command](std::initializer_list<std::string> words) { command.insert(command.end(), words); };
  for (const char* directory : {"/bin", "/sbin", "/lib", "/lib32", "/lib64"}) {
    if (is_symlink(directory)) add({"--symlink", std::string("usr") + directory, directory});
    else if (path_exists(directory)) add({"--ro-bind", directory, directory});
  }
  // What the dynamic linker and the choice of BLAS need; no other file of /etc.
  for (const char* file : {"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"})
    add({"--ro-bind-try", file, file});
  add({"--ro-bind-try", "/sys/devices/system/cpu", "/sys/devices/system/cpu"});
  if (!plan.devices.empty()) add({"--ro-bind-try", "/sys", "/sys"});
  for (const auto& device : plan.devices) add({"--dev-bind", device, device});
  // Read-only first, so that a work directory below a read-only path stays writable.
  for (const auto& path : plan.read_only) add({"--ro-bind", path, path});
  for (const auto& path : plan.read_write) add({"--bind", path, path});
  add({"--chdir", plan.working_directory, "--"});
  command.insert(command.end(), plan.command.begin(), plan.command.end());
  return command;
}

}  // namespace skerry::client
