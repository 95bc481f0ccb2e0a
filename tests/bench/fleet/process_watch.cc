#include "tests/bench/fleet/process_watch.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>

#include "common/os/files.h"

namespace skerry::bench {
namespace {

constexpr std::uint64_t kMaxProcFile = 64 * 1024;

std::uint64_t kilobytes(const std::string& status, const char* field) {
  const auto at = status.find(field);
  return at == std::string::npos ? 0 : 1024 * std::strtoull(status.c_str() + at + std::string_view(field).size(), nullptr, 10);
}

}  // namespace

ProcessMemory memory_of(pid_t pid) {
  const auto status = read_file("/proc/" + std::to_string(pid) + "/status", kMaxProcFile);
  if (!status.ok()) return {};
  return {kilobytes(*status, "VmRSS:"), kilobytes(*status, "RssAnon:")};
}

double cpu_seconds_of(pid_t pid) {
  const auto stat = read_file("/proc/" + std::to_string(pid) + "/stat", kMaxProcFile);
  if (!stat.ok()) return 0;
  // After the name, which may contain anything and ends with the last ')': state, then fields 4, 5, …
  const char* at = stat->c_str() + stat->rfind(')') + 2;
  for (int field = 3; field < 14; ++field) at = std::strchr(at, ' ') + 1;
  char* next = nullptr;
  const unsigned long long user = std::strtoull(at, &next, 10);
  const unsigned long long system = std::strtoull(next, nullptr, 10);
  return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

ProcessWatch::ProcessWatch(pid_t pid, unsigned period_ms) : pid_(pid), cpu_at_start_(cpu_seconds_of(pid)) {
  thread_ = std::thread([this, period_ms] {
    while (!stopped_) {
      sample();
      std::this_thread::sleep_for(std::chrono::milliseconds(period_ms));
    }
  });
}

ProcessWatch::~ProcessWatch() { stop(); }

void ProcessWatch::stop() {
  if (stopped_.exchange(true)) return;
  thread_.join();
  sample();
  cpu_seconds_ = cpu_seconds_of(pid_) - cpu_at_start_;
}

void ProcessWatch::sample() {
  const ProcessMemory now = memory_of(pid_);
  peak_.resident_bytes = std::max(peak_.resident_bytes, now.resident_bytes);
  peak_.anonymous_bytes = std::max(peak_.anonymous_bytes, now.anonymous_bytes);
}

}  // namespace skerry::bench
