// Accepts connections and finds out, without consuming a byte, what each of them wants to speak.
#pragma once

#include "server/net/asio.h"
#include "server/net/client_hello.h"
#include "server/net/connections.h"

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace skerry::server {

class Counter;
class Metrics;

/// A socket whose ClientHello was read, but not consumed.
struct Greeted {
  StrandSocket socket;
  ClientHello hello;
  std::string peer;  ///< as peer_text writes it
  Connections::Slot slot;
  std::chrono::milliseconds handshake_left;
};

class Listener {
 public:
  using Take = std::function<void(Greeted)>;

  /// Listens on `address`:`port` (0: a free one). INVALID_ARGUMENT (not an address), UNAVAILABLE (in use, not ours).
  /// What cannot do TLS 1.3 gets an alert, plain HTTP a sentence. `take` is called on an I/O thread.
  static Result<std::unique_ptr<Listener>> open(asio::io_context& io, const std::string& address, std::uint16_t port,
                                                std::chrono::milliseconds handshake, Connections& connections,
                                                Metrics& metrics, Take take);

  std::uint16_t port() const { return port_; }
  void start();
  /// Accepts nothing more. From any thread.
  void stop();

  struct Shared;

 private:
  explicit Listener(std::unique_ptr<Shared> shared);
  void accept();
  void accept_all();
  void greet(int descriptor);

  std::unique_ptr<Shared> shared_;
  std::uint16_t port_ = 0;

 public:
  ~Listener();
};

}  // namespace skerry::server
