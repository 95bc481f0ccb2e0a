#include "tests/bench/parts/rates.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include "client/daemon/session/cargo_client.h"
#include "common/crypto/content_id.h"
#include "common/crypto/keys.h"
#include "common/net/http_client.h"
#include "common/os/files.h"

namespace skerry::bench {
namespace {

constexpr std::uint64_t kPiece = 1u << 20;
constexpr std::uint64_t kInMemory = 64u << 20;  // what is sent or hashed again and again

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<std::byte> random_bytes(std::uint64_t count) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(count));
  std::mt19937_64 random(std::random_device{}());
  for (std::size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const std::uint64_t word = random();
    std::copy_n(reinterpret_cast<const std::byte*>(&word), 8, bytes.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return bytes;
}

HttpOptions http_options(const Profile& profile) {
  HttpOptions options;
  options.ca_pem = profile.ca_pem;
  options.certificate_path = profile.certificate_path();
  options.key_path = profile.key_path();
  return options;
}

Result<void> check(const HttpResponse& response) {
  if (response.status == 200) return {};
  return failed_precondition("the coordinator answered " + std::to_string(response.status) + " (was it started with --measure?): " + response.body);
}

Result<double> rate_of_writing(const std::string& directory, std::uint64_t bytes, bool durable) {
  const std::string path = join_path(directory, "write-rate");
  const auto piece = random_bytes(kPiece);
  const auto start = std::chrono::steady_clock::now();
  {
    SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrEmpty));
    for (std::uint64_t at = 0; at < bytes; at += kPiece)
      SKERRY_TRY(file.pwrite(std::span(piece).first(static_cast<std::size_t>(std::min(kPiece, bytes - at))), at));
    if (durable) SKERRY_TRY(file.fsync());
  }
  if (durable) SKERRY_TRY(fsync_directory(directory));
  const double seconds = seconds_since(start);
  SKERRY_TRY(remove_file(path));
  return static_cast<double>(bytes) / seconds;
}

}  // namespace

double hash_rate(std::uint64_t bytes, unsigned threads) {
  const auto memory = random_bytes(std::min(bytes, kInMemory));
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t done = 0;
  for (; done < bytes; done += memory.size()) (void)content_id(memory, threads);
  return static_cast<double>(done) / seconds_since(start);
}

Result<double> write_rate(const std::string& directory, std::uint64_t bytes) { return rate_of_writing(directory, bytes, true); }
Result<double> cached_write_rate(const std::string& directory, std::uint64_t bytes) { return rate_of_writing(directory, bytes, false); }

Result<double> commit_rate(const std::string& directory, unsigned commits, std::size_t commit_bytes) {
  const std::string path = join_path(directory, "commit-rate");
  const auto bytes = random_bytes(commit_bytes);
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrEmpty));
  const auto start = std::chrono::steady_clock::now();
  for (unsigned i = 0; i < commits; ++i) {
    SKERRY_TRY(file.pwrite(bytes, i * commit_bytes));
    SKERRY_TRY(file.fdatasync());
  }
  const double seconds = seconds_since(start);
  SKERRY_TRY(remove_file(path));
  return commits / seconds;
}

Result<double> verify_rate(unsigned count) {
  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::generate());
  const std::string message(4096, 'm');
  SKERRY_ASSIGN(const std::string signature, key.sign(message));
  const PublicKey verifier = key.public_key();
  const auto start = std::chrono::steady_clock::now();
  for (unsigned i = 0; i < count; ++i) SKERRY_TRY(verifier.verify(message, signature));
  return count / seconds_since(start);
}

Result<double> sink_rate(const Profile& profile, std::uint64_t bytes) {
  HttpClient http(http_options(profile));
  const auto memory = random_bytes(std::min(bytes, 4 * kInMemory));
  HttpRequest request;
  request.method = "PUT";
  request.url = "https://" + profile.address + "/api/v1/measure/sink";
  request.memory = std::span(memory).first(1);
  SKERRY_ASSIGN(const HttpResponse ready, http.send(request));  // the handshake is not measured
  SKERRY_TRY(check(ready));
  request.memory = memory;
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t done = 0;
  for (; done < bytes; done += memory.size()) {
    SKERRY_ASSIGN(const HttpResponse response, http.send(request));
    SKERRY_TRY(check(response));
  }
  return static_cast<double>(done) / seconds_since(start);
}

Result<double> source_rate(const Profile& profile, std::uint64_t bytes) {
  HttpClient http(http_options(profile));
  std::uint64_t got = 0;
  HttpRequest request;
  request.sink = [&got](int, std::span<const std::byte> piece) -> Result<void> {
    got += piece.size();
    return {};
  };
  const std::string url = "https://" + profile.address + "/api/v1/measure/source?bytes=";
  request.url = url + "1";
  SKERRY_ASSIGN(const HttpResponse ready, http.send(request));
  SKERRY_TRY(check(ready));
  request.url = url + std::to_string(bytes);
  got = 0;
  const auto start = std::chrono::steady_clock::now();
  SKERRY_ASSIGN(const HttpResponse response, http.send(request));
  SKERRY_TRY(check(response));
  const double seconds = seconds_since(start);
  if (got != bytes) return data_loss(std::to_string(got) + " of " + std::to_string(bytes) + " bytes came");
  return static_cast<double>(bytes) / seconds;
}

Result<double> cargo_upload_rate(const Profile& profile, const std::string& directory, std::uint64_t bytes) {
  const std::string path = join_path(directory, "upload-rate");
  ContentHasher hasher;
  {
    SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrEmpty));
    auto piece = random_bytes(kInMemory);
    for (std::uint64_t at = 0; at < bytes; at += piece.size()) {
      std::rotate(piece.begin(), piece.begin() + 8, piece.end());
      const auto part = std::span(piece).first(static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), bytes - at)));
      SKERRY_TRY(file.pwrite(part, at));
      hasher.update(part);
    }
    SKERRY_TRY(file.fsync());  // so that its own writing back does not disturb
  }
  client::CargoClient cargo(profile, "");
  const std::string id = hasher.finish();
  const auto start = std::chrono::steady_clock::now();
  SKERRY_TRY(cargo.upload(path, id, bytes, ""));
  const double seconds = seconds_since(start);
  SKERRY_TRY(remove_file(path));
  return static_cast<double>(bytes) / seconds;
}

}  // namespace skerry::bench
