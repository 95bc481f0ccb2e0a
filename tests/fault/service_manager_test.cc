// What systemd hears of both services: that they are ready, that they live as long as they answer, that they stop.
#include <catch2/catch.hpp>

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <string>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

/// The manager's end of NOTIFY_SOCKET.
class Manager {
 public:
  explicit Manager(const std::string& path) : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    REQUIRE(path.size() < sizeof address.sun_path);
    path.copy(address.sun_path, path.size());
    REQUIRE(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  }

  /// The next message; empty where none comes in time.
  std::string heard(int timeout_ms) const {
    pollfd waiting{socket_.get(), POLLIN, 0};
    char text[256];
    if (::poll(&waiting, 1, timeout_ms) <= 0) return {};
    const ssize_t size = ::recv(socket_.get(), text, sizeof text, 0);
    return {text, size > 0 ? static_cast<std::size_t>(size) : 0};
  }

  /// Whether `text` comes within `timeout_ms` of silence after each other message.
  bool hears(const std::string& text, int timeout_ms = 20'000) const {
    for (std::string message; !(message = heard(timeout_ms)).empty();)
      if (message == text) return true;
    return false;
  }

 private:
  FileDescriptor socket_;
};

void follow(const std::vector<std::string>& command, const std::string& socket) {
  const Manager manager(socket);
  Child service = Child::start(command, {"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=200000"}).value();
  CHECK(manager.hears("READY=1"));
  CHECK(manager.hears("WATCHDOG=1"));
  CHECK(manager.hears("WATCHDOG=1"));

  REQUIRE(::kill(service.pid(), SIGSTOP) == 0);
  while (!manager.heard(300).empty()) continue;
  CHECK(manager.heard(1'000).empty());
  REQUIRE(::kill(service.pid(), SIGCONT) == 0);
  CHECK(manager.hears("WATCHDOG=1"));

  REQUIRE(::kill(service.pid(), SIGTERM) == 0);
  CHECK(manager.hears("STOPPING=1"));
  const auto end = service.wait(20'000);
  REQUIRE(end.has_value());
  CHECK(end->clean());
}

}  // namespace

TEST_CASE("systemd hears that a service is ready, lives only while it answers, and stops") {
  Federation federation;
  Node& node = federation.add_node("alpha", {.start = false});
  follow({program("skerry-client"), "--home", node.home(), "run"}, federation.directory() / "client.notify");
  federation.stop_server();
  follow({program("skerry-server"), "--home", federation.server_home(), "run"}, federation.directory() / "server.notify");
}

}  // namespace skerry::test
