#include "client/daemon/session/cargo_client.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/crypto/content_id.h"
#include "common/os/files.h"

namespace skerry::client {
namespace {

using nlohmann::json;

HttpOptions http_options(const Profile& profile, const std::string& proxy, const std::atomic<bool>* cancelled) {
  HttpOptions options;
  options.ca_pem = profile.ca_pem;
  options.certificate_path = profile.certificate_path();
  options.key_path = profile.key_path();
  options.proxy = proxy;
  options.cancelled = cancelled;
  return options;
}

Error refused(const std::string& what, const HttpResponse& response) {
  const json body = json::parse(response.body, nullptr, false);
  std::string reason;
  if (body.is_object()) {
    const auto error = body.find("error");
    if (error != body.end() && error->is_string()) reason = error->get<std::string>();
    const json& holder = error != body.end() && error->is_object() ? *error : body;
    if (const auto message = holder.find("message"); reason.empty() && message != holder.end() && message->is_string())
      reason = message->get<std::string>();
  }
  if (reason.empty()) reason = "HTTP status " + std::to_string(response.status);
  const std::string text = what + ": " + reason;
  switch (response.status) {
    case 401: return unauthenticated(text);
    case 403: return permission_denied(text);
    case 404: return not_found(text);
    case 409: return unavailable(text);  // another upload of the same bytes is under way
    case 413: return {Code::kResourceExhausted, text, false};
    case 422: return data_loss(text);
    case 429:
    case 507: return resource_exhausted(text);
    default: break;
  }
  if (response.status >= 500) return unavailable(text);
  return failed_precondition(text);
}

// Up to this size an upload is sent without asking first what the coordinator has of it.
constexpr std::uint64_t kSentAtOnce = 2 * kChunkBytes;

constexpr std::size_t kMaxIdle = 3;  // as many as the daemon has workers

struct ByteRange {
  std::uint64_t first = 0;
  std::uint64_t last = 0;  // inclusive
};

}  // namespace

CargoClient::CargoClient(const Profile& profile, const std::string& proxy, const std::atomic<bool>* cancelled)
    : base_("https://" + profile.address + "/api/v1/cargo/"), http_(http_options(profile, proxy, cancelled)) {}

Result<void> CargoClient::download(const std::string& content_id, std::uint64_t size, const std::string& path) {
  SKERRY_TRY(check_content_id(content_id));
  const std::string part = path + ".part";
  SKERRY_ASSIGN(File file, File::open(part, OpenMode::kCreateOrOpen));
  SKERRY_ASSIGN(std::uint64_t have, file.size());
  if (have > size) have = 0;
  ContentHasher hasher;
  std::vector<std::byte> block(static_cast<std::size_t>(std::min<std::uint64_t>(1 << 20, std::max<std::uint64_t>(have, 1))));
  for (std::uint64_t at = 0; at < have; at += block.size()) {
    const auto piece = std::span(block).first(static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), have - at)));
    SKERRY_TRY(file.pread_exact(piece, at));
    hasher.update(piece);
  }
  SKERRY_TRY(file.resize(have));
  if (have < size) {
    std::uint64_t at = have;
    HttpRequest request;
    request.url = base_ + content_id;
    if (have > 0) request.range_first = have;
    request.sink = [&](int status, std::span<const std::byte> piece) -> Result<void> {
      if (status == 200 && have > 0) {  // the whole came instead of the rest
        hasher.finish();
        at = have = 0;
      }
      if (piece.size() > size - at) return data_loss("cargo " + content_id + " is longer than " + std::to_string(size) + " bytes");
      SKERRY_TRY(file.pwrite(piece, at));
      hasher.update(piece);
      at += piece.size();
      return {};
    };
    SKERRY_ASSIGN(const HttpResponse response, http_.send(request));
    if (response.status != 200 && response.status != 206) return refused("cannot fetch cargo " + content_id, response);
    if (at != size) return unavailable("cargo " + content_id + " ended after " + std::to_string(at) + " of " + std::to_string(size) + " bytes");
  }
  if (hasher.finish() != content_id) {
    SKERRY_TRY(remove_file(part));
    Error error = data_loss("the bytes fetched for cargo " + content_id + " are others; they were dropped");
    error.retryable = true;
    return error;
  }
  if (::rename(part.c_str(), path.c_str()) != 0) return file_error(errno, "rename", part);
  return {};
}

Result<void> CargoClient::upload(const std::string& path, const std::string& content_id, std::uint64_t size, const std::string& ticket) {
  SKERRY_ASSIGN(const File file, File::open(path, OpenMode::kRead));
  SKERRY_ASSIGN(const std::uint64_t there, file.size());
  if (there != size) return data_loss(path + " has " + std::to_string(there) + " bytes, the update says " + std::to_string(size));

  if (size <= kSentAtOnce) {
    auto complete = put(file, 0, size, content_id, size, ticket);
    if (complete.ok() && *complete) return {};
    if (!complete.ok() && !complete.error().retryable) return std::move(complete).error();
  }
  HttpRequest query;
  query.url = base_ + content_id + "/upload?size=" + std::to_string(size);
  query.headers = {{"Skerry-Ticket", ticket}};
  SKERRY_ASSIGN(const HttpResponse state, http_.send(query));
  if (state.status != 200) return refused("the coordinator takes no upload of " + content_id, state);
  const json answer = json::parse(state.body, nullptr, false);
  std::vector<ByteRange> missing;
  bool complete = false;
  try {
    complete = answer.at("complete").get<bool>();
    for (const auto& range : answer.at("missing")) missing.push_back({range.at(0).get<std::uint64_t>(), range.at(1).get<std::uint64_t>()});
  } catch (const json::exception&) {
    return unavailable("the coordinator's answer about the upload of " + content_id + " is not understood");
  }
  for (const auto& range : missing) {
    if (range.first > range.last || range.last >= size || range.first % kChunkBytes != 0)
      return unavailable("the coordinator asks for bytes that cargo " + content_id + " does not have");
    SKERRY_ASSIGN(complete, put(file, range.first, range.last - range.first + 1, content_id, size, ticket));
  }
  if (!complete) return unavailable("the coordinator still lacks parts of " + content_id);
  return {};
}

/// Sends these bytes; whether the coordinator has the whole now.
Result<bool> CargoClient::put(const File& file, std::uint64_t first, std::uint64_t bytes, const std::string& content_id,
                              std::uint64_t size, const std::string& ticket) {
  HttpRequest request;
  request.method = "PUT";
  request.url = base_ + content_id + "?offset=" + std::to_string(first) + "&size=" + std::to_string(size);
  request.headers = {{"Skerry-Ticket", ticket}, {"Content-Type", "application/octet-stream"}};
  request.file = FileSlice{file.fd(), first, bytes};
  SKERRY_ASSIGN(const HttpResponse response, http_.send(request));
  if (response.status != 200 && response.status != 201 && response.status != 204) return refused("upload of " + content_id, response);
  const json done = json::parse(response.body, nullptr, false);
  return done.is_object() && done.contains("complete") && done["complete"].is_boolean() && done["complete"].get<bool>();
}

std::shared_ptr<CargoClient> CargoPool::borrow(const std::shared_ptr<const Profile>& profile, const std::string& proxy,
                                               const std::atomic<bool>* cancelled) {
  std::unique_ptr<CargoClient> client;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(idle_, [&](const Idle& idle) { return idle.profile != profile; });  // the certificate was renewed
    if (!idle_.empty()) {
      client = std::move(idle_.back().client);
      idle_.pop_back();
    }
  }
  if (client == nullptr) client = std::make_unique<CargoClient>(*profile, proxy);
  client->watch(cancelled);
  return {client.release(), [this, profile](CargoClient* done) {
            std::unique_ptr<CargoClient> back(done);
            back->watch(nullptr);
            const std::lock_guard lock(mutex_);
            if (idle_.size() < kMaxIdle) idle_.push_back({profile, std::move(back)});
          }};
}

void CargoPool::clear() {
  const std::lock_guard lock(mutex_);
  idle_.clear();
}

}  // namespace skerry::client
