// What another process uses, sampled from /proc while something is measured.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace skerry::bench {

struct ProcessMemory {
  std::uint64_t resident_bytes = 0;   ///< VmRSS
  std::uint64_t anonymous_bytes = 0;  ///< RssAnon
};

/// Zeros where there is no such process.
ProcessMemory memory_of(pid_t pid);

/// User and system time of all its threads, in seconds.
double cpu_seconds_of(pid_t pid);

/// The peaks between the constructor and stop(), sampled every `period_ms`.
class ProcessWatch {
 public:
  explicit ProcessWatch(pid_t pid, unsigned period_ms = 5);
  ~ProcessWatch();
  void stop();

  ProcessMemory peak() const { return peak_; }       ///< after stop()
  double cpu_seconds() const { return cpu_seconds_; }  ///< after stop()

 private:
  void sample();

  pid_t pid_;
  double cpu_at_start_ = 0;
  double cpu_seconds_ = 0;
  ProcessMemory peak_;
  std::atomic<bool> stopped_{false};
  std::thread thread_;
};

}  // namespace skerry::bench
