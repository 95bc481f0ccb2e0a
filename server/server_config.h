// server.toml: what an operator may set of a coordinator.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "server/plugin/plugin.h"

namespace skerry::server {

struct ServerConfig {
  std::string federation;          ///< [a-z0-9][a-z0-9-]{0,62}
  std::string listen = "0.0.0.0";  ///< numeric address
  std::uint16_t port = 7440;       ///< 0: any free one
  std::string address;             ///< "host:port" as members reach it; goes into join tokens
  unsigned threads = 0;            ///< that aggregate; 0: one a core
  std::uint32_t heartbeat_ms = 15'000;
  std::vector<PluginConfig> plugins;  ///< [[plugins]]: aggregation rules from shared objects
};

/// Reads <home>/server.toml. NOT_FOUND (says to run init), INVALID_ARGUMENT naming line, key and value; unknown keys
/// are errors.
Result<ServerConfig> load_server_config(const std::string& home);

/// Writes it, commented.
Result<void> save_server_config(const std::string& home, const ServerConfig& config);

/// "host:port" or "[v6]:port" in two. INVALID_ARGUMENT.
struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};
Result<HostPort> parse_host_port(const std::string& text);

}  // namespace skerry::server
