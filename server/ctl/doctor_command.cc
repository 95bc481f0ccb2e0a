// `skerry doctor`: looks at what usually goes wrong, and says how to mend it.
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "common/net/http_client.h"
#include "common/os/clock.h"
#include "common/os/files.h"
#include "common/os/process.h"
#include "server/ctl/commands.h"
#include "server/ctl/console.h"

namespace skerry::ctl {
namespace {

constexpr std::uint64_t kLittleDisk = 2'000'000'000;
constexpr double kClockToleranceS = 60;
constexpr std::uint64_t kCertificateWarningS = 7 * 24 * 3600;

struct Finding {
  std::string check;
  bool good = false;
  std::string found;
  std::string mend;  // empty where it is good
};

// The output of a short program, "" where it cannot be run.
std::string output_of(std::vector<std::string> command) {
  SpawnOptions options;
  options.command = std::move(command);
  options.environment = pick_environment({"PATH", "HOME"});
  options.pipe_stdin = false;
  options.pipe_stderr = false;
  auto child = Process::spawn(options);
  if (!child.ok()) return "";
  std::string output;
  const auto status = child->wait(10'000);
  char piece[4096];
  for (ssize_t n; (n = ::read(child->stdout_fd(), piece, sizeof piece)) > 0;)
    output.append(piece, static_cast<std::size_t>(n));
  return status && status->clean() ? output : "";
}

Finding check_sandbox() {
  Finding finding{"sandbox", false, "", ""};
  if (!find_program("bwrap").ok()) {
    finding.found = "bubblewrap is not installed";
    finding.mend =
        "apt-get install bubblewrap (daemons refuse to train without it unless their policy says sandbox = \"none\")";
    return finding;
  }
  const bool works =
      output_of({"bwrap", "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "echo", "inside"}) == "inside\n";
  finding.good = works;
  finding.found = works ? "bubblewrap works" : "bubblewrap is there, but cannot make its namespaces";
  if (!works)
    finding.mend =
        "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1; in Docker use --security-opt "
        "seccomp=unconfined";
  return finding;
}

Finding check_blas() {
  const std::string linked = output_of(
      {"sh", "-c",
       "readlink -f /etc/alternatives/libblas.so.3-x86_64-linux-gnu 2>/dev/null || ls /usr/lib/*/libopenblas.so.0"});
  const bool fast = linked.find("openblas") != std::string::npos || linked.find("mkl") != std::string::npos ||
                    linked.find("blis") != std::string::npos;
  return {
      "blas", fast, linked.empty() ? "no BLAS found" : printable(linked.substr(0, linked.find('\n'))),
      fast ? "" : "apt-get install libopenblas0-pthread: LibTorch is about 60 times slower with the reference BLAS"};
}

Finding check_disk(const std::string& directory) {
  const auto free = free_disk_bytes(directory);
  if (!free.ok()) return {"disk", false, free.error().message, "choose another directory"};
  const bool enough = *free >= kLittleDisk;
  return {"disk", enough, human_bytes(*free) + " free in " + directory,
          enough ? "" : "make room: below 2 GB a run of any size soon pauses"};
}

void check_coordinator(const Context& context, std::vector<Finding>& findings) {
  auto profile = load_profile(context.profile);
  if (!profile.ok()) {
    findings.push_back({"profile", false, profile.error().message,
                        "give the profile's directory with --profile or SKERRY_PROFILE, or join with a token"});
    return;
  }
  findings.push_back(
      {"profile", true,
       std::string(role_name(profile->role)) + " '" + profile->name + "' of '" + profile->federation + "'", ""});
  const SystemClock clock;
  const double left = (static_cast<double>(profile->expires_ms) - static_cast<double>(clock.unix_ms())) / 1000.0;
  findings.push_back({"certificate", left > static_cast<double>(kCertificateWarningS),
                      left > 0 ? human_seconds(left) + " left" : "expired",
                      left > static_cast<double>(kCertificateWarningS)
                          ? ""
                          : "ask another operator for a new invitation: skerry operator invite " + profile->name});
  HttpClient http(
      {.ca_pem = profile->ca_pem, .certificate_path = profile->certificate_path(), .key_path = profile->key_path()});
  auto health = http.send({.url = "https://" + profile->address + "/healthz"});
  findings.push_back(
      {"port", health.ok(), health.ok() ? profile->address + " answers over TLS 1.3" : health.error().message,
       health.ok() ? "" : "start the coordinator (skerry-server run), or open the port in the firewall"});
  if (!health.ok()) return;
  auto connection = context.connect();
  auto status = connection.ok() ? connection->status() : Result<v1::CoordinatorStatus>(connection.error());
  findings.push_back({"access", status.ok(),
                      status.ok() ? "the coordinator accepts this profile" : status.error().message,
                      status.ok() ? "" : "ask an operator for a new invitation"});
  if (!status.ok()) return;
  const double skew =
      std::abs(static_cast<double>(status->server_time_ms()) - static_cast<double>(clock.unix_ms())) / 1000.0;
  findings.push_back({"clock", skew < kClockToleranceS, human_number(skew) + " s from the coordinator's",
                      skew < kClockToleranceS ? "" : "set both clocks: timedatectl set-ntp true"});
  findings.push_back({"coordinator's disk", status->disk_free_bytes() >= kLittleDisk,
                      human_bytes(status->disk_free_bytes()) + " free",
                      status->disk_free_bytes() >= kLittleDisk
                          ? ""
                          : "make room where the coordinator's home is: below its minimum all runs pause"});
  findings.push_back({"coordinator's certificate", status->certificate_seconds_left() > kCertificateWarningS,
                      human_seconds(static_cast<double>(status->certificate_seconds_left())) + " left",
                      status->certificate_seconds_left() > kCertificateWarningS
                          ? ""
                          : "restart the coordinator: it renews its certificate at start and every hour"});
}

Result<void> doctor(const Context& context) {
  std::vector<Finding> findings;
  check_coordinator(context, findings);
  findings.push_back(check_disk("."));
  findings.push_back(check_blas());
  findings.push_back(check_sandbox());
  bool healthy = true;
  nlohmann::json json = nlohmann::json::array();
  for (const Finding& finding : findings) {
    healthy = healthy && finding.good;
    json.push_back(
        {{"check", finding.check}, {"good", finding.good}, {"found", finding.found}, {"mend", finding.mend}});
    if (context.json) continue;
    std::printf("%s  %-26s %s\n", finding.good ? "ok  " : "FAIL", finding.check.c_str(),
                printable(finding.found).c_str());
    if (!finding.good) std::printf("      %-26s mend: %s\n", "", finding.mend.c_str());
  }
  if (context.json) std::printf("%s\n", json.dump(2).c_str());
  if (!healthy) return Error{Code::kFailedPrecondition, "not everything is well"};
  return {};
}

}  // namespace

void add_doctor_command(CLI::App& app, Context& context) {
  app.add_subcommand("doctor", "Check port, certificates, clock, disk, BLAS and sandbox, each failure with its mend")
      ->callback([&context] { context.chosen = [&context] { return doctor(context); }; });
}

}  // namespace skerry::ctl
