// The inside of an HTTP connection; http_connection.cc has its life, http_cargo.cc the streaming of cargo.
#pragma once

#include "common/os/files.h"
#include "server/net/http_connection.h"
#include "server/store/cargo_store.h"

#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>

#include <array>
#include <cstddef>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace skerry::server {

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(HttpSide& side, StrandSocket socket, SSL_CTX* context, Connections::Slot slot, std::string peer);
  ~HttpConnection();

  void start(std::chrono::milliseconds handshake_left);
  void end_soon(bool at_once);  ///< from any thread

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::buffer_body>;

  // Watching over time: one timer. Until moves: closes when the time is over. With progress: closes when an interval
  // passes in which a body should have moved and moved too little.
  enum class Watch { kNothing, kDeadline, kProgress };
  void watch(Watch what, std::chrono::milliseconds time);
  void on_watch(std::uint64_t serial);
  void set_moving(bool moving);
  void count_up(std::uint64_t bytes);
  void count_down(std::uint64_t bytes);

  // A request's way through: header, routing, body, handler, answer.
  void next_request();
  void read_header();
  void refuse_header(int status, Code code, std::string_view message);
  void route_request();
  bool keep_target();
  void collect_headers();
  void dispatch(const HttpRouter::Match& match);
  void collect_body(std::size_t most);
  void read_plain_body();
  void read_chunked_body(std::size_t most);
  void body_collected();
  void run_handler();
  void say_continue(std::function<void()> then);

  // Answers. `respond` sends a whole one and goes on with the next request or ends the connection.
  void respond(HttpResponse response);
  void send_head(int status, std::string_view content_type, std::optional<std::uint64_t> length,
                 const std::vector<std::pair<std::string, std::string>>& headers, std::function<void()> then);
  void answered();
  void skip_body();
  void linger();
  void close();
  bool head_only() const { return request_.method == "HEAD"; }

  // No exception leaves a pool's thread: where `work` gives a Result, it becomes one.
  template <typename Work>
  static auto guarded(Work& work) -> decltype(work()) {
    if constexpr (std::is_constructible_v<decltype(work()), Error>) {
      try {
        return work();
      } catch (const std::exception& problem) {
        return internal_error(std::string("the request failed inside the coordinator: ") + problem.what());
      }
    } else {
      return work();
    }
  }

  // Runs `work` on a pool and `then` with its result back on the strand.
  template <typename Work, typename Then>
  void offload(asio::thread_pool& pool, Work work, Then then) {
    asio::post(pool, [self = shared_from_this(), work = std::move(work), then = std::move(then)]() mutable {
      auto result = guarded(work);
      asio::post(self->stream_.executor(),
                 [self, result = std::move(result), then = std::move(then)]() mutable { then(std::move(result)); });
    });
  }

  // Cargo (http_cargo.cc).
  void start_download();
  void send_cargo(MappedFile file, const std::string& tag);
  void send_mapped();
  void start_upload();
  void answer_upload_status();
  void begin_body_of_upload(UploadStatus status, std::optional<ChunkWriter> writer);
  void pump_upload();
  void finish_upload();
  void start_source();
  void send_zeros();
  void start_sink();
  void read_sink();

  HttpSide& side_;
  Connections::Slot slot_;
  TlsStream stream_;
  StrandTimer timer_;
  const std::string peer_;
  std::uint64_t id_ = 0;  // in Connections
  std::string chain_pem_;
  bool busy_ = false;  // between a request's header and its answer's end
  bool closed_ = false;

  Watch watch_ = Watch::kNothing;
  std::uint64_t watch_serial_ = 0;
  std::uint64_t watched_progress_ = 0;
  // A body should be moving at this moment, and has since then (it waits while the disk or a handler is at work).
  bool moving_ = false;
  std::chrono::steady_clock::time_point moving_since_;

  std::string inbox_;  // read, not yet used
  std::array<std::byte, 8 * 1024> scrap_;
  std::optional<Parser> parser_;

  HttpRequest request_;
  HttpSide::RouteFacts facts_;
  const HttpRouter::Route* route_ = nullptr;
  std::uint64_t body_left_ = 0;  // of a body with Content-Length, not yet read from the stream or the inbox
  bool chunked_ = false;         // its body is chunked and not yet read to its end
  bool close_after_ = false;
  bool continue_wanted_ = false;
  std::int64_t started_ms_ = 0;
  int status_ = 0;
  Counter* bytes_up_ = nullptr;
  Counter* bytes_down_ = nullptr;
  std::string bytes_member_;
  std::string outbox_;

  struct Download {
    MappedFile file;
    std::uint64_t position;
    std::uint64_t end;
  };
  std::optional<Download> download_;
  std::uint64_t zeros_left_ = 0;

  struct Upload {
    UploadStatus status;
    std::optional<ChunkWriter> writer;  // none: the cargo is there already, the body is passed over
    std::array<std::vector<std::byte>, 2> buffers;
    std::size_t filling = 0;  // index of the buffer that the stream fills; the other one is being written
    std::size_t filled = 0;
    bool reading = false;
    bool writing = false;
    std::optional<Error> error;
  };
  std::optional<Upload> upload_;
};

}  // namespace skerry::server
