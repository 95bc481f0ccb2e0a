// A CONNECT proxy for tests: lets connections through, counts their bytes, slows them down, cuts them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace skerry::test {

/// Listens on 127.0.0.1 until destroyed; its connections end with it.
class ConnectProxy {
 public:
  ConnectProxy();
  ~ConnectProxy();
  ConnectProxy(const ConnectProxy&) = delete;
  ConnectProxy& operator=(const ConnectProxy&) = delete;

  /// "http://127.0.0.1:PORT".
  std::string url() const;

  /// At most so many bytes a second from clients to the server, of each connection; 0: as fast as it goes.
  void limit_up(std::uint64_t bytes_per_second);

  /// Tunnels opened since the start.
  unsigned tunnels() const;
  /// Bytes that went through all tunnels since the start.
  std::uint64_t bytes_up() const;
  std::uint64_t bytes_down() const;

  /// Breaks every tunnel that is open; new ones are welcome.
  void cut();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace skerry::test
