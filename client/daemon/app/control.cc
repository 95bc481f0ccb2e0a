#include "client/daemon/app/control.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include <nlohmann/json.hpp>

#include "common/os/files.h"

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxRequest = 64 * 1024;
constexpr std::size_t kMaxConnections = 16;
constexpr std::size_t kMaxAnswer = 16 << 20;

/// A socket's path has room for 107 characters; a longer one is reached through its directory's descriptor.
struct Address {
  sockaddr_un address{};
  FileDescriptor directory;
};

Result<Address> address_of(const std::string& path) {
  Address out;
  out.address.sun_family = AF_UNIX;
  std::string name = path;
  if (name.size() >= sizeof out.address.sun_path) {
    const auto slash = path.rfind('/');
    out.directory = FileDescriptor(::open(path.substr(0, slash).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!out.directory) return file_error(errno, "open", path);
    name = "/proc/self/fd/" + std::to_string(out.directory.get()) + path.substr(slash);
  }
  if (name.size() >= sizeof out.address.sun_path) return invalid_argument("the path of socket " + path + " is too long");
  std::memcpy(out.address.sun_path, name.c_str(), name.size() + 1);
  return out;
}

class Server final : public ControlServer {
 public:
  Server(EventLoop& loop, std::string path, FileDescriptor listener, std::function<json(const json&)> answer)
      : loop_(loop), path_(std::move(path)), listener_(std::move(listener)), answer_(std::move(answer)) {}

  ~Server() override {
    for (auto& [fd, connection] : connections_) loop_.unwatch(fd);
    loop_.unwatch(listener_.get());
    ::unlink(path_.c_str());
  }

  Result<void> begin() {
    return loop_.watch(listener_.get(), EPOLLIN, [this](std::uint32_t) { accept(); });
  }

 private:
  struct Connection {
    FileDescriptor socket;
    std::string unread;
  };

  void accept() {
    FileDescriptor socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket || connections_.size() >= kMaxConnections) return;
    const int fd = socket.get();
    if (!loop_.watch(fd, EPOLLIN, [this, fd](std::uint32_t) { read(fd); }).ok()) return;
    connections_[fd].socket = std::move(socket);
  }

  void read(int fd) {
    auto& connection = connections_[fd];
    char buffer[4096];
    const auto got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0 || connection.unread.size() > kMaxRequest) return drop(fd);
    connection.unread.append(buffer, static_cast<std::size_t>(got));
    for (std::size_t end; (end = connection.unread.find('\n')) != std::string::npos;) {
      const json request = json::parse(connection.unread.substr(0, end), nullptr, false);
      connection.unread.erase(0, end + 1);
      const std::string line = answer_(request).dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
      // An answer fits the socket's buffer or its reader is there to take it: a command waits for it.
      std::size_t sent = 0;
      for (int tries = 0; sent < line.size() && tries < 200;) {
        const auto now = ::send(fd, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
        if (now > 0) sent += static_cast<std::size_t>(now);
        else if (errno == EAGAIN) ++tries, ::usleep(1000);
        else return drop(fd);
      }
    }
  }

  void drop(int fd) {
    loop_.unwatch(fd);
    connections_.erase(fd);
  }

  EventLoop& loop_;
  std::string path_;
  FileDescriptor listener_;
  std::function<json(const json&)> answer_;
  std::map<int, Connection> connections_;
};

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::listen(EventLoop& loop, const std::string& path,
                                                             std::function<json(const json&)> answer) {
  SKERRY_ASSIGN(const Address address, address_of(path));
  ::unlink(path.c_str());  // of a daemon that was killed; the home's lock says that none is running
  FileDescriptor listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener) return file_error(errno, "open", path);
  const mode_t before = ::umask(0177);
  const int bound = ::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address.address), sizeof address.address);
  const int error_number = errno;
  ::umask(before);
  if (bound != 0) return file_error(error_number, "bind", path);
  if (::listen(listener.get(), 8) != 0) return file_error(errno, "listen on", path);
  auto server = std::make_unique<Server>(loop, path, std::move(listener), std::move(answer));
  SKERRY_TRY(server->begin());
  return std::unique_ptr<ControlServer>(std::move(server));
}

Result<json> ask_daemon(const std::string& socket_path, const json& request) {
  SKERRY_ASSIGN(const Address address, address_of(socket_path));
  FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return file_error(errno, "open", socket_path);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.address), sizeof address.address) != 0)
    return unavailable("no daemon is running in this home; start it with `skerry-client run`");
  timeval patience{10, 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  const std::string line = request.dump() + "\n";
  if (::send(socket.get(), line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size()))
    return unavailable("the daemon does not take commands");
  std::string answer;
  char buffer[16384];
  while (answer.find('\n') == std::string::npos && answer.size() < kMaxAnswer) {
    const auto got = ::read(socket.get(), buffer, sizeof buffer);
    if (got <= 0) return unavailable("the daemon did not answer");
    answer.append(buffer, static_cast<std::size_t>(got));
  }
  json document = json::parse(answer, nullptr, false);
  if (!document.is_object()) return internal_error("the daemon's answer is not understood; are both of the same version?");
  return document;
}

}  // namespace skerry::client
