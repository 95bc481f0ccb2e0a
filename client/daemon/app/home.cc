#include "client/daemon/app/home.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <memory>

#include <nlohmann/json.hpp>

#include "common/base/encoding_text.h"
#include "common/crypto/sha256.h"
#include "common/os/files.h"

namespace skerry::client {
namespace {

constexpr std::size_t kMaxLogBytes = 16 * 1024;

std::atomic<bool> json_log{false};

}  // namespace

std::string Home::place(std::string_view run_id, Policy::WorkPlace where) const {
  if (where == Policy::WorkPlace::kDisk) return run(run_id);
  return "/dev/shm/skerry-" + std::to_string(::getuid()) + "-" + sha256_hex(path).substr(0, 12) + "/" + std::string(run_id);
}

bool safe_name(std::string_view name) {
  if (name.empty() || name.size() > 128 || name.front() == '.') return false;
  for (const char c : name) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
    if (!plain) return false;
  }
  return true;
}

std::uint64_t directory_bytes(const std::string& path) {
  const auto entries = list_directory(path);
  if (!entries.ok()) return 0;
  std::uint64_t bytes = 0;
  for (const auto& entry : *entries) bytes += entry.is_directory ? directory_bytes(join_path(path, entry.name)) : entry.size;
  return bytes;
}

void start_log(bool as_json) {
  json_log = as_json;
  auto logger = std::make_shared<spdlog::logger>("skerry", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  if (as_json) spdlog::set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","message":%v})");
  else spdlog::set_pattern("%Y-%m-%d %H:%M:%S %^%-7l%$ %v");
}

void log(Note::Level level, std::string_view text) {
  const auto at = level == Note::Level::kError ? spdlog::level::err : level == Note::Level::kWarning ? spdlog::level::warn : spdlog::level::info;
  if (json_log) spdlog::log(at, nlohmann::json(std::string(text)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  else spdlog::log(at, one_line(text, kMaxLogBytes));  // a coordinator's words neither begin lines nor steer terminals
}

}  // namespace skerry::client
