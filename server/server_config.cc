#include "server/server_config.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
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

Result<void> check_keys(const toml::table& table, const std::string& of, std::initializer_list<std::string_view> known) {
  for (const auto& [key, node] : table) {
    if (std::find(known.begin(), known.end(), key.str()) != known.end()) continue;
    std::string all;
    for (const std::string_view name : known) all += (all.empty() ? "" : ", ") + std::string(name);
    return invalid_argument("server.toml line " + std::to_string(node.source().begin.line) + ": there is no key '" + std::string(key.str()) +
                            "'" + of + "; known are " + all);
  }
  return {};
}

Result<void> read_plugins(const toml::table& table, std::vector<PluginConfig>& out) {
  const toml::node* node = table.get("plugins");
  if (!node) return {};
  if (!node->is_array_of_tables()) return wrong(*node, "plugins", "tables, each [[plugins]] with path and sha256");
  for (const toml::node& entry : *node->as_array()) {
    const toml::table& from = *entry.as_table();
    const std::string line = "server.toml line " + std::to_string(entry.source().begin.line) + ": ";
    SKERRY_TRY(check_keys(from, " in [[plugins]]", {"path", "sha256", "deadline_ms", "memory_mb"}));
    PluginConfig plugin;
    SKERRY_TRY(read_text(from, "path", plugin.path));
    SKERRY_TRY(read_text(from, "sha256", plugin.sha256));
    SKERRY_TRY(read_number(from, "deadline_ms", 10, 3'600'000, plugin.deadline_ms));
    SKERRY_TRY(read_number(from, "memory_mb", 16, 1 << 20, plugin.memory_mb));
    if (plugin.path.empty() || plugin.path.front() != '/')
      return invalid_argument(line + "path is '" + plugin.path + "', must be the absolute path of a shared object");
    const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    if (plugin.sha256.size() != 64 || !std::all_of(plugin.sha256.begin(), plugin.sha256.end(), is_digit))
      return invalid_argument(line + "sha256 is '" + plugin.sha256 + "', must be 64 digits of 0-9 and a-f: `skerry-server plugin check " +
                              plugin.path + "` prints them");
    out.push_back(std::move(plugin));
  }
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
    SKERRY_TRY(read_plugins(table, config.plugins));
    SKERRY_TRY(check_keys(table, "", {"federation", "listen", "port", "address", "threads", "heartbeat_ms", "plugins"}));
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
      << "heartbeat_ms = " << config.heartbeat_ms << "\n\n"
      << "# Aggregation rules of your own: `skerry-server plugin check FILE` prints these lines.\n";
  for (const PluginConfig& plugin : config.plugins)
    out << "[[plugins]]\n"
        << "path = " << toml::value<std::string>(plugin.path) << "\n"
        << "sha256 = " << toml::value<std::string>(plugin.sha256) << "\n"
        << "deadline_ms = " << plugin.deadline_ms << "\n"
        << "memory_mb = " << plugin.memory_mb << "\n";
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
