#include "server/backup/manifest.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <span>

#include "common/crypto/content_id.h"
#include "common/os/files.h"

namespace skerry::server {
namespace {

using nlohmann::json;

constexpr std::uint64_t kFormat = 1;
constexpr std::size_t kPiece = std::size_t{1} << 20;

std::string dump(const json& value) { return value.dump(1, ' ', false, json::error_handler_t::replace); }

/// The paths that a backup may have: below it, and of ordinary names.
bool plain_path(const std::string& path) {
  if (path.empty() || path.size() > 1000 || path.front() == '/') return false;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return path.find('\0') == std::string::npos;
}

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }
bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// Reads a file piece by piece.
template <typename Use>
Result<void> read_pieces(const File& file, Use use) {
  std::vector<std::byte> buffer(kPiece);
  for (std::uint64_t offset = 0;;) {
    SKERRY_ASSIGN(const std::size_t count, file.pread(buffer, offset));
    if (count == 0) return {};
    SKERRY_TRY(use(std::span<const std::byte>(buffer.data(), count), offset));
    file.drop_cache(offset, count);
    offset += count;
  }
}

}  // namespace

std::string manifest_text(const Manifest& manifest) {
  const BackupSummary& summary = manifest.summary;
  json files = json::array();
  for (const BackupFile& file : manifest.files)
    files.push_back({{"path", file.path}, {"size", file.size}, {"digest", file.digest}});
  json value = {{"format", "skerry-backup"},        {"version", kFormat},
                {"federation", summary.federation}, {"epoch", summary.epoch},
                {"created_ms", summary.created_ms}, {"receipts", summary.receipts},
                {"chain_head", summary.chain_head}, {"with_keys", summary.with_keys},
                {"files", std::move(files)}};
  value["digest"] = content_id(std::string_view(dump(value)));
  return dump(value) + "\n";
}

Result<Manifest> parse_manifest(const std::string& text, const std::string& path) {
  json value = json::parse(text, nullptr, false);
  const Error damaged = data_loss(path + " is damaged; use another backup");
  if (!value.is_object() || value.value("format", json()) != "skerry-backup" || !value["version"].is_number_unsigned()) return damaged;
  if (value["version"] > kFormat)
    return failed_precondition(path + " has format " + value["version"].dump() + ", this program knows formats up to " +
                               std::to_string(kFormat) + "; use the newer skerry-server that made the backup");
  const json digest = value["digest"];
  value.erase("digest");
  if (digest != content_id(std::string_view(dump(value)))) return damaged;
  Manifest manifest;
  try {
    BackupSummary& summary = manifest.summary;
    summary.federation = value.at("federation").get<std::string>();
    summary.epoch = value.at("epoch").get<std::string>();
    summary.created_ms = value.at("created_ms").get<std::int64_t>();
    summary.receipts = value.at("receipts").get<std::uint64_t>();
    summary.chain_head = value.at("chain_head").get<std::string>();
    summary.with_keys = value.at("with_keys").get<bool>();
    for (const json& file : value.at("files")) {
      manifest.files.push_back({file.at("path").get<std::string>(), file.at("size").get<std::uint64_t>(),
                                file.at("digest").get<std::string>()});
      if (!plain_path(manifest.files.back().path)) return damaged;
      summary.bytes += manifest.files.back().size;
    }
    summary.files = manifest.files.size();
  } catch (const json::exception&) {
    return damaged;
  }
  return manifest;
}

unsigned permissions_of(const std::string& path) {
  if (starts_with(path, "cargo/") || starts_with(path, "spool/")) return 0440;
  return ends_with(path, ".crt") ? 0644 : 0600;
}

Result<std::string> digest_file(const std::string& path, const OnBytes& add) {
  SKERRY_ASSIGN(const File file, File::open(path, OpenMode::kRead));
  ContentHasher hasher;
  SKERRY_TRY(read_pieces(file, [&](std::span<const std::byte> piece, std::uint64_t) {
    hasher.update(piece);
    return add(piece.size());
  }));
  return hasher.finish();
}

Result<BackupFile> copy_file(const std::string& from, const std::string& to, const std::string& path, const OnBytes& add) {
  const std::string target = join_path(to, path);
  SKERRY_ASSIGN(const File in, File::open(join_path(from, path), OpenMode::kRead));
  SKERRY_TRY(make_directories(parent_directory(target)));
  SKERRY_ASSIGN(File out, File::open(target, OpenMode::kCreate, 0600));
  BackupFile copied{path, 0, ""};
  ContentHasher hasher;
  const auto copy = [&](std::span<const std::byte> piece, std::uint64_t offset) -> Result<void> {
    hasher.update(piece);
    SKERRY_TRY(out.pwrite(piece, offset));
    out.start_writeback(offset, piece.size());
    copied.size += piece.size();
    return add(piece.size());
  };
  SKERRY_TRY(read_pieces(in, copy));
  copied.digest = hasher.finish();
  SKERRY_TRY(out.set_permissions(permissions_of(path)));
  SKERRY_TRY(out.fsync());
  return copied;
}

Result<void> check_digest(const std::string& path, const std::string& found, const std::string& expected) {
  if (found == expected) return {};
  return data_loss(path + " is damaged: its bytes have the content id " + found + ", not " + expected +
                   "; put it back from a backup that has it");
}

}  // namespace skerry::server
