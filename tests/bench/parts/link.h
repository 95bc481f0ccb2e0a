// A slow line between a data holder and the coordinator, emulated in user space: so many bytes a second each way, so much delay.
//
// A TCP relay: TLS stays end to end. All connections of the line share its rate, as those of a holder do. Each way is a
// server that passes one byte after another at the line's rate and hands them over a delay later; it accepts what the line
// can pass in the next milliseconds and leaves the rest with the sender, so that nobody is told of bytes that still wait.
// There is no loss and no slow start.
#pragma once

#include <cstdint>
#include <memory>

#include "common/base/result.h"

namespace skerry::bench {

struct LineRate {
  double up = 0;        ///< bytes a second to the coordinator; 0: as fast as it goes
  double down = 0;      ///< bytes a second from it
  double delay_ms = 0;  ///< each way
};

/// Relays from a port of its own on 127.0.0.1 to another one until destroyed; its connections end with it.
class Link {
 public:
  /// UNAVAILABLE where no port is free.
  static Result<std::unique_ptr<Link>> open(int to_port, LineRate rate);
  ~Link();

  int port() const;

  /// Takes effect at once, for connections that stand, too.
  void set_rate(LineRate rate);

  /// Bytes that were passed, TLS and all.
  std::uint64_t bytes_up() const;
  std::uint64_t bytes_down() const;

 private:
  struct State;
  explicit Link(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// What a line of this rate really does, between two sockets of this process.
struct LineAccuracy {
  double up = 0;      ///< bytes a second of `seconds` worth of bytes
  double down = 0;    ///< likewise
  double rtt_ms = 0;  ///< median of 20 answers to one byte
};
Result<LineAccuracy> measure_line(LineRate rate, double seconds);

}  // namespace skerry::bench
