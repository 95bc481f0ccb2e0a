// What a service tells systemd about itself (sd_notify(3)): that it is ready, alive, about to stop. Where nobody listens,
// nothing is said.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace skerry {

class ServiceManager {
 public:
  /// As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID of our environment say.
  static ServiceManager from_environment();

  void ready() const { say("READY=1"); }
  void stopping() const { say("STOPPING=1"); }
  /// Say this more often than every alive_every_ms(), and only while work really goes on: whoever is silent for twice as
  /// long is killed and started again.
  void alive() const { say("WATCHDOG=1"); }

  /// Half of what the watchdog allows; 0: there is none.
  std::uint64_t alive_every_ms() const { return alive_every_ms_; }

 private:
  void say(std::string_view state) const;

  std::string socket_;
  std::uint64_t alive_every_ms_ = 0;
};

}  // namespace skerry
