#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>

#include "common/os/files.h"

namespace skerry {
namespace {

// What the signal handler may look at: every live mapping, in a table without locks.
struct Slot {
  std::atomic<bool> used{false};
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<bool> faulted{false};
};

constexpr int kSlots = 4096;
std::array<Slot, kSlots> g_slots;
struct sigaction g_previous {};

/// A page of a mapping could not be read: puts zeros in its place and marks the mapping. Any other SIGBUS takes its old
/// course. Only system calls and lock-free atomics here.
void on_sigbus(int signal, siginfo_t* info, void* context) {
  int saved_errno = errno;
  auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Slot& slot : g_slots) {
    if (address < slot.begin.load() || address >= slot.end.load()) continue;
    auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    void* start = reinterpret_cast<void*>(address / page * page);  // NOLINT(performance-no-int-to-ptr)
    if (::mmap(start, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != start) break;
    slot.faulted.store(true);
    errno = saved_errno;
    return;
  }
  if ((g_previous.sa_flags & SA_SIGINFO) != 0 && g_previous.sa_sigaction != nullptr) {
    g_previous.sa_sigaction(signal, info, context);
  } else {
    ::sigaction(SIGBUS, &g_previous, nullptr);  // the instruction faults again and ends the process as before
  }
  errno = saved_errno;
}

void install_handler_once() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &g_previous);
  });
}

int take_slot(const void* data, std::size_t size) {
  for (int i = 0; i < kSlots; ++i) {
    Slot& slot = g_slots[static_cast<std::size_t>(i)];
    bool expected = false;
    if (!slot.used.compare_exchange_strong(expected, true)) continue;
    slot.faulted.store(false);
    slot.begin.store(reinterpret_cast<std::uintptr_t>(data));
    slot.end.store(reinterpret_cast<std::uintptr_t>(data) + size);
    return i;
  }
  return -1;
}

void give_slot_back(int index) {
  Slot& slot = g_slots[static_cast<std::size_t>(index)];
  slot.end.store(0);
  slot.begin.store(0);
  slot.used.store(false);
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  install_handler_once();
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return file_error(errno, "open", path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return file_error(errno, "look at", path);
  if (!S_ISREG(info.st_mode)) return invalid_argument("cannot map " + path + ": it is not a regular file");
  MappedFile file;
  file.path_ = path;
  file.size_ = static_cast<std::size_t>(info.st_size);
  if (file.size_ == 0) return file;
  void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return file_error(errno, "map", path);
  file.data_ = static_cast<const std::byte*>(data);
  file.slot_ = take_slot(data, file.size_);
  if (file.slot_ < 0) {
    return resource_exhausted("cannot map " + path + ": " + std::to_string(kSlots) + " files are mapped already");
  }
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      slot_(std::exchange(other.slot_, -1)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    close();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    slot_ = std::exchange(other.slot_, -1);
    path_ = std::move(other.path_);
  }
  return *this;
}

MappedFile::~MappedFile() { close(); }

void MappedFile::close() {
  if (slot_ >= 0) give_slot_back(slot_);
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  slot_ = -1;
  data_ = nullptr;
  size_ = 0;
}

Result<void> MappedFile::check() const {
  if (slot_ >= 0 && g_slots[static_cast<std::size_t>(slot_)].faulted.load()) {
    return data_loss("a page of " + path_ + " could not be read: the file was cut or the disk has failed");
  }
  return {};
}

void MappedFile::drop(std::uint64_t offset, std::uint64_t length) const {
  if (data_ == nullptr || offset >= size_) return;
  auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  std::uint64_t end = length > size_ - offset ? size_ : offset + length;
  std::uint64_t first = (offset + page - 1) / page * page;  // whole pages only: a neighbour's bytes stay
  std::uint64_t last = end == size_ ? end : end / page * page;
  if (first >= last) return;
  (void)::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
}

void MappedFile::expect_sequential() const {
  if (data_ != nullptr) (void)::madvise(const_cast<std::byte*>(data_), size_, MADV_SEQUENTIAL);
}

}  // namespace skerry
