// The leader of an island and one of its workers: frames over one TCP connection. Tensors do not travel here (see
// island_group.h). docs/data-holders.md says what an island is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/os/files.h"

namespace skerry::trainer {

/// An address as digits: the trainer's sandbox has no name service.
struct IslandAddress {
  std::string host;  ///< IPv4, or IPv6 without brackets
  std::uint16_t port = 0;
};

/// "10.0.0.1:29400" or "[fd00::1]:29400". INVALID_ARGUMENT for anything else, a name among it.
Result<IslandAddress> parse_island_address(std::string_view text);

enum class FrameKind : std::uint8_t {
  kHello = 1,  ///< worker: who it is
  kOpen,       ///< leader: the run, and where the group meets
  kReady,      ///< worker: it is about to meet the others; again: it has met them
  kState,  ///< leader: everything that a step needs follows as tensors
  kStep,   ///< leader: rows of a batch and the learning rate
  kLoss,   ///< worker: of its rows; its gradient follows as a tensor
  kError,  ///< either: why it leaves
  kClose,  ///< leader: the run is over here
};

struct Frame {
  FrameKind kind = FrameKind::kClose;
  std::string payload;
};

class IslandLink {
 public:
  static constexpr std::uint64_t kMaxFrame = std::uint64_t{1} << 32;

  /// Takes a connected socket. Keepalive notices within half a minute that the other machine is gone.
  explicit IslandLink(FileDescriptor socket);

  /// UNAVAILABLE with the reason.
  static Result<IslandLink> connect(const IslandAddress& to);

  /// Sends one frame made of `pieces`. UNAVAILABLE where the other side is gone or reads nothing for a minute.
  Result<void> send(FrameKind kind, std::span<const std::span<const std::byte>> pieces);
  Result<void> send(FrameKind kind, std::string_view payload = {});

  /// The next frame. UNAVAILABLE at its end, DEADLINE_EXCEEDED after `timeout_ms` (negative: never), INVALID_ARGUMENT
  /// for what is none, or is longer than `most` bytes.
  Result<Frame> receive(std::int64_t timeout_ms, std::uint64_t most = kMaxFrame);

  /// The same, which must be of this kind; the sender's words where it is an error instead.
  Result<std::string> expect(FrameKind kind, std::int64_t timeout_ms, std::uint64_t most = kMaxFrame);

  /// The address by which the other side reaches this machine.
  std::string local_host() const;

  int fd() const { return socket_.get(); }

 private:
  Result<void> read_exactly(std::byte* out, std::size_t size, std::int64_t deadline_ms);

  FileDescriptor socket_;
};

/// Where an island's workers arrive.
class IslandDoor {
 public:
  /// Port 0: a free one. UNAVAILABLE where the address is not this machine's or is taken.
  static Result<IslandDoor> open(const IslandAddress& at);

  const IslandAddress& address() const { return address_; }

  /// The next who comes, within `timeout_ms`; DEADLINE_EXCEEDED.
  Result<IslandLink> accept(std::int64_t timeout_ms);

 private:
  FileDescriptor socket_;
  IslandAddress address_;
};

}  // namespace skerry::trainer
