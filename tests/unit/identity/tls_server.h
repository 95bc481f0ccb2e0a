// A TLS server of a few lines, and a CONNECT proxy, for the tests of the HTTPS client.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace skerry::test {

struct TlsServerOptions {
  std::string certificate_path;
  std::string key_path;
  int max_version = 0;  ///< of TLS as OpenSSL numbers it; 0: the highest
  /// Given the request's head and body: the whole answer; empty: read on and never answer.
  std::function<std::string(const std::string& head, const std::string& body)> answer;
};

/// Serves one connection after another on 127.0.0.1, until its end.
class TlsServer {
 public:
  explicit TlsServer(TlsServerOptions options);
  ~TlsServer();

  int port() const { return port_; }
  std::string url(const std::string& path) const { return "https://127.0.0.1:" + std::to_string(port_) + path; }
  int connections() const { return connections_; }
  /// Ends the connection that is being served, as a crash would.
  void drop();

 private:
  void serve();
  void serve_one(int fd);

  TlsServerOptions options_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<int> connections_ = 0;
  std::atomic<int> current_ = -1;
  std::atomic<bool> ending_ = false;
  std::thread thread_;
};

/// Answers each CONNECT with `status`; with 200 it then carries bytes both ways.
class ConnectProxy {
 public:
  explicit ConnectProxy(int status);
  ~ConnectProxy();
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  /// The first line of the last request.
  std::string seen() const;

 private:
  void serve();

  int status_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> ending_ = false;
  mutable std::mutex mutex_;
  std::string seen_;
  std::thread thread_;
};

/// "HTTP/1.1 <status> X", a Content-Length and `body`.
std::string http_answer(int status, const std::string& body, const std::string& headers = "");

/// A port on which nothing listens.
int closed_port();

}  // namespace skerry::test
