// How fast virtual clients are and when they are there: drawn from a seed, or read from a file.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "server/sim/draws.h"

namespace skerry::sim {

/// One client's machine and line.
struct Pace {
  double speed = 1;       ///< inner steps take step_seconds / speed
  double up_mbps = 0;     ///< megabits a second; 0: bytes take no time
  double down_mbps = 0;
  double latency_ms = 0;  ///< of every message

  bool operator==(const Pace&) const = default;
};

struct SpeedPlan {
  enum class Kind { kConstant, kUniform, kLognormal, kFile };
  Kind kind = Kind::kConstant;
  double first = 1;   ///< constant: the speed; uniform: from; lognormal: sigma of ln(speed), median 1
  double second = 1;  ///< uniform: to
  std::string path;   ///< file: CSV with columns client, speed and, if wanted, up_mbps, down_mbps, latency_ms
};

/// "constant:1", "uniform:0.5,2", "lognormal:0.5", "file:PATH". INVALID_ARGUMENT.
Result<SpeedPlan> parse_speed(std::string_view text);

/// One for each client, in the order of `names`. `common` is what a client has that the plan says nothing of. Errors of
/// the file name its line; a client may be missing in it.
Result<std::vector<Pace>> draw_paces(const SpeedPlan& plan, const std::vector<std::string>& names, const Pace& common,
                                     std::uint64_t seed);

struct AvailabilityPlan {
  enum class Kind { kAlways, kRandom, kOnOff, kFile };
  Kind kind = Kind::kAlways;
  double first = 1;     ///< random: the chance of being there; on-off: mean seconds on
  double second = 1;    ///< on-off: mean seconds off
  std::string path;     ///< file: CSV with columns client, from_s, to_s: when the client is there
};

/// "always", "random:0.8" (drawn for every round), "on_off:600,300" (exponential spells), "file:PATH".
/// INVALID_ARGUMENT.
Result<AvailabilityPlan> parse_availability(std::string_view text);

/// When each client is there.
class Availability {
 public:
  /// Errors of the file name its line. A client that the file does not name is always there.
  static Result<Availability> make(const AvailabilityPlan& plan, const std::vector<std::string>& names,
                                   std::uint64_t seed);

  /// Whether the clients are drawn anew for every round: then ask drawn(), otherwise spell().
  bool by_round() const { return plan_.kind == AvailabilityPlan::Kind::kRandom; }
  bool drawn(std::size_t client, std::uint64_t draw) const;

  struct Spell {
    bool there = true;
    std::optional<std::int64_t> until_ms;  ///< when that changes; nothing: never
  };
  /// The client's state at this virtual time, which must not go back from call to call.
  Spell spell(std::size_t client, std::int64_t at_ms);

 private:
  struct Client {
    std::vector<Spell> spells;  ///< file
    std::optional<Draws> draws;
    Spell current = {};
    std::size_t next = 0;
  };
  AvailabilityPlan plan_;
  std::uint64_t seed_ = 0;
  std::vector<Client> clients_;
};

}  // namespace skerry::sim
