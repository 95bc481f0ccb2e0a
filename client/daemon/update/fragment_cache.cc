#include "client/daemon/update/fragment_cache.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <utility>

#include "common/codec/compression.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"

namespace skerry::client {
namespace {

constexpr std::string_view kSuffix = ".safetensors";
constexpr std::size_t kIdLength = 67;
constexpr std::uint64_t kBlockElements = 256 * 1024;

std::string file_name(const v1::FragmentVersion& version) {
  return version.fragment() + "-" + std::to_string(version.version()) + "-" + version.whole().content_id() + std::string(kSuffix);
}

/// "f0-7-b2-….safetensors" → f0, 7, b2-…
std::optional<FragmentCache::Entry> parse_name(const std::string& name) {
  if (!name.ends_with(kSuffix) || name.size() < kIdLength + kSuffix.size() + 4) return std::nullopt;
  FragmentCache::Entry entry;
  const std::size_t id_at = name.size() - kSuffix.size() - kIdLength;
  entry.content_id = name.substr(id_at, kIdLength);
  if (!check_content_id(entry.content_id).ok() || name[id_at - 1] != '-') return std::nullopt;
  const std::string front = name.substr(0, id_at - 1);
  const auto dash = front.rfind('-');
  if (dash == std::string::npos) return std::nullopt;
  entry.fragment = front.substr(0, dash);
  const auto [end, error] = std::from_chars(front.data() + dash + 1, front.data() + front.size(), entry.version);
  if (error != std::errc() || end != front.data() + front.size()) return std::nullopt;
  return entry;
}

Result<std::string> id_of_file(const std::string& path) {
  SKERRY_ASSIGN(const MappedFile map, MappedFile::open(path));
  map.expect_sequential();
  ContentHasher hasher;
  for (std::uint64_t at = 0; at < map.size(); at += kChunkBytes) {
    const auto piece = map.bytes().subspan(at, std::min<std::uint64_t>(kChunkBytes, map.size() - at));
    hasher.update(piece);
    map.drop(at, piece.size());
  }
  SKERRY_TRY(map.check());
  return hasher.finish();
}

}  // namespace

Result<FragmentCache> FragmentCache::open(std::string directory, ModelLayout layout) {
  SKERRY_TRY(make_directories(directory));
  FragmentCache cache(std::move(directory), std::move(layout));
  SKERRY_TRY(cache.scan(true));
  return cache;
}

Result<FragmentCache> FragmentCache::look(std::string directory, ModelLayout layout) {
  FragmentCache cache(std::move(directory), std::move(layout));
  SKERRY_TRY(cache.scan(false));
  return cache;
}

Result<void> FragmentCache::scan(bool tidy) {
  SKERRY_ASSIGN(const auto names, list_directory(directory_));
  for (const auto& found : names) {
    const std::string path = join_path(directory_, found.name);
    auto entry = parse_name(found.name);
    if (!entry || layout_.find_fragment(entry->fragment) == nullptr) {
      if (tidy && !found.name.ends_with(".part")) (void)remove_file(path);  // a download that broke off goes on later
      continue;
    }
    entry->path = path;
    entries_.push_back(std::make_shared<Entry>(std::move(*entry)));
  }
  return {};
}

Result<void> FragmentCache::verify(std::string_view fragment, std::uint64_t version) {
  for (auto& entry : entries_) {
    if (entry->fragment != fragment || entry->version != version || entry->verified) continue;
    SKERRY_ASSIGN(const std::string id, id_of_file(entry->path));
    if (id != entry->content_id) return data_loss(entry->path + " is damaged: its content is not what its name says");
    SKERRY_ASSIGN(FragmentFile file, FragmentFile::open(entry->path, layout_, entry->fragment));
    const std::lock_guard lock(*mutex_);
    entry->file = std::make_unique<FragmentFile>(std::move(file));
    entry->verified = true;
  }
  return {};
}

std::shared_ptr<FragmentCache::Entry> FragmentCache::lookup(std::string_view fragment, std::uint64_t version,
                                                            std::string_view content_id) {
  for (auto& entry : entries_)
    if (entry->fragment == fragment && entry->version == version && entry->content_id == content_id) return entry;
  return nullptr;
}

std::shared_ptr<const FragmentCache::Entry> FragmentCache::find(std::string_view fragment, std::uint64_t version) const {
  const std::lock_guard lock(*mutex_);
  for (const auto& entry : entries_)
    if (entry->verified && entry->fragment == fragment && entry->version == version) return entry;
  return nullptr;
}

std::shared_ptr<const FragmentCache::Entry> FragmentCache::newest(std::string_view fragment) const {
  const std::lock_guard lock(*mutex_);
  std::shared_ptr<const Entry> best;
  for (const auto& entry : entries_)
    if (entry->fragment == fragment && (best == nullptr || entry->version > best->version)) best = entry;
  return best;
}

Result<void> FragmentCache::bring(const v1::FragmentVersion& wanted, const Download& download) {
  const auto* fragment = layout_.find_fragment(wanted.fragment());
  if (fragment == nullptr) return invalid_argument("the model has no fragment \"" + wanted.fragment() + "\"");
  if (fragment->role == FragmentRole::kPersonal)
    return invalid_argument("fragment \"" + wanted.fragment() + "\" is personal, no coordinator has it");
  SKERRY_TRY(check_content_id(wanted.whole().content_id()));
  SKERRY_ASSIGN(const std::string header, fragment_header(layout_, wanted.fragment()));
  const std::uint64_t size = header.size() + 4 * fragment->elements;
  if (wanted.whole().size() != size)
    return invalid_argument("fragment " + wanted.fragment() + " version " + std::to_string(wanted.version()) + " is said to have " +
                            std::to_string(wanted.whole().size()) + " bytes, the model's layout gives " + std::to_string(size));

  if (const auto known = lookup(wanted.fragment(), wanted.version(), wanted.whole().content_id()); known != nullptr) {
    if (known->verified) return {};
    if (verify(wanted.fragment(), wanted.version()).ok() && known->verified) return {};
    (void)remove_file(known->path);
    const std::lock_guard lock(*mutex_);
    std::erase(entries_, known);
  }

  Entry entry;
  entry.fragment = wanted.fragment();
  entry.version = wanted.version();
  entry.content_id = wanted.whole().content_id();
  entry.path = join_path(directory_, file_name(wanted));
  if (!wanted.whole().inline_data().empty()) {
    SKERRY_TRY(write_inline(wanted, entry.path));
    return admit(std::move(entry));
  }
  SKERRY_ASSIGN(const bool stepped, apply_step(wanted, download, entry.path));
  if (stepped) return admit(std::move(entry));
  SKERRY_TRY(download(entry.content_id, size, entry.path));
  return admit(std::move(entry));
}

Result<void> FragmentCache::admit(Entry entry) {
  SKERRY_ASSIGN(FragmentFile file, FragmentFile::open(entry.path, layout_, entry.fragment));
  entry.file = std::make_unique<FragmentFile>(std::move(file));
  entry.verified = true;
  const std::lock_guard lock(*mutex_);
  entries_.push_back(std::make_shared<Entry>(std::move(entry)));
  return {};
}

Result<void> FragmentCache::write_inline(const v1::FragmentVersion& wanted, const std::string& path) const {
  const std::string& data = wanted.whole().inline_data();
  if (data.size() != wanted.whole().size() || content_id(data) != wanted.whole().content_id())
    return invalid_argument("the bytes of fragment " + wanted.fragment() + " version " + std::to_string(wanted.version()) +
                            " are not those that its content id names");
  // Half a file after a crash is found out by its name.
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrEmpty));
  return file.pwrite(as_bytes_of(data), 0);
}

Result<bool> FragmentCache::apply_step(const v1::FragmentVersion& wanted, const Download& download, const std::string& path) const {
  if (wanted.version() == 0 || wanted.step().content_id().empty() || wanted.step_encoding().empty()) return false;
  const auto before = find(wanted.fragment(), wanted.version() - 1);
  if (before == nullptr) return false;
  SKERRY_ASSIGN(const WireEncoding wire, find_wire_encoding(wanted.step_encoding()));
  const Encoding* encoding = wire.encoding;
  SKERRY_TRY(check_content_id(wanted.step().content_id()));
  const std::uint64_t elements = before->file->elements();
  const std::uint64_t encoded = encoding->encoded_bytes(elements);
  if (wire.zstd ? wanted.step().size() >= encoded : wanted.step().size() != encoded)
    return invalid_argument("the step of fragment " + wanted.fragment() + " is said to have " + std::to_string(wanted.step().size()) +
                            " bytes, " + wanted.step_encoding() + " gives " + (wire.zstd ? "fewer than " : "") + std::to_string(encoded));

  std::optional<MappedFile> fetched;
  std::span<const std::byte> payload = as_bytes_of(wanted.step().inline_data());
  const std::string step_path = path + ".step";
  if (payload.empty()) {
    SKERRY_TRY(download(wanted.step().content_id(), wanted.step().size(), step_path));
    SKERRY_ASSIGN(MappedFile map, MappedFile::open(step_path));
    fetched.emplace(std::move(map));
    payload = fetched->bytes();
  } else if (content_id(payload) != wanted.step().content_id()) {
    return invalid_argument("the step's bytes of fragment " + wanted.fragment() + " are not those that its content id names");
  }
  if (payload.size() != wanted.step().size()) return invalid_argument("the step of fragment " + wanted.fragment() + " has a wrong size");
  std::optional<MappedFile> inflated;
  if (wire.zstd) {
    const std::string inflated_path = path + ".inflated";
    SKERRY_TRY(decompress_to_file(payload, encoded, inflated_path));
    SKERRY_ASSIGN(MappedFile map, MappedFile::open(inflated_path));
    SKERRY_TRY(remove_file(inflated_path));  // the map keeps it
    inflated.emplace(std::move(map));
    payload = inflated->bytes();
  }

  const std::string temporary = path + ".new";
  SKERRY_ASSIGN(const std::string header, fragment_header(layout_, wanted.fragment()));
  SKERRY_ASSIGN(File file, File::open(temporary, OpenMode::kCreateOrEmpty));
  ContentHasher hasher;
  hasher.update(header);
  SKERRY_TRY(file.pwrite(as_bytes_of(header), 0));
  const std::uint64_t granule = encoding->block_elements();
  const std::uint64_t block = std::max<std::uint64_t>(granule, kBlockElements / granule * granule);
  std::vector<float> values(std::min(block, elements));
  std::vector<float> step(values.size());
  for (std::uint64_t first = 0; first < elements; first += block) {
    const std::size_t count = static_cast<std::size_t>(std::min(block, elements - first));
    const auto now = std::span(values).first(count);
    SKERRY_TRY(before->file->read(first, now));
    decode_at(*encoding, payload, first, std::span(step).first(count));
    for (std::size_t i = 0; i < count; ++i) now[i] += step[i];
    hasher.update(std::as_bytes(now));
    SKERRY_TRY(file.pwrite(std::as_bytes(now), header.size() + 4 * first));
  }
  if (fetched) {
    SKERRY_TRY(fetched->check());
    fetched.reset();
    SKERRY_TRY(remove_file(step_path));
  }
  if (hasher.finish() != wanted.whole().content_id()) {
    SKERRY_TRY(remove_file(temporary));
    return false;
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return file_error(errno, "rename", temporary);
  return true;
}

void FragmentCache::trim(const std::set<std::pair<std::string, std::uint64_t>>& keep) {
  const std::lock_guard lock(*mutex_);
  std::map<std::string, std::uint64_t> top;
  for (const auto& entry : entries_) {
    auto& version = top[entry->fragment];
    version = std::max(version, entry->version);
  }
  std::erase_if(entries_, [&](const auto& entry) {
    if (entry->version == top[entry->fragment] || keep.contains({entry->fragment, entry->version})) return false;
    (void)remove_file(entry->path);
    return true;
  });
}

}  // namespace skerry::client
