#include "tests/support/connect_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <list>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/os/files.h"

namespace skerry::test {
namespace {

constexpr int kTurnMs = 10;

FileDescriptor dial(const std::string& host, int port) {
  FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) return FileDescriptor();
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return FileDescriptor();
  return socket;
}

bool send_all(int socket, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t sent = ::send(socket, data, size, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    data += sent;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

}  // namespace

struct ConnectProxy::State {
  FileDescriptor listener;
  int port = 0;
  std::atomic<bool> ending{false};
  std::atomic<std::uint64_t> limit_up{0};
  std::atomic<unsigned> tunnels{0};
  std::atomic<unsigned> cuts{0};
  std::atomic<std::uint64_t> bytes_up{0}, bytes_down{0};
  std::mutex mutex;
  std::list<std::thread> threads;
  std::thread accepting;

  void accept_all() {
    while (!ending) {
      pollfd waiting{listener.get(), POLLIN, 0};
      if (::poll(&waiting, 1, kTurnMs) <= 0) continue;
      FileDescriptor client(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client) continue;
      std::lock_guard lock(mutex);
      threads.emplace_back([this, fd = client.release()] { serve(FileDescriptor(fd)); });
    }
  }

  void serve(FileDescriptor client) {
    std::string head;
    while (head.find("\r\n\r\n") == std::string::npos) {
      char byte = 0;
      pollfd waiting{client.get(), POLLIN, 0};
      if (ending) return;
      if (::poll(&waiting, 1, kTurnMs) <= 0) continue;
      if (head.size() > 8192 || ::recv(client.get(), &byte, 1, 0) != 1) return;
      head += byte;
    }
    const std::string target = head.substr(0, head.find(" HTTP/"));
    const auto colon = target.rfind(':');
    if (!target.starts_with("CONNECT ") || colon == std::string::npos) return;
    FileDescriptor server = dial(target.substr(8, colon - 8), std::atoi(target.c_str() + colon + 1));
    const std::string answer = server ? "HTTP/1.1 200 Connection established\r\n\r\n" : "HTTP/1.1 502 Bad Gateway\r\n\r\n";
    if (!send_all(client.get(), answer.data(), answer.size()) || !server) return;
    ++tunnels;
    carry(client.get(), server.get());
  }

  void carry(int client, int server) {
    using Clock = std::chrono::steady_clock;
    const unsigned cuts_before = cuts;
    std::vector<char> buffer(64 * 1024);
    double allowance = 0;
    auto last = Clock::now();
    while (!ending && cuts == cuts_before) {
      const auto now = Clock::now();
      const std::uint64_t limit = limit_up;
      allowance = std::min(allowance + static_cast<double>(limit) * std::chrono::duration<double>(now - last).count(), static_cast<double>(limit) / 20);
      last = now;
      const std::size_t room = limit == 0 ? buffer.size() : std::min(buffer.size(), static_cast<std::size_t>(std::max(allowance, 0.0)));
      pollfd waiting[2] = {{room > 0 ? client : -1, POLLIN, 0}, {server, POLLIN, 0}};
      if (::poll(waiting, 2, kTurnMs) <= 0) continue;
      if (waiting[0].revents != 0) {
        const ssize_t got = ::recv(client, buffer.data(), room, 0);
        if (got <= 0 || !send_all(server, buffer.data(), static_cast<std::size_t>(got))) return;
        bytes_up += static_cast<std::uint64_t>(got);
        allowance -= static_cast<double>(got);
      }
      if (waiting[1].revents != 0) {
        const ssize_t got = ::recv(server, buffer.data(), buffer.size(), 0);
        if (got <= 0 || !send_all(client, buffer.data(), static_cast<std::size_t>(got))) return;
        bytes_down += static_cast<std::uint64_t>(got);
      }
    }
  }
};

ConnectProxy::ConnectProxy() : state_(std::make_unique<State>()) {
  state_->listener = FileDescriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (::bind(state_->listener.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 || ::listen(state_->listener.get(), 64) != 0 ||
      ::getsockname(state_->listener.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0)
    throw std::runtime_error("the test's proxy cannot listen");
  state_->port = ntohs(address.sin_port);
  state_->accepting = std::thread([state = state_.get()] { state->accept_all(); });
}

ConnectProxy::~ConnectProxy() {
  state_->ending = true;
  state_->accepting.join();
  for (std::thread& thread : state_->threads) thread.join();
}

std::string ConnectProxy::url() const { return "http://127.0.0.1:" + std::to_string(state_->port); }
void ConnectProxy::limit_up(std::uint64_t bytes_per_second) { state_->limit_up = bytes_per_second; }
unsigned ConnectProxy::tunnels() const { return state_->tunnels; }
std::uint64_t ConnectProxy::bytes_up() const { return state_->bytes_up; }
std::uint64_t ConnectProxy::bytes_down() const { return state_->bytes_down; }
void ConnectProxy::cut() { ++state_->cuts; }

}  // namespace skerry::test
