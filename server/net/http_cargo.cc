// Cargo over HTTPS: downloads from mapped files, uploads through two buffers so that the network and the disk work at
// once.
#include "server/metrics/metrics.h"
#include "server/net/http_connection_impl.h"
#include "server/net/http_message.h"

#include <spdlog/spdlog.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>

namespace skerry::server {
namespace {

constexpr std::size_t kPiece = 256 * 1024;              // bytes per call of OpenSSL
constexpr std::uint64_t kDropBehind = 8 * 1024 * 1024;  // mapped pages let go behind a download

HttpResponse status_json(const UploadStatus& status) {
  nlohmann::json missing = nlohmann::json::array();
  for (const ByteRange& range : status.missing) missing.push_back({range.first, range.last});
  return HttpResponse::json({{"complete", status.complete}, {"missing", std::move(missing)}});
}

// What an upload's URL and headers ask for.
struct UploadQuery {
  std::string id;
  std::string ticket;
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
};

Result<UploadQuery> parse_upload(const HttpRequest& request, const PortLimits& limits) {
  const auto number = [&](std::string_view name) { return parse_number(request.query_value(name)); };
  const auto size = number("size");
  if (!size || *size == 0) return invalid_argument("the query needs size=<bytes of the whole file>, at least 1");
  if (*size > limits.cargo_bytes) {
    return resource_exhausted("the file has " + std::to_string(*size) + " bytes, and " +
                              std::to_string(limits.cargo_bytes) + " are allowed");
  }
  std::uint64_t offset = 0;
  if (request.method == "PUT") {
    const auto given = number("offset");
    if (!given) return invalid_argument("the query needs offset=<bytes>, a multiple of 4 MiB");
    offset = *given;
  }
  return UploadQuery{std::string(request.param("id")), std::string(request.header("skerry-ticket")), offset, *size};
}

Result<UploadRequest> permit(const HttpSide& side, const HttpRequest& request, const UploadQuery& query) {
  if (!side.options.cargo_access.check_upload) return permission_denied("this port takes no uploads");
  SKERRY_ASSIGN(std::string task,
                side.options.cargo_access.check_upload(*request.identity, request.identity->thumbprint, query.ticket,
                                                       query.id, query.size));
  return UploadRequest{std::move(task), request.identity->name, query.id, query.size};
}

}  // namespace

// ---- down ----

void HttpConnection::start_download() {
  offload(
      side_.disk,
      [this]() -> Result<MappedFile> {
        const std::string id(request_.param("id"));
        if (!side_.options.cargo_access.may_read) return permission_denied("this port gives no cargo away");
        SKERRY_TRY(side_.options.cargo_access.may_read(*request_.identity, id));
        SKERRY_ASSIGN(MappedFile file, side_.options.cargo->map_cargo(id));
        file.expect_sequential();
        return file;
      },
      [this](Result<MappedFile> file) {
        if (!file.ok()) return respond(HttpResponse::error(file.error()));
        send_cargo(std::move(file).value(), '"' + std::string(request_.param("id")) + '"');
      });
}

void HttpConnection::send_cargo(MappedFile file, const std::string& tag) {
  const std::uint64_t size = file.size();
  std::vector<std::pair<std::string, std::string>> headers{
      {"ETag", tag}, {"Accept-Ranges", "bytes"}, {"Cache-Control", "private, max-age=31536000, immutable"}};
  if (const auto wanted = request_.header("if-none-match"); !wanted.empty() && names_tag(wanted, tag))
    return respond({304, "", "", std::move(headers)});

  WantedRange range{0, size == 0 ? 0 : size - 1};
  int status = 200;
  const auto condition = request_.header("if-range");
  if (const auto wanted = request_.header("range"); !wanted.empty() && (condition.empty() || condition == tag)) {
    const auto parsed = parse_range(wanted, size);
    if (std::holds_alternative<NotSatisfiable>(parsed)) {
      HttpResponse response =
          HttpResponse::error({Code::kOutOfRange, "the cargo has " + std::to_string(size) +
                                                      " bytes, which the range '" + std::string(wanted) + "' misses"});
      response.status = 416;
      response.headers.emplace_back("Content-Range", "bytes */" + std::to_string(size));
      return respond(std::move(response));
    }
    if (const auto* part = std::get_if<WantedRange>(&parsed)) {
      range = *part;
      status = 206;
      headers.emplace_back("Content-Range", "bytes " + std::to_string(range.first) + '-' + std::to_string(range.last) +
                                                '/' + std::to_string(size));
    }
  }
  const std::uint64_t length = size == 0 ? 0 : range.last - range.first + 1;
  if (continue_wanted_ || chunked_ || body_left_ > 0) close_after_ = true;
  download_.emplace(Download{std::move(file), range.first, range.first + length});
  send_head(status, "application/octet-stream", length, headers, [this, self = shared_from_this()] {
    if (head_only()) return answered();
    send_mapped();
  });
}

void HttpConnection::send_mapped() {
  Download& file = *download_;
  if (auto read = file.file.check(); !read.ok()) {
    spdlog::error("{}", read.error().message);
    return close();  // a length was promised: only a broken connection tells the peer
  }
  if (file.position == file.end) return answered();
  if (file.position % kDropBehind < kPiece && file.position >= kDropBehind)
    file.file.drop(file.position - file.position % kDropBehind - kDropBehind, kDropBehind);
  const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, file.end - file.position));
  set_moving(true);
  stream_.write(file.file.bytes().subspan(static_cast<std::size_t>(file.position), count),
                [self = shared_from_this(), count](bool ok) {
                  if (!ok || self->closed_) return self->close();
                  self->download_->position += count;
                  self->count_down(count);
                  if (const auto& sent = self->side_.options.cargo_access.sent)
                    sent(*self->request_.identity, std::string(self->request_.param("id")), count);
                  self->send_mapped();
                });
}

void HttpConnection::start_source() {
  const auto bytes = parse_number(request_.query_value("bytes"));
  if (!bytes) return respond(HttpResponse::error(invalid_argument("the query needs bytes=<count>")));
  zeros_left_ = *bytes;
  if (chunked_ || body_left_ > 0) close_after_ = true;
  send_head(200, "application/octet-stream", *bytes, {}, [this, self = shared_from_this()] {
    if (head_only()) return answered();
    send_zeros();
  });
}

void HttpConnection::send_zeros() {
  static const std::vector<std::byte> kZeros(kPiece);
  if (zeros_left_ == 0) return answered();
  const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, zeros_left_));
  set_moving(true);
  stream_.write(std::span(kZeros).first(count), [self = shared_from_this(), count](bool ok) {
    if (!ok || self->closed_) return self->close();
    self->zeros_left_ -= count;
    self->count_down(count);
    self->send_zeros();
  });
}

// ---- up ----

void HttpConnection::answer_upload_status() {
  const auto query = parse_upload(request_, side_.options.limits);
  if (!query.ok()) return respond(HttpResponse::error(query.error()));
  offload(
      side_.disk,
      [this, query = query.value()]() -> Result<UploadStatus> {
        SKERRY_ASSIGN(const UploadRequest upload, permit(side_, request_, query));
        return side_.options.cargo->upload_status(upload);
      },
      [this](Result<UploadStatus> status) {
        respond(status.ok() ? status_json(*status) : HttpResponse::error(status.error()));
      });
}

void HttpConnection::start_upload() {
  auto query = parse_upload(request_, side_.options.limits);
  if (!query.ok()) {
    HttpResponse response = HttpResponse::error(query.error());
    if (query.error().code == Code::kResourceExhausted) response.status = 413;
    return respond(std::move(response));
  }
  if (chunked_ || !parser_->content_length()) {
    HttpResponse response = HttpResponse::error(invalid_argument("an upload needs a Content-Length"));
    response.status = 411;
    return respond(std::move(response));
  }
  if (query->offset > query->size || body_left_ > query->size - query->offset) {
    return respond(HttpResponse::error(invalid_argument("offset " + std::to_string(query->offset) + " and a body of " +
                                                        std::to_string(body_left_) + " bytes reach beyond the size " +
                                                        std::to_string(query->size))));
  }
  struct Opened {
    UploadStatus status;
    std::optional<ChunkWriter> writer;
  };
  offload(
      side_.disk,
      [this, query = std::move(query).value()]() -> Result<Opened> {
        SKERRY_ASSIGN(const UploadRequest upload, permit(side_, request_, query));
        Opened opened;
        SKERRY_ASSIGN(opened.status, side_.options.cargo->begin_upload(upload));
        if (opened.status.complete) return opened;
        SKERRY_ASSIGN(ChunkWriter writer, side_.options.cargo->write_upload(upload, query.offset));
        opened.writer = std::move(writer);
        return opened;
      },
      [this](Result<Opened> opened) {
        if (!opened.ok()) return respond(HttpResponse::error(opened.error()));
        begin_body_of_upload(std::move(opened->status), std::move(opened->writer));
      });
}

void HttpConnection::begin_body_of_upload(UploadStatus status, std::optional<ChunkWriter> writer) {
  if (closed_) return;
  if (!writer && continue_wanted_) return respond(status_json(status));  // complete: the body need not come
  upload_.emplace(Upload{std::move(status), std::move(writer), {}, 0, 0, false, false, std::nullopt});
  const std::size_t size =
      static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, std::max<std::uint64_t>(body_left_, inbox_.size())));
  for (auto& buffer : upload_->buffers) buffer.resize(std::max<std::size_t>(size, 1));
  // What came with the header stands in front.
  const std::size_t ready = static_cast<std::size_t>(std::min<std::uint64_t>({body_left_, inbox_.size(), size}));
  std::memcpy(upload_->buffers[0].data(), inbox_.data(), ready);
  inbox_.erase(0, ready);
  body_left_ -= ready;
  upload_->filled = ready;
  count_up(ready);
  say_continue([self = shared_from_this()] {
    self->watch(Watch::kProgress, self->side_.options.limits.progress_interval);
    self->pump_upload();
  });
}

// One buffer is filled from the stream while the other one is hashed and written.
void HttpConnection::pump_upload() {
  Upload& upload = *upload_;
  if (closed_) return;
  if (upload.error) {
    // A read that is under way ends first: its buffer is ours, and the answer closes the connection.
    if (!upload.reading && !upload.writing) respond(HttpResponse::error(*upload.error));
    return;
  }
  auto& buffer = upload.buffers[upload.filling];
  const bool full = upload.filled == buffer.size() || (body_left_ == 0 && upload.filled > 0);
  if (full && !upload.reading && !upload.writing) {
    const auto piece = std::span<const std::byte>(buffer).first(upload.filled);
    upload.filling = 1 - upload.filling;
    upload.filled = 0;
    if (upload.writer) {
      upload.writing = true;
      offload(
          side_.disk, [this, piece] { return upload_->writer->write(piece); },
          [this](Result<void> written) {
            upload_->writing = false;
            if (!written.ok()) upload_->error = written.error();
            pump_upload();
          });
    }
  }
  if (body_left_ > 0 && !upload.reading && upload.filled < upload.buffers[upload.filling].size()) {
    auto space = std::span(upload.buffers[upload.filling]).subspan(upload.filled);
    space = space.first(static_cast<std::size_t>(std::min<std::uint64_t>(space.size(), body_left_)));
    upload.reading = true;
    set_moving(true);
    stream_.read_some(space, [self = shared_from_this()](std::size_t count) {
      if (count == 0 || self->closed_) return self->close();
      self->upload_->reading = false;
      self->upload_->filled += count;
      self->body_left_ -= count;
      self->count_up(count);
      self->pump_upload();
    });
  } else if (!upload.reading) {
    set_moving(false);
  }
  if (body_left_ == 0 && upload.filled == 0 && !upload.reading && !upload.writing) finish_upload();
}

void HttpConnection::finish_upload() {
  set_moving(false);
  watch(Watch::kNothing, {});
  if (!upload_->writer) return respond(status_json(upload_->status));
  offload(
      side_.disk, [this] { return upload_->writer->finish(); },
      [this](Result<UploadStatus> status) {
        respond(status.ok() ? status_json(*status) : HttpResponse::error(status.error()));
      });
}

void HttpConnection::start_sink() {
  if (chunked_ || !parser_->content_length()) {
    HttpResponse response = HttpResponse::error(invalid_argument("an upload needs a Content-Length"));
    response.status = 411;
    return respond(std::move(response));
  }
  const std::size_t ready = static_cast<std::size_t>(std::min<std::uint64_t>(body_left_, inbox_.size()));
  inbox_.erase(0, ready);
  body_left_ -= ready;
  upload_.emplace();
  upload_->buffers[0].resize(kPiece);
  say_continue([self = shared_from_this()] {
    self->watch(Watch::kProgress, self->side_.options.limits.progress_interval);
    self->read_sink();
  });
}

void HttpConnection::read_sink() {
  if (body_left_ == 0) return respond(status_json({true, {}}));
  set_moving(true);
  const std::size_t most = static_cast<std::size_t>(std::min<std::uint64_t>(body_left_, kPiece));
  stream_.read_some(std::span(upload_->buffers[0]).first(most), [self = shared_from_this()](std::size_t count) {
    if (count == 0 || self->closed_) return self->close();
    self->body_left_ -= count;
    self->count_up(count);
    self->read_sink();
  });
}

}  // namespace skerry::server
