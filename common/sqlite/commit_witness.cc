#include "common/sqlite/commit_witness.h"

#include <algorithm>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <utility>

namespace skerry::sqlite {
namespace {

constexpr std::size_t kSlotBytes = 64;

std::uint64_t check_of(std::uint64_t number) { return (number ^ 0x736b65727279) * 0x9e3779b97f4a7c15; }

/// Every byte of a slot is fixed by its number, so that any change shows.
std::string slot_of(std::uint64_t number) {
  char text[kSlotBytes + 1];
  std::snprintf(text, sizeof text, "%020" PRIu64 " %016" PRIx64 "%26s\n", number, check_of(number), "");
  return std::string(text, kSlotBytes);
}

std::optional<std::uint64_t> parse_slot(std::string_view slot) {
  std::uint64_t number = 0;
  const auto parsed = std::from_chars(slot.data(), slot.data() + std::min<std::size_t>(slot.size(), 20), number);
  if (parsed.ec != std::errc() || slot != slot_of(number)) return std::nullopt;
  return number;
}

}  // namespace

Result<CommitWitness> CommitWitness::open(const std::string& database) {
  const std::string path = database + "-commits";
  const bool fresh = !path_exists(path);
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrOpen, 0600));
  CommitWitness witness(std::move(file));
  if (fresh) {
    SKERRY_TRY(witness.reset(0));
    SKERRY_TRY(fsync_directory(parent_directory(path)));
  }
  return witness;
}

Result<void> CommitWitness::reset(std::uint64_t number) {
  SKERRY_TRY(file_.pwrite(as_bytes_of(slot_of(number) + slot_of(number)), 0));
  return file_.fsync();
}

Result<std::uint64_t> CommitWitness::read() const {
  std::string text(2 * kSlotBytes, '\0');
  SKERRY_ASSIGN(const std::size_t count, file_.pread(std::as_writable_bytes(std::span(text.data(), text.size())), 0));
  text.resize(count);
  std::optional<std::uint64_t> newest;
  for (std::size_t begin = 0; begin + kSlotBytes <= text.size(); begin += kSlotBytes) {
    const auto number = parse_slot(std::string_view(text).substr(begin, kSlotBytes));
    if (number && (!newest || *number > *newest)) newest = number;
  }
  if (newest) return *newest;
  return data_loss(file_.path() + " is damaged, so nobody can tell whether the database beside it has its newest commits; "
                   "if you know that it has, remove this file and start again, else restore a backup");
}

Result<void> CommitWitness::write(std::uint64_t number) {
  return file_.pwrite(as_bytes_of(slot_of(number)), number % 2 * kSlotBytes);
}

}  // namespace skerry::sqlite
