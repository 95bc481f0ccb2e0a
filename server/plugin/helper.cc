#include "server/plugin/helper.h"

#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "common/base/encoding_text.h"

namespace skerry::server {

using namespace plugin_wire;

namespace {

constexpr std::size_t kMaxSaid = 400;        // of what a plug-in says, in a message
constexpr std::int64_t kEndWaitMs = 2'000;   // between the end of a socket and the end of its process
constexpr std::uint64_t kThreadBytes = std::uint64_t{80} << 20;  // of address space: a stack and an allocator's arena
constexpr std::uint64_t kProgramBytes = std::uint64_t{128} << 20;

Result<std::pair<FileDescriptor, FileDescriptor>> socket_pair(std::uint32_t deadline_ms) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return file_error(errno, "make", "a socket for a plug-in's helper");
  std::pair<FileDescriptor, FileDescriptor> pair(ends[0], ends[1]);
  timeval timeout{};
  timeout.tv_sec = deadline_ms / 1000;
  timeout.tv_usec = static_cast<suseconds_t>(deadline_ms % 1000) * 1000;
  for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO})
    if (::setsockopt(ends[0], SOL_SOCKET, option, &timeout, sizeof timeout) != 0) return file_error(errno, "set up", "a socket for a plug-in's helper");
  return pair;
}

}  // namespace

Result<std::shared_ptr<Helper>> Helper::start(const HelperPlan& plan) {
  std::shared_ptr<Helper> helper(new Helper(plan));
  SKERRY_TRY(helper->begin());
  Slot slot(*helper);
  SKERRY_TRY(slot.call({.call = Call::kLoad}, "its start"));
  return helper;
}

Result<void> Helper::begin() {
  const std::uint64_t shared = plan_.slots * kSlotBytes;
  const FileDescriptor memory(::memfd_create("skerry-plugin-spans", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  // Sealed, so that the helper cannot cut pages away from under us.
  if (!memory || ::ftruncate(memory.get(), static_cast<off_t>(shared)) != 0 ||
      ::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return file_error(errno, "make", "memory shared with a plug-in's helper");
  void* mapped = ::mmap(nullptr, shared, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (mapped == MAP_FAILED) return file_error(errno, "map", "memory shared with a plug-in's helper");
  memory_ = static_cast<std::byte*>(mapped);

  SpawnOptions options;
  options.command = {plan_.program, std::to_string(plan_.slots)};
  options.working_directory = "/";
  options.environment = plan_.environment;
  options.pipe_stdout = false;
  options.descriptors = {{plan_.object_fd, kObjectFd}, {memory.get(), kMemoryFd}};
  std::vector<FileDescriptor> theirs;
  for (unsigned i = 0; i < plan_.slots; ++i) {
    SKERRY_ASSIGN(auto pair, socket_pair(plan_.deadline_ms));
    options.descriptors.emplace_back(pair.second.get(), kFirstSlotFd + static_cast<int>(i));
    sockets_.push_back(std::move(pair.first));
    theirs.push_back(std::move(pair.second));
    free_.push_back(i);
  }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  options.memory_bytes = (plan_.memory_mb << 20) + shared + plan_.slots * kThreadBytes + kProgramBytes;
#endif
  SKERRY_ASSIGN(process_, Process::spawn(options));
  return {};
}

Helper::~Helper() {
  process_.reset();
  if (memory_) ::munmap(memory_, plan_.slots * kSlotBytes);
}

bool Helper::alive() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !failure_;
}

Helper::Slot::Slot(Helper& helper) : helper_(helper) {
  std::unique_lock<std::mutex> lock(helper.mutex_);
  helper.slot_free_.wait(lock, [&] { return !helper.free_.empty(); });
  index_ = helper.free_.back();
  helper.free_.pop_back();
  memory_ = helper.memory_ + index_ * kSlotBytes;
}

Helper::Slot::~Slot() {
  {
    const std::lock_guard<std::mutex> lock(helper_.mutex_);
    helper_.free_.push_back(index_);
  }
  helper_.slot_free_.notify_one();
}

Result<Reply> Helper::Slot::call(const Request& request, const char* what) {
  if (!helper_.alive()) return helper_.ended(what, std::nullopt);
  const int socket = helper_.sockets_[index_].get();
  Reply reply;
  ssize_t done = 0;
  do {
    done = ::send(socket, &request, sizeof request, MSG_NOSIGNAL);
  } while (done < 0 && errno == EINTR);
  if (done == static_cast<ssize_t>(sizeof request)) {
    do {
      done = ::recv(socket, &reply, sizeof reply, MSG_TRUNC);
    } while (done < 0 && errno == EINTR);
  }
  if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
    return helper_.ended(what, Error{Code::kDeadlineExceeded, "did not answer within " + std::to_string(helper_.plan_.deadline_ms) +
                                                                  " ms and was killed (deadline_ms in [[plugins]])"});
  if (done <= 0) return helper_.ended(what, std::nullopt);
  if (done != static_cast<ssize_t>(sizeof reply) || reply.outcome > Outcome::kFailed || reply.text_bytes > kTextBytes ||
      reply.numbers > kSumBytes / sizeof(double))
    return helper_.ended(what, internal_error("answered with a message that is none"));
  if (reply.outcome == Outcome::kDone) return reply;
  const std::string said = "plug-in " + helper_.plan_.name + ": " + what + ": " + one_line(text_of(reply), kMaxSaid);
  return reply.outcome == Outcome::kRefused ? invalid_argument(said) : internal_error(said);
}

Error Helper::distrust(const Error& why, const char* what) { return ended(what, internal_error("gave a wrong answer and was ended: " + why.message)); }

// The helper is of no more use: the first caller learns how it ended, the others get the same error.
Error Helper::ended(const char* what, const std::optional<Error>& instead) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failure_) return *failure_;
  std::string how = "was ended";
  if (!instead) {
    const auto status = process_->wait(kEndWaitMs);
    how = status ? "its helper " + to_string(*status) : "its helper closed its connection and was ended";
    const auto said = read_available(process_->stderr_fd(), 4096);
    if (said.ok() && !said->data.empty()) how += ", saying: " + one_line(said->data, kMaxSaid);
  } else {
    how = instead->message;
  }
  process_->send_signal(SIGKILL);
  (void)process_->wait(-1);
  failure_ = Error{instead ? instead->code : Code::kInternal, "plug-in " + plan_.name + ": " + what + ": " + how};
  return *failure_;
}

}  // namespace skerry::server
