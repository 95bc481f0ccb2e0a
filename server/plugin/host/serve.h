// The helper's side of a slot: calls come in over a socket, go to the plug-in, and their answers back.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "server/plugin/wire.h"
#include "strategies/sdk/plugin.h"

namespace skerry::plugin_host {

/// The loaded object, and what it made. Shared by all slots.
class Host {
 public:
  /// Serves the calls of one slot until the socket's end; any thread. `memory` is the slot's.
  void serve(int socket, std::byte* memory);

 private:
  // What one call answers, until it is copied into the slot.
  struct Answer {
    std::string text;
    std::vector<double> numbers;
    bool too_long = false;
  };

  server::plugin_wire::Reply answer(const server::plugin_wire::Request& request, std::byte* memory, Answer& answer);
  int carry_out(const server::plugin_wire::Request& request, std::byte* memory, Answer& answer, std::uint64_t& pass);
  std::string load();
  int rule_of(std::string_view part, const skerry_answer& sink, void*& rule);
  int next(const server::plugin_wire::Request& request, std::byte* memory, const skerry_answer& sink, std::uint64_t& pass);
  int walk(const server::plugin_wire::Request& request, std::byte* memory, const skerry_answer& sink);
  void* pass_of(std::uint64_t id, bool forget);

  const skerry_plugin* plugin_ = nullptr;  // set by the first call, before any other slot is used
  std::mutex mutex_;
  std::map<std::string, void*, std::less<>> rules_;  // by part; kept as long as the helper lives
  std::map<std::uint64_t, void*> passes_;
  std::uint64_t next_pass_ = 1;
};

}  // namespace skerry::plugin_host
