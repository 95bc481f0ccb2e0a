#include "server/identity/ca_commands.h"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <vector>

#include "common/os/files.h"
#include "server/identity/certificate_authority.h"

namespace skerry::server {
namespace {

void print_certificate(const char* what, const Certificate& certificate) {
  std::printf("%-16s %s\n%-16s valid to %s, SHA-256 %s\n", what, certificate.subject().c_str(), "",
              format_utc(certificate.not_after_ms()).c_str(), certificate.thumbprint().c_str());
}

Result<void> show(const std::string& home, std::int64_t) {
  SKERRY_ASSIGN(const CertificateAuthority authority, CertificateAuthority::open(home));
  std::printf("%-16s %s\n", "federation", authority.federation().c_str());
  for (const Certificate& root : authority.anchors().roots())
    print_certificate(root.thumbprint() == authority.root_fingerprint() ? "root" : "further root", root);
  for (const Certificate& issuing : authority.anchors().intermediates()) print_certificate("issuing CA", issuing);
  SKERRY_ASSIGN(const std::string pem, read_file(home + "/server.crt", 64 * 1024));
  SKERRY_ASSIGN(const Certificate server, Certificate::from_pem(pem));
  print_certificate("server", server);
  for (const std::string& host : server.dns_names()) std::printf("%-16s %s\n", "  for host", host.c_str());
  for (const std::string& address : server.ip_addresses()) std::printf("%-16s %s\n", "  for address", address.c_str());
  return {};
}

// Opens the CA of a home that no coordinator is using, and lets `change` work on it.
template <typename Change>
CaAction exclusively(Change change) {
  return [change](const std::string& home, std::int64_t now_ms) -> Result<void> {
    SKERRY_ASSIGN(CertificateAuthority authority, CertificateAuthority::open(home));
    SKERRY_ASSIGN(const HomeLock lock, HomeLock::acquire(home));
    return change(authority, now_ms);
  };
}

Result<void> start(CertificateAuthority& authority, std::int64_t now_ms) {
  SKERRY_TRY(authority.start_rollover(now_ms));
  std::printf("A new root is trusted besides the old one. Start the coordinator again and wait until every member has renewed\n"
              "(at most %lld days; `skerry node list` shows when each certificate ends), then run: skerry-server ca rollover switch\n",
              static_cast<long long>(kMemberLifetimeMs / kDayMs / 3 * 2));
  return {};
}

Result<void> switch_over(CertificateAuthority& authority, std::int64_t now_ms) {
  SKERRY_TRY(authority.switch_rollover(now_ms));
  std::printf("Certificates are issued by the new CA now; those of the old one stay good. Start the coordinator again and wait\n"
              "until every member has renewed once more, then run: skerry-server ca rollover finish\n");
  return {};
}

Result<void> finish(CertificateAuthority& authority, std::int64_t) {
  SKERRY_TRY(authority.finish_rollover());
  std::printf("Only the root %s is trusted now. Keep %s/ca/root.key offline.\n", authority.root_fingerprint().c_str(),
              authority.home().c_str());
  return {};
}

}  // namespace

void add_ca_commands(CLI::App& app, CaAction& chosen) {
  CLI::App* ca = app.add_subcommand("ca", "The certificate authority, while the coordinator is stopped")->require_subcommand(1);
  ca->add_subcommand("show", "Roots, issuing CA and the server's certificate")->callback([&chosen] { chosen = show; });
  CLI::App* hosts_command = ca->add_subcommand("hosts", "Replace the host names and addresses in the server's certificate");
  const auto hosts = std::make_shared<std::vector<std::string>>();  // shared with the callback, which App keeps
  hosts_command->add_option("HOST", *hosts, "Host names and IP addresses")->required();
  hosts_command->callback([&chosen, hosts] {
    chosen = exclusively([hosts](CertificateAuthority& authority, std::int64_t now_ms) {
      return authority.set_server_hosts(*hosts, now_ms);
    });
  });
  CLI::App* rollover = ca->add_subcommand("rollover", "Change to a new root, in three steps (docs/identity.md)")->require_subcommand(1);
  rollover->add_subcommand("start", "Step 1: make a new CA and trust it too")->callback([&chosen] { chosen = exclusively(start); });
  rollover->add_subcommand("switch", "Step 2: issue from the new CA")->callback([&chosen] { chosen = exclusively(switch_over); });
  rollover->add_subcommand("finish", "Step 3: distrust the old root")->callback([&chosen] { chosen = exclusively(finish); });
}

}  // namespace skerry::server
