// skerry-server: the coordinator.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <grpcpp/impl/service_type.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <poll.h>
#include <unistd.h>

#include "common/base/encoding_text.h"
#include "common/crypto/x509.h"
#include "common/os/clock.h"
#include "common/os/files.h"
#include "common/os/random.h"
#include "common/os/service_manager.h"
#include "server/backup/backup.h"
#include "server/backup/backup_commands.h"
#include "server/coordinator/control_service.h"
#include "server/coordinator/coordinator.h"
#include "server/coordinator/fleet_service.h"
#include "server/identity/ca_commands.h"
#include "server/identity/certificate_authority.h"
#include "server/identity/members.h"
#include "server/identity/ticket.h"
#include "server/plugin/plugin.h"
#include "server/server_config.h"
#include "server/web/http_api.h"

namespace skerry::server {
namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;
constexpr std::uint64_t kMaxCertificateBytes = 64 * 1024;
constexpr std::chrono::milliseconds kDrain{5000};
constexpr std::size_t kMaxLogBytes = 16 * 1024;

int fail(const Error& error) {
  std::fprintf(stderr, "skerry-server: %s\n", error.message.c_str());
  return error.code == Code::kInvalidArgument ? kExitUsage : kExitFailure;
}

// A log line's text: one line, whatever a peer had its share in; as JSON with its quotes escaped.
class LogText final : public spdlog::custom_flag_formatter {
 public:
  explicit LogText(bool as_json) : as_json_(as_json) {}
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    std::string text = one_line({message.payload.data(), message.payload.size()}, kMaxLogBytes);
    if (as_json_) text = nlohmann::json(std::move(text)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override { return std::make_unique<LogText>(as_json_); }

 private:
  bool as_json_;
};

struct InitArguments {
  std::string federation = "skerry";
  std::string address;
  std::string listen = "0.0.0.0";
  std::string operator_name = "operator";
  std::vector<std::string> hosts;
};

Result<void> init(const std::string& home, const InitArguments& arguments) {
  SKERRY_ASSIGN(const HostPort address, parse_host_port(arguments.address));
  SKERRY_TRY(make_directories(home));
  InitOptions options;
  options.federation = arguments.federation;
  options.hosts = arguments.hosts;
  options.hosts.push_back(address.host);
  for (const char* local : {"localhost", "127.0.0.1"})
    if (std::find(options.hosts.begin(), options.hosts.end(), local) == options.hosts.end()) options.hosts.push_back(local);
  options.address = arguments.address;
  options.operator_name = arguments.operator_name;
  options.now_ms = static_cast<std::int64_t>(SystemClock().unix_ms());
  SKERRY_TRY(init_home(home, options));
  ServerConfig config;
  config.federation = arguments.federation;
  config.listen = arguments.listen;
  config.port = address.port;
  config.address = arguments.address;
  SKERRY_TRY(save_server_config(home, config));
  std::printf("The coordinator of federation '%s' is ready in %s.\n\n"
              "  start it                 skerry-server run --home %s\n"
              "  be its operator          export SKERRY_PROFILE=%s/operator   (move this directory to your own machine)\n"
              "  invite a data holder     skerry node invite NAME\n\n"
              "Keep %s/ca/root.key offline: only a change of the root needs it.\n",
              arguments.federation.c_str(), home.c_str(), home.c_str(), home.c_str(), home.c_str());
  return {};
}

// Thousands of connections need as many descriptors as the system lets us have.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
  }
}

// Every rule this coordinator offers. A plug-in that cannot be loaded is an error: runs may depend on it.
Result<strategies::RuleCatalogue> load_plugins(const ServerConfig& config) {
  std::vector<std::shared_ptr<Plugin>> plugins;
  for (const PluginConfig& wanted : config.plugins) {
    SKERRY_ASSIGN(std::shared_ptr<Plugin> plugin, Plugin::load(wanted, {.threads = config.threads}));
    const PluginDescription& said = plugin->description();
    std::string names;
    for (const strategies::PartInfo& rule : said.rules) names += (names.empty() ? "" : ", ") + rule.name;
    spdlog::info("plug-in {} {} offers {}", said.name, said.version, names);
    plugins.push_back(std::move(plugin));
  }
  return rules_with(plugins);
}

std::string shown(const strategies::Value& value) {
  return std::visit([](const auto& known) { return nlohmann::json(known).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }, value);
}

// What a plug-in offers, and the lines that load it.
Result<void> check_plugin(const std::string& path) {
  SKERRY_ASSIGN(const PluginConfig config, plugin_config(path));
  SKERRY_ASSIGN(const std::shared_ptr<Plugin> plugin, Plugin::load(config, {.threads = 1}));
  SKERRY_TRY(rules_with({plugin}));
  const PluginDescription& said = plugin->description();
  std::printf("# %s %s\n", said.name.c_str(), said.version.c_str());
  for (const strategies::PartInfo& rule : said.rules) {
    std::printf("#   %s: %s\n", rule.name.c_str(), rule.meaning.c_str());
    for (const strategies::ParameterInfo& parameter : rule.parameters)
      std::printf("#     %s = %s: %s\n", parameter.name.c_str(), shown(parameter.fallback).c_str(), parameter.meaning.c_str());
  }
  std::printf("[[plugins]]\npath = %s\nsha256 = \"%s\"\n", shown(config.path).c_str(), config.sha256.c_str());
  return {};
}

struct RunArguments {
  bool log_json = false;
  bool measure = false;
  bool restored = false;
  std::string ready_file;
};

Result<void> run(const std::string& home, const RunArguments& arguments, int signals) {
  SKERRY_ASSIGN(const ServerConfig config, load_server_config(home));
  SKERRY_ASSIGN(const HomeLock lock, HomeLock::acquire(home));
  SKERRY_ASSIGN(strategies::RuleCatalogue rules, load_plugins(config));
  SystemClock clock;
  SystemRandom random;
  Metrics metrics;
  const auto unix_now = [&clock] { return static_cast<std::int64_t>(clock.unix_ms()); };

  SKERRY_TRY(check_identity(home));
  SKERRY_ASSIGN(const CertificateAuthority authority, CertificateAuthority::open(home));
  SKERRY_TRY(authority.renew_server_certificate(unix_now()));
  SKERRY_ASSIGN(Store store, Store::open(home, random, {.restored = arguments.restored, .now_ms = unix_now()}));
  SKERRY_ASSIGN(const std::unique_ptr<CargoStore> cargo, CargoStore::open(home));
  SKERRY_TRY(store.check_files(*cargo));
  SKERRY_ASSIGN(sqlite::Database member_database, sqlite::Database::open(join_path(home, "skerry.db")));
  Members members(std::move(member_database), authority, config.address);
  SKERRY_ASSIGN(Revocations revocations, members.revocations());
  Authenticator authenticator(authority.anchors(), std::move(revocations));
  SKERRY_ASSIGN(std::string ticket_key, load_ticket_key(home));

  CoordinatorOptions options;
  options.name = config.federation;
  options.ticket_key = std::move(ticket_key);
  options.heartbeat_ms = config.heartbeat_ms;
  options.threads = config.threads;
  options.rules = std::move(rules);
  options.certificate_expires_ms = [home]() -> std::int64_t {
    const auto pem = read_file(join_path(home, "server.crt"), kMaxCertificateBytes);
    const auto chain = pem.ok() ? parse_chain(*pem) : Result<std::vector<Certificate>>(pem.error());
    return chain.ok() && !chain->empty() ? chain->front().not_after_ms() : 0;
  };
  Coordinator coordinator(options, {clock, random, store, *cargo, members, authenticator, metrics});
  coordinator.on_fatal([](const Error&) { std::_Exit(kExitFailure); });  // what was accepted is safe; a restart goes on from it

  Gate gate(authenticator, clock, {}, &metrics);
  const std::unique_ptr<grpc::Service> fleet = make_fleet_service(gate, coordinator);
  const std::unique_ptr<grpc::Service> control = make_control_service(gate, coordinator);
  PortOptions port_options;
  port_options.address = config.listen;
  port_options.port = config.port;
  port_options.certificate_file = join_path(home, "server.crt");
  port_options.key_file = join_path(home, "server.key");
  port_options.gate = &gate;
  port_options.clock = &clock;
  port_options.metrics = &metrics;
  port_options.cargo = cargo.get();
  port_options.cargo_access = coordinator.cargo_access();
  port_options.measure_routes = arguments.measure;
  SKERRY_TRY(coordinator.start());
  SKERRY_ASSIGN(const std::unique_ptr<Port> port,
                Port::open(port_options, {fleet.get(), control.get()},
                           make_http_router({coordinator, members, authority, metrics, clock, gate})));
  coordinator.attach(*port);
  spdlog::info("listening on {} port {}", config.listen, port->port());
  if (!arguments.ready_file.empty()) SKERRY_TRY(write_file_atomic(arguments.ready_file, std::to_string(port->port()) + "\n", 0644));
  const ServiceManager manager = ServiceManager::from_environment();
  manager.ready();

  constexpr std::int64_t kRenewalCheckMs = 3'600'000;
  std::int64_t renewal_checked_ms = clock.monotonic_ms();
  const auto alive_every_ms = static_cast<std::int64_t>(manager.alive_every_ms());
  const std::int64_t every_ms = alive_every_ms > 0 ? std::min(alive_every_ms, kRenewalCheckMs) : kRenewalCheckMs;
  for (;;) {
    pollfd waiting{signals, POLLIN, 0};
    const int ready = poll(&waiting, 1, static_cast<int>(every_ms));
    if (ready == 0) {
      // Only a coordinator that still answers is alive.
      coordinator.status([manager](const Result<v1::CoordinatorStatus>&) { manager.alive(); });
      if (clock.monotonic_ms() - renewal_checked_ms < kRenewalCheckMs) continue;
      renewal_checked_ms = clock.monotonic_ms();
      if (auto renewed = authority.renew_server_certificate(unix_now()); !renewed.ok()) spdlog::error("{}", renewed.error().message);
      else if (*renewed) (void)port->reload_certificate().ok();
      continue;
    }
    signalfd_siginfo signal{};
    if (ready > 0 && read(signals, &signal, sizeof signal) == static_cast<ssize_t>(sizeof signal) && signal.ssi_signo != SIGHUP) break;
  }
  spdlog::info("stopping");
  manager.stopping();
  coordinator.stop();
  port->shutdown(kDrain);
  return {};
}

int main_of(int argc, char** argv) {
  CLI::App app{"The coordinator of a federation: membership, runs, aggregation, one TLS port."};
  app.set_version_flag("--version", "skerry-server " SKERRY_VERSION);
  app.require_subcommand(1);
  app.footer("Exit codes: 0 done, 1 failed, 2 wrong usage or input. Documentation: docs/operators.md");
  std::string home = "/var/lib/skerry-server";
  app.add_option("--home", home, "The coordinator's directory")->envname("SKERRY_HOME")->capture_default_str();

  InitArguments initial;
  CLI::App* init_command = app.add_subcommand("init", "Make a new home: certificate authority, certificates, first operator");
  init_command->add_option("--home", home, "The coordinator's directory");
  init_command->add_option("--federation", initial.federation, "Name of the federation [a-z0-9-]")->capture_default_str();
  init_command->add_option("--address", initial.address, "HOST:PORT as members will reach it")->required();
  init_command->add_option("--listen", initial.listen, "Numeric address to listen on")->capture_default_str();
  init_command->add_option("--host", initial.hosts, "Further host names or addresses for the certificate");
  init_command->add_option("--operator", initial.operator_name, "Name of the first operator")->capture_default_str();

  RunArguments running;
  CLI::App* run_command = app.add_subcommand("run", "Serve until SIGTERM or SIGINT");
  run_command->add_option("--home", home, "The coordinator's directory");
  run_command->add_flag("--log-json", running.log_json, "One JSON object a log line");
  run_command->add_flag("--restored", running.restored, "The home was restored from a backup: begin a new epoch");
  run_command->add_option("--ready-file", running.ready_file, "Write the port's number here once it is open");
  run_command->add_flag("--measure", running.measure, "Offer /api/v1/measure to members, for benchmarks");

  CaAction ca_action;
  add_ca_commands(app, ca_action);

  BackupAction backup_action;
  add_backup_commands(app, home, backup_action);

  std::string plugin_path;
  CLI::App* plugin_command = app.add_subcommand("plugin", "Aggregation rules of your own")->require_subcommand(1);
  CLI::App* check_command = plugin_command->add_subcommand("check", "Load a plug-in once, say what it offers, and print the lines for server.toml");
  check_command->add_option("FILE", plugin_path, "A shared object")->required();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }

  spdlog::set_default_logger(spdlog::stderr_color_mt("skerry-server"));
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<LogText>('*', running.log_json);
  formatter->set_pattern(running.log_json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","message":%*})" : "%Y-%m-%d %H:%M:%S.%e %^%l%$ %*");
  spdlog::set_formatter(std::move(formatter));
  prctl(PR_SET_DUMPABLE, 0);  // keys stay out of core dumps
  std::signal(SIGPIPE, SIG_IGN);
  // Blocked before any thread starts, so that only the signal descriptor sees them.
  sigset_t mask;
  sigemptyset(&mask);
  for (int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&mask, signal);
  pthread_sigmask(SIG_BLOCK, &mask, nullptr);
  const FileDescriptor signals(signalfd(-1, &mask, SFD_CLOEXEC));
  raise_descriptor_limit();

  Result<void> result;
  if (init_command->parsed()) result = init(home, initial);
  else if (backup_action) result = backup_action(home, static_cast<std::int64_t>(SystemClock().unix_ms()));
  else if (check_command->parsed()) result = check_plugin(plugin_path);
  else if (ca_action) result = ca_action(home, static_cast<std::int64_t>(SystemClock().unix_ms()));
  else result = run(home, running, signals.get());
  return result.ok() ? 0 : fail(result.error());
}

}  // namespace
}  // namespace skerry::server

int main(int argc, char** argv) {
  try {
    return skerry::server::main_of(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "skerry-server: %s\n", error.what());
    return 1;
  }
}
