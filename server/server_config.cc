#include "server/server_config.h"

#include <toml++/toml.h>

#include <charconv>
#include <sstream>

#include "common/os/files.h"

namespace skerry::server {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 64 * 1024;

Error wrong(const toml::node& node, const std::string& key, const std::string& must) {
  std::ostringstream value;
  node.visit([&](const auto& known) { value << known; });
  return invalid_argument("server.toml line " + std::to_string(node.source().begin.line) + ": " + key + " is " +
                          value.str() + ", must be " + must);
}

Result<void> read_text(const toml::table& table, const std::string& key, std::string& out) {
  const toml::node* node = table.get(key);
  if (!node) return {};
  if (!node->is_string()) return wrong(*node, key, "a text");
  out = node->as_string()->get();
  return {};
}

template <typename T>
Result<void> read_number(const toml::table& table, const std::string& key, std::int64_t least, std::int64_t most,
                         T& out) {
  const toml::node* node = table.get(key);
  if (!node) return {};
  const auto value = node->value_exact<std::int64_t>();
  if (!value || *value < least || *value > most)
    return wrong(*node, key, "a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  out = static_cast<T>(*value);
  return {};
}

}  // namespace

Result<ServerConfig> load_server_config(const std::string& home) {
  const std::string path = join_path(home, "server.toml");
  auto text = read_file(path, kMaxConfigBytes);
  if (!text.ok()) {
    if (text.error().code == Code::kNotFound)
      return not_found("there is no coordinator in " + home + ": make one with `skerry-server init --home " + home +
                       " --address HOST:PORT`");
    return text.error();
  }
  ServerConfig config;
  try {
    const toml::table table = toml::parse(*text, path);
    SKERRY_TRY(read_text(table, "federation", config.federation));
    SKERRY_TRY(read_text(table, "listen", config.listen));
    SKERRY_TRY(read_number(table, "port", 0, 65535, config.port));
    SKERRY_TRY(read_text(table, "address", config.address));
    SKERRY_TRY(read_number(table, "threads", 0, 1024, config.threads));
    SKERRY_TRY(read_number(table, "heartbeat_ms", 100, 3'600'000, config.heartbeat_ms));
    for (const auto& [key, node] : table) {
      const std::string_view name = key.str();
      if (name != "federation" && name != "listen" && name != "port" && name != "address" && name != "threads" &&
          name != "heartbeat_ms")
        return invalid_argument("server.toml line " + std::to_string(node.source().begin.line) + ": there is no key '" +
                                std::string(name) +
                                "'; known are federation, listen, port, address, threads, heartbeat_ms");
    }
  } catch (const toml::parse_error& error) {
    return invalid_argument("server.toml line " + std::to_string(error.source().begin.line) + ": " +
                            std::string(error.description()));
  }
  return config;
}

Result<void> save_server_config(const std::string& home, const ServerConfig& config) {
  std::ostringstream out;
  out << "# The coordinator's settings; restart it after a change.\n\n"
      << "# The federation's name, as certificates carry it. It cannot be changed.\n"
      << "federation = " << toml::value<std::string>(config.federation) << "\n\n"
      << "# Where it listens: a numeric address and a port (0: any free one).\n"
      << "listen = " << toml::value<std::string>(config.listen) << "\n"
      << "port = " << config.port << "\n\n"
      << "# How members reach it; goes into join tokens.\n"
      << "address = " << toml::value<std::string>(config.address) << "\n\n"
      << "# Threads that aggregate; 0: one a core.\n"
      << "threads = " << config.threads << "\n\n"
      << "# Daemons say something at least this often.\n"
      << "heartbeat_ms = " << config.heartbeat_ms << "\n";
  return write_file_atomic(join_path(home, "server.toml"), out.str(), 0600);
}

Result<HostPort> parse_host_port(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  HostPort parsed;
  if (colon != std::string::npos) {
    parsed.host = text.substr(0, colon);
    if (parsed.host.size() > 2 && parsed.host.front() == '[' && parsed.host.back() == ']')
      parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
    const char* end = text.data() + text.size();
    const auto [rest, failure] = std::from_chars(text.data() + colon + 1, end, parsed.port);
    if (failure == std::errc() && rest == end && !parsed.host.empty()) return parsed;
  }
  return invalid_argument("'" + text + "' is not HOST:PORT, for example fl.example.org:7440 or [2001:db8::1]:7440");
}

}  // namespace skerry::server
