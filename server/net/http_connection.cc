#include "server/net/http_connection.h"

#include "common/os/clock.h"
#include "server/metrics/metrics.h"
#include "server/net/http_connection_impl.h"
#include "server/net/http_message.h"

#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <limits>

namespace skerry::server {
namespace {

namespace http = boost::beast::http;

constexpr std::chrono::milliseconds kLinger{2000};
constexpr std::size_t kSmallAnswer = 16 * 1024;  // head and body in one write
constexpr std::uint64_t kSkippedBody = 64 * 1024;  // an unread body up to this is read away to keep the connection

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// A browser shows its owner's certificate on whatever page asks for us; only our own pages may change anything with it.
bool from_another_site(const HttpRequest& request) {
  if (request.method == "GET" || request.method == "HEAD") return false;
  const std::string_view origin = request.header("origin");
  return !origin.empty() && origin != "https://" + std::string(request.header("host"));
}

}  // namespace

void serve_http(HttpSide& side, StrandSocket socket, const std::shared_ptr<SSL_CTX>& context, Connections::Slot slot,
                std::string peer, std::chrono::milliseconds handshake_left) {
  // Shared because each operation under way keeps its connection alive.
  auto connection = std::make_shared<HttpConnection>(side, std::move(socket), context.get(), std::move(slot), std::move(peer));
  connection->start(handshake_left);
}

HttpConnection::HttpConnection(HttpSide& side, StrandSocket socket, SSL_CTX* context, Connections::Slot slot, std::string peer)
    : side_(side),
      slot_(std::move(slot)),
      stream_(std::move(socket), context),
      timer_(stream_.executor()),
      peer_(std::move(peer)) {}

HttpConnection::~HttpConnection() {
  if (id_ != 0) side_.connections.remove_http(id_);
}

void HttpConnection::start(std::chrono::milliseconds handshake_left) {
  id_ = side_.connections.add_http([weak = weak_from_this()](bool at_once) {
    if (auto self = weak.lock()) self->end_soon(at_once);
  });
  asio::post(stream_.executor(), [self = shared_from_this(), handshake_left] {
    self->watch(Watch::kDeadline, handshake_left);
    self->stream_.handshake([self](bool ok) {
      if (!ok) return self->close();
      self->chain_pem_ = self->stream_.peer_chain_pem();
      self->next_request();
    });
  });
}

void HttpConnection::end_soon(bool at_once) {
  asio::post(stream_.executor(), [self = shared_from_this(), at_once] {
    self->close_after_ = true;
    if (at_once) return self->close();
    if (self->busy_) return;
    self->stream_.finish_writing();
    self->close();
  });
}

void HttpConnection::close() {
  if (closed_) return;
  closed_ = true;
  watch(Watch::kNothing, {});
  stream_.close();
}

// ---- time ----

void HttpConnection::watch(Watch what, std::chrono::milliseconds time) {
  watch_ = what;
  ++watch_serial_;
  watched_progress_ = stream_.progress();
  if (what == Watch::kNothing) {
    timer_.cancel();
    return;
  }
  timer_.expires_after(time);
  // Weak: a connection that ended does not live on until its timer fires.
  timer_.async_wait([weak = weak_from_this(), serial = watch_serial_](boost::system::error_code error) {
    if (error) return;
    if (auto self = weak.lock()) self->on_watch(serial);
  });
}

void HttpConnection::on_watch(std::uint64_t serial) {
  if (serial != watch_serial_ || closed_) return;
  const auto interval = side_.options.limits.progress_interval;
  const bool all_the_time = moving_ && std::chrono::steady_clock::now() - moving_since_ >= interval;
  const bool slow = all_the_time && stream_.progress() - watched_progress_ < side_.options.limits.progress_bytes;
  if (watch_ == Watch::kProgress && !slow) return watch(Watch::kProgress, interval);
  if (watch_ == Watch::kProgress) {
    side_.slow_peers.add();
    spdlog::info("closing {}: its body moved {} bytes in {} ms", peer_, stream_.progress() - watched_progress_,
                 interval.count());
  }
  close();
}

void HttpConnection::set_moving(bool moving) {
  if (moving && !moving_) moving_since_ = std::chrono::steady_clock::now();
  moving_ = moving;
}

void HttpConnection::count_up(std::uint64_t bytes) {
  side_.all_up.fetch_add(bytes, std::memory_order_relaxed);
  if (bytes_up_) bytes_up_->add(static_cast<double>(bytes));
}

void HttpConnection::count_down(std::uint64_t bytes) {
  side_.all_down.fetch_add(bytes, std::memory_order_relaxed);
  if (bytes_down_) bytes_down_->add(static_cast<double>(bytes));
}

// ---- the header ----

void HttpConnection::next_request() {
  if (closed_) return;
  busy_ = false;
  set_moving(false);
  if (side_.draining || close_after_) return linger();
  parser_.emplace();
  parser_->header_limit(static_cast<std::uint32_t>(side_.options.limits.header_bytes));
  // Not "none": Boost 1.74 takes that for a limit of zero. The routes' own limits apply.
  parser_->body_limit(std::numeric_limits<std::uint64_t>::max());
  watch(Watch::kDeadline, inbox_.empty() ? side_.options.limits.keep_alive : side_.options.limits.header_time);
  read_header();
}

void HttpConnection::read_header() {
  if (!inbox_.empty()) {
    boost::system::error_code error;
    const std::size_t used = parser_->put(asio::buffer(inbox_), error);
    inbox_.erase(0, used);
    if (parser_->is_header_done() && !error) return route_request();
    if (error == http::error::header_limit || inbox_.size() > side_.options.limits.header_bytes) {
      return refuse_header(431, Code::kInvalidArgument, "the request's header is longer than " +
                                                            std::to_string(side_.options.limits.header_bytes) + " bytes");
    }
    if (error && error != http::error::need_more) return refuse_header(400, Code::kInvalidArgument, "malformed request: " + error.message());
  }
  const bool first = inbox_.empty() && !parser_->got_some();
  stream_.read_some(scrap_, [self = shared_from_this(), first](std::size_t count) {
    if (count == 0 || self->closed_) return self->close();
    if (first) self->watch(Watch::kDeadline, self->side_.options.limits.header_time);
    self->inbox_.append(reinterpret_cast<const char*>(self->scrap_.data()), count);
    self->read_header();
  });
}

void HttpConnection::refuse_header(int status, Code code, std::string_view message) {
  request_ = {};
  route_ = nullptr;
  started_ms_ = side_.options.clock->monotonic_ms();
  close_after_ = true;
  busy_ = true;
  HttpResponse response = HttpResponse::error({code, std::string(message)});
  response.status = status;
  respond(std::move(response));
}

bool HttpConnection::keep_target() {
  const auto target = parser_->get().target();
  const std::string_view text(target.data(), target.size());
  const std::size_t question = text.find('?');
  auto query = parse_query(question == std::string_view::npos ? std::string_view{} : text.substr(question + 1));
  if (!query) return false;
  request_.path = text.substr(0, question);
  request_.query = *std::move(query);
  return true;
}

void HttpConnection::collect_headers() {
  for (const auto& field : parser_->get()) {
    std::string name(field.name_string().data(), field.name_string().size());
    std::transform(name.begin(), name.end(), name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    const std::string value(field.value().data(), field.value().size());
    auto [place, added] = request_.headers.emplace(std::move(name), value);
    if (!added) place->second += ", " + value;
  }
}

void HttpConnection::route_request() {
  busy_ = true;
  watch(Watch::kNothing, {});
  started_ms_ = side_.options.clock->monotonic_ms();
  route_ = nullptr;
  request_ = {};
  const auto method = parser_->get().method_string();
  request_.method.assign(method.data(), method.size());
  request_.peer = peer_;
  request_.peer_address = address_of_peer(peer_);
  request_.chain_pem = chain_pem_;
  collect_headers();
  if (!parser_->keep_alive()) close_after_ = true;
  chunked_ = parser_->chunked();
  body_left_ = chunked_ ? 0 : parser_->content_length().value_or(0);
  continue_wanted_ = parser_->get().version() >= 11 && request_.header("expect") == "100-continue";
  if (!keep_target()) return respond(HttpResponse::error(invalid_argument("the request's target holds a broken percent escape")));

  const auto found = side_.router.find(request_.method, request_.path);
  const auto* match = std::get_if<HttpRouter::Match>(&found);
  facts_ = match ? side_.facts(*match->route) : HttpSide::RouteFacts{BuiltIn::kNone, Access::kAnyone};
  if (match) route_ = match->route;

  Gate& gate = *side_.options.gate;
  Gate::Caller caller = gate.identify(chain_pem_, facts_.access);
  if (caller.identity && side_.connections.note_http(id_, caller.identity->thumbprint)) {
    // Revoked between the check and the note? Then nobody ends this connection: check again.
    caller = gate.identify(chain_pem_, facts_.access);
  }
  if (const std::int64_t wait = gate.take_rate(caller, request_.peer_address); wait > 0) {
    HttpResponse response = HttpResponse::error(resource_exhausted("too many requests; try again in " + std::to_string(wait) + " ms"));
    response.headers.emplace_back("Retry-After", std::to_string((wait + 999) / 1000));
    return respond(std::move(response));
  }
  const std::string member = caller.identity ? std::string(role_name(caller.identity->role)) + '/' + caller.identity->name : "anonymous";
  if (!bytes_up_ || bytes_member_ != member) {
    bytes_member_ = member;
    bytes_up_ = &side_.bytes("up", member);
    bytes_down_ = &side_.bytes("down", member);
  }
  if (!match) {
    const auto& allow = std::get<HttpRouter::NoMatch>(found).allow;
    if (allow.empty()) return respond(HttpResponse::error(not_found("there is nothing at " + request_.path)));
    HttpResponse response = HttpResponse::error({Code::kUnimplemented, request_.method + " is not possible at " + request_.path});
    response.status = 405;
    std::string list;
    for (const std::string& one : allow) list += (list.empty() ? "" : ", ") + one;
    response.headers.emplace_back("Allow", list);
    return respond(std::move(response));
  }
  if (from_another_site(request_)) {
    return respond(HttpResponse::error(permission_denied("this request was made by a page of another site (" +
                                                         std::string(request_.header("origin")) + ")")));
  }
  if (auto checked = gate.check(facts_.access, request_.method + ' ' + request_.path, caller, request_.peer_address); !checked.ok())
    return respond(HttpResponse::error(checked.error()));
  request_.identity = std::move(caller.identity);
  request_.anonymous_reason = std::move(caller.anonymous_reason);
  request_.params = match->params;
  dispatch(*match);
}

void HttpConnection::dispatch(const HttpRouter::Match& match) {
  switch (facts_.built_in) {
    case BuiltIn::kCargoDownload: return start_download();
    case BuiltIn::kCargoUpload: return start_upload();
    case BuiltIn::kUploadStatus: return answer_upload_status();
    case BuiltIn::kMeasureSource: return start_source();
    case BuiltIn::kMeasureSink: return start_sink();
    case BuiltIn::kNone: break;
  }
  if (auto decoded = percent_decode(request_.path)) request_.path = *std::move(decoded);
  collect_body(match.route->options.max_body_bytes);
}

// ---- the body of an ordinary request ----

void HttpConnection::collect_body(std::size_t most) {
  if (body_left_ > most) {
    HttpResponse response = HttpResponse::error(resource_exhausted("the body has " + std::to_string(body_left_) + " bytes, and " +
                                                                   std::to_string(most) + " are allowed here"));
    response.status = 413;
    return respond(std::move(response));
  }
  if (body_left_ == 0 && !chunked_) return run_handler();
  say_continue([self = shared_from_this(), most] {
    self->set_moving(true);
    self->watch(Watch::kProgress, self->side_.options.limits.progress_interval);
    if (self->chunked_) return self->read_chunked_body(most);
    self->request_.body.reserve(self->body_left_);
    self->read_plain_body();
  });
}

void HttpConnection::read_plain_body() {
  const std::size_t ready = static_cast<std::size_t>(std::min<std::uint64_t>(body_left_, inbox_.size()));
  request_.body.append(inbox_, 0, ready);
  inbox_.erase(0, ready);
  body_left_ -= ready;
  if (body_left_ == 0) return body_collected();
  stream_.read_some(scrap_, [self = shared_from_this()](std::size_t count) {
    if (count == 0 || self->closed_) return self->close();
    self->inbox_.append(reinterpret_cast<const char*>(self->scrap_.data()), count);
    self->read_plain_body();
  });
}

void HttpConnection::read_chunked_body(std::size_t most) {
  std::array<char, 8 * 1024> piece;
  while (!inbox_.empty() && !parser_->is_done()) {
    parser_->get().body().data = piece.data();
    parser_->get().body().size = piece.size();
    boost::system::error_code error;
    const std::size_t used = parser_->put(asio::buffer(inbox_), error);
    inbox_.erase(0, used);
    request_.body.append(piece.data(), piece.size() - parser_->get().body().size);
    if (request_.body.size() > most) {
      HttpResponse response = HttpResponse::error(resource_exhausted("the body has more than the " + std::to_string(most) +
                                                                     " bytes that are allowed here"));
      response.status = 413;
      return respond(std::move(response));
    }
    if (error == http::error::need_more || (!error && used == 0)) break;
    if (error && error != http::error::need_buffer)
      return respond(HttpResponse::error(invalid_argument("malformed chunked body: " + error.message())));
  }
  if (parser_->is_done()) {
    chunked_ = false;
    return body_collected();
  }
  if (inbox_.size() > side_.options.limits.header_bytes)
    return respond(HttpResponse::error(invalid_argument("malformed chunked body: a chunk's header is too long")));
  stream_.read_some(scrap_, [self = shared_from_this(), most](std::size_t count) {
    if (count == 0 || self->closed_) return self->close();
    self->inbox_.append(reinterpret_cast<const char*>(self->scrap_.data()), count);
    self->read_chunked_body(most);
  });
}

void HttpConnection::body_collected() {
  set_moving(false);
  watch(Watch::kNothing, {});
  count_up(request_.body.size());
  run_handler();
}

void HttpConnection::say_continue(std::function<void()> then) {
  if (!continue_wanted_) return then();
  continue_wanted_ = false;
  static const std::string kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  stream_.write(bytes_of(kContinue), [self = shared_from_this(), then = std::move(then)](bool ok) {
    if (!ok || self->closed_) return self->close();
    then();
  });
}

// ---- the handler and its answer ----

void HttpConnection::run_handler() {
  if (side_.queued.fetch_add(1) >= side_.options.limits.queued_requests) {
    side_.queued.fetch_sub(1);
    return respond(HttpResponse::error(unavailable("too many requests are waiting; try again")));
  }
  offload(
      side_.workers,
      [this] {
        HttpResponse response;
        try {
          response = route_->handler(request_);
        } catch (const std::exception& problem) {
          spdlog::error("{} {}: {}", request_.method, route_->pattern, problem.what());
          response = HttpResponse::error(internal_error("the request failed inside the coordinator; its log says why"));
        } catch (...) {
          spdlog::error("{} {}: an exception of an unknown kind", request_.method, route_->pattern);
          response = HttpResponse::error(internal_error("the request failed inside the coordinator; its log says why"));
        }
        side_.queued.fetch_sub(1);
        return response;
      },
      [this](HttpResponse response) { respond(std::move(response)); });
}

void HttpConnection::respond(HttpResponse response) {
  const bool bodiless = response.status == 304 || response.status == 204;
  const std::uint64_t length = response.body.size();
  if (head_only() || bodiless) response.body.clear();
  // Whoever waits for "100 Continue" sends no body now; whoever does not wait has one on the way.
  if (continue_wanted_ || chunked_ || body_left_ > inbox_.size() + kSkippedBody) close_after_ = true;
  count_down(response.body.size());
  auto body = std::make_shared<std::string>(std::move(response.body));  // shared: a callback owns it until it is written
  std::optional<std::uint64_t> shown = length;
  if (bodiless) shown.reset();
  const bool small = body->size() <= kSmallAnswer;
  if (small) outbox_ = *body;
  else outbox_.clear();
  send_head(response.status, bodiless ? std::string_view{} : std::string_view(response.content_type), shown, response.headers,
            [self = shared_from_this(), body, small] {
              if (small) return self->answered();
              self->set_moving(true);
              self->watch(Watch::kProgress, self->side_.options.limits.progress_interval);
              self->stream_.write(bytes_of(*body), [self, body](bool ok) {
                if (!ok || self->closed_) return self->close();
                self->answered();
              });
            });
}

// Sends the head, and behind it what stands in the outbox.
void HttpConnection::send_head(int status, std::string_view content_type, std::optional<std::uint64_t> length,
                               const std::vector<std::pair<std::string, std::string>>& headers, std::function<void()> then) {
  status_ = status;
  if (side_.draining) close_after_ = true;
  const std::int64_t seconds = side_.options.clock->unix_ms() / 1000;
  outbox_ = write_head({status, content_type, length, close_after_, seconds}, headers) + outbox_;
  set_moving(true);
  watch(Watch::kProgress, side_.options.limits.progress_interval);
  stream_.write(bytes_of(outbox_), [self = shared_from_this(), then = std::move(then)](bool ok) {
    if (!ok || self->closed_) return self->close();
    self->outbox_.clear();
    then();
  });
}

void HttpConnection::answered() {
  set_moving(false);
  side_.count_request(request_.method, route_ ? std::string_view(route_->pattern) : "unmatched", status_,
                      side_.options.clock->monotonic_ms() - started_ms_);
  download_.reset();
  upload_.reset();
  if (close_after_) return linger();
  if (body_left_ == 0) return next_request();
  watch(Watch::kDeadline, side_.options.limits.header_time);
  skip_body();
}

// A short body that nobody asked for is read away.
void HttpConnection::skip_body() {
  const std::size_t ready = static_cast<std::size_t>(std::min<std::uint64_t>(body_left_, inbox_.size()));
  inbox_.erase(0, ready);
  body_left_ -= ready;
  if (body_left_ == 0) return next_request();
  const std::size_t most = static_cast<std::size_t>(std::min<std::uint64_t>(body_left_, scrap_.size()));
  stream_.read_some(std::span(scrap_).first(most), [self = shared_from_this()](std::size_t count) {
    if (count == 0 || self->closed_) return self->close();
    self->body_left_ -= count;
    self->skip_body();
  });
}

void HttpConnection::linger() {
  if (closed_) return;
  watch(Watch::kDeadline, kLinger);
  stream_.finish_writing();
  stream_.drain([self = shared_from_this()](bool) { self->close(); });
}

}  // namespace skerry::server
