// One running skerry-plugin-host and the slots through which it is spoken to.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/os/files.h"
#include "common/os/process.h"
#include "server/plugin/wire.h"

namespace skerry::server {

/// What a helper is started with. The descriptors stay the caller's.
struct HelperPlan {
  std::string name;           ///< of the plug-in, begins every message
  std::string program;
  int object_fd = -1;         ///< the sealed shared object
  unsigned slots = 1;
  std::uint64_t memory_mb = 0;
  std::uint32_t deadline_ms = 0;
  std::vector<std::string> environment;
};

/// Safe from any thread. The destructor kills the process.
class Helper {
 public:
  /// A helper that has loaded the object. INVALID_ARGUMENT with the helper's reason where it cannot be loaded; otherwise as `call`.
  static Result<std::shared_ptr<Helper>> start(const HelperPlan& plan);
  ~Helper();

  /// One slot for one thread, given back at the end of its life.
  class Slot {
   public:
    explicit Slot(Helper& helper);  ///< waits until one is free
    ~Slot();
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;

    char* text() const { return reinterpret_cast<char*>(memory_); }
    float* floats() const { return reinterpret_cast<float*>(memory_ + plugin_wire::kFloatsAt); }
    double* sums() const { return reinterpret_cast<double*>(memory_ + plugin_wire::kSumsAt); }

    /// One call, done. `what` names it in messages ("reduce").
    ///
    /// INVALID_ARGUMENT where the plug-in refused, INTERNAL where it failed and said why; the helper lives on. INTERNAL too where
    /// the helper ended or answered nonsense, DEADLINE_EXCEEDED where it was killed for being late; it is dead from then on.
    Result<plugin_wire::Reply> call(const plugin_wire::Request& request, const char* what);

    /// The text of a reply, copied. At most kTextBytes.
    std::string text_of(const plugin_wire::Reply& reply) const { return {text(), static_cast<std::size_t>(reply.text_bytes)}; }

   private:
    Helper& helper_;
    std::size_t index_;
    std::byte* memory_;
  };

  /// False once a call ended it.
  bool alive() const;

  /// Ends it because of what it answered, and gives the error with the plug-in's name.
  Error distrust(const Error& why, const char* what);

 private:
  explicit Helper(const HelperPlan& plan) : plan_(plan) {}
  Result<void> begin();
  Error ended(const char* what, const std::optional<Error>& instead);

  const HelperPlan plan_;
  std::byte* memory_ = nullptr;
  std::vector<FileDescriptor> sockets_;  // by slot

  mutable std::mutex mutex_;
  std::condition_variable slot_free_;
  std::vector<std::size_t> free_;
  std::optional<Process> process_;
  std::optional<Error> failure_;  // why it is dead
};

}  // namespace skerry::server
