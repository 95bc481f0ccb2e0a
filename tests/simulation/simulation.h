// One seeded history of a federation: the real run machine, the real client machines, a network, disks and crashes on a
// virtual clock. The same seed gives the same history, event by event.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <queue>
#include <string>
#include <string_view>
#include <vector>

namespace skerry::simulation {

/// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  /// In [0, bound); 0 for bound 0.
  std::uint64_t below(std::uint64_t bound) { return bound == 0 ? 0 : next() % bound; }
  std::int64_t between(std::int64_t least, std::int64_t most) {
    return least + static_cast<std::int64_t>(below(static_cast<std::uint64_t>(most - least + 1)));
  }
  bool chance(double probability) { return static_cast<double>(next() >> 11) * 0x1p-53 < probability; }

 private:
  std::uint64_t state_;
};

/// What the history of a seed looks like; drawn from the seed.
struct Shape {
  int clients = 1;
  int fragments = 1;
  bool staggered = false;
  bool twins = false;    ///< with control fragments
  bool frozen = false;   ///< with a fragment that no task writes
  bool partial = false;  ///< updates may carry some of their fragments
  bool rebased = false;  ///< the rule needs what updates were measured against
  bool overlapped = false;  ///< nodes train on while their updates travel
  std::string toml;  ///< the sections that differ between histories
  std::int64_t faults_end_ms = 0;
  double link_breaks = 0;       ///< chance for each message
  double duplicates = 0;        ///< chance for each update
  double drops = 0;             ///< chance for each update that it arrives in a state in which it cannot count
  double trainer_failures = 0;  ///< chance for each task
  double reduce_failures = 0;
  int coordinator_crashes = 0;
  int client_crashes = 0;
  int pauses = 0;
  bool stops = false;
};

struct Outcome {
  bool ended = false;   ///< the run and every client came to rest
  std::string outcome;  ///< "completed", "stopped", "failed"
  std::vector<std::string> violations;
  std::uint64_t digest = 0;  ///< of the whole history
  std::uint64_t events = 0;
  std::uint64_t counted = 0;
  std::uint64_t discarded = 0;
  std::int64_t virtual_ms = 0;
};

/// Virtual time and everything that is to happen in it, in a fixed order.
class World {
 public:
  explicit World(std::uint64_t seed) : random(seed) {}

  std::int64_t now() const { return now_; }
  void after(std::int64_t delay_ms, std::function<void()> happening) {
    queue_.push({now_ + delay_ms, serial_++, std::move(happening)});
  }
  /// The next happening; false where there is none or it lies beyond `limit`.
  bool step(std::int64_t limit) {
    if (queue_.empty() || queue_.top().at > limit) return false;
    auto happening = queue_.top().run;
    now_ = queue_.top().at;
    queue_.pop();
    ++events;
    happening();
    return true;
  }
  bool faults() const { return now_ < faults_end; }
  /// Part of the history: what it says must repeat with the seed.
  void record(std::string_view text) {
    for (const char c : text) digest = (digest ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
    digest = (digest ^ static_cast<std::uint64_t>(now_)) * 0x100000001B3u;
    if (trace)
      std::fprintf(stderr, "%10lld  %.*s\n", static_cast<long long>(now_), static_cast<int>(text.size()), text.data());
  }
  void violation(std::string text) {
    record("VIOLATION " + text);
    violations.push_back(std::move(text));
  }

  Random random;
  Shape shape;
  std::int64_t faults_end = 0;
  std::uint64_t digest = 0xCBF29CE484222325u;
  std::uint64_t events = 0;
  std::uint64_t links = 0;  ///< connections made so far
  bool trace = false;
  std::vector<std::string> violations;

 private:
  struct Happening {
    std::int64_t at;
    std::uint64_t serial;
    std::function<void()> run;
    bool operator<(const Happening& other) const { return at != other.at ? at > other.at : serial > other.serial; }
  };
  std::priority_queue<Happening> queue_;
  std::int64_t now_ = 0;
  std::uint64_t serial_ = 0;
};

/// Seeds from here on draw overlapped runs.
constexpr std::uint64_t kFirstOverlapped = 1000000000;

/// Runs the history of a seed to its end. With `trace` it is told on stderr.
Outcome simulate(std::uint64_t seed, bool trace = false);

/// The shape a seed draws, in words, for a failure's message.
std::string describe(const Shape& shape);

}  // namespace skerry::simulation
