#include "server/sim/traces.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "server/sim/text_form.h"

namespace skerry::sim {
namespace {

constexpr double kMost = 1e9;
constexpr std::string_view kFile = "file:";

Error wrong_form(std::string_view text, const char* known) {
  return invalid_argument("\"" + std::string(text) + "\" must be one of " + known);
}

std::map<std::string, std::size_t> places_of(const std::vector<std::string>& names) {
  std::map<std::string, std::size_t> places;
  for (std::size_t i = 0; i < names.size(); ++i) places[names[i]] = i;
  return places;
}

Result<std::size_t> client_of(const CsvTable& table, std::size_t row, std::size_t column,
                              const std::map<std::string, std::size_t>& places) {
  const std::string& name = table.rows[row][column];
  const auto found = places.find(name);
  if (found != places.end()) return found->second;
  return invalid_argument(table.path + " line " + std::to_string(table.lines[row]) + ": there is no client \"" + name +
                          "\"; they are " + (places.empty() ? "" : places.begin()->first + " … " + places.rbegin()->first));
}

std::int64_t in_ms(double seconds) { return static_cast<std::int64_t>(std::llround(seconds * 1000)); }

}  // namespace

Result<SpeedPlan> parse_speed(std::string_view text) {
  constexpr const char* kKnown = "constant:SPEED, uniform:FROM,TO, lognormal:SIGMA, file:PATH";
  if (text.starts_with(kFile)) return SpeedPlan{SpeedPlan::Kind::kFile, 1, 1, std::string(text.substr(kFile.size()))};
  SKERRY_ASSIGN(const TextForm form, parse_text_form(text));
  const auto& numbers = form.numbers;
  SpeedPlan plan;
  bool right = false;
  if (form.name == "constant" && numbers.size() == 1) {
    plan = {SpeedPlan::Kind::kConstant, numbers[0], 1, ""};
    right = plan.first > 0 && plan.first <= kMost;
  } else if (form.name == "uniform" && numbers.size() == 2) {
    plan = {SpeedPlan::Kind::kUniform, numbers[0], numbers[1], ""};
    right = plan.first > 0 && plan.first <= plan.second && plan.second <= kMost;
  } else if (form.name == "lognormal" && numbers.size() == 1) {
    plan = {SpeedPlan::Kind::kLognormal, numbers[0], 1, ""};
    right = plan.first >= 0 && plan.first <= 5;
  }
  if (!right) return wrong_form(text, kKnown);
  return plan;
}

Result<std::vector<Pace>> draw_paces(const SpeedPlan& plan, const std::vector<std::string>& names, const Pace& common,
                                     std::uint64_t seed) {
  std::vector<Pace> paces(names.size(), common);
  for (std::size_t i = 0; i < names.size(); ++i) {
    Draws draws(seed, "speed", i);
    if (plan.kind == SpeedPlan::Kind::kConstant) paces[i].speed = plan.first;
    if (plan.kind == SpeedPlan::Kind::kUniform) paces[i].speed = plan.first + (plan.second - plan.first) * draws.uniform();
    if (plan.kind == SpeedPlan::Kind::kLognormal) paces[i].speed = std::exp(plan.first * draws.normal());
  }
  if (plan.kind != SpeedPlan::Kind::kFile) return paces;

  SKERRY_ASSIGN(const CsvTable table, read_csv(plan.path));
  SKERRY_ASSIGN(const std::size_t client_column, table.column("client"));
  SKERRY_ASSIGN(const std::size_t speed_column, table.column("speed"));
  const auto places = places_of(names);
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    SKERRY_ASSIGN(const std::size_t client, client_of(table, row, client_column, places));
    SKERRY_ASSIGN(paces[client].speed, table.number(row, speed_column, 1e-6, kMost));
    for (const auto& [name, member] : {std::pair{"up_mbps", &Pace::up_mbps}, std::pair{"down_mbps", &Pace::down_mbps},
                                       std::pair{"latency_ms", &Pace::latency_ms}}) {
      if (!table.has(name)) continue;
      SKERRY_ASSIGN(const std::size_t column, table.column(name));
      SKERRY_ASSIGN(paces[client].*member, table.number(row, column, 0, kMost));
    }
  }
  return paces;
}

Result<AvailabilityPlan> parse_availability(std::string_view text) {
  constexpr const char* kKnown = "always, random:CHANCE, on_off:SECONDS,SECONDS, file:PATH";
  using Kind = AvailabilityPlan::Kind;
  if (text.starts_with(kFile)) return AvailabilityPlan{Kind::kFile, 1, 1, std::string(text.substr(kFile.size()))};
  SKERRY_ASSIGN(const TextForm form, parse_text_form(text));
  const auto& numbers = form.numbers;
  if (form.name == "always" && numbers.empty()) return AvailabilityPlan{};
  AvailabilityPlan plan;
  bool right = false;
  if (form.name == "random" && numbers.size() == 1) {
    plan = {Kind::kRandom, numbers[0], 1, ""};
    right = plan.first > 0 && plan.first <= 1;
  } else if (form.name == "on_off" && numbers.size() == 2) {
    plan = {Kind::kOnOff, numbers[0], numbers[1], ""};
    right = std::min(plan.first, plan.second) >= 0.1 && std::max(plan.first, plan.second) <= kMost;
  }
  if (!right) return wrong_form(text, kKnown);
  return plan;
}

Result<Availability> Availability::make(const AvailabilityPlan& plan, const std::vector<std::string>& names,
                                        std::uint64_t seed) {
  Availability availability;
  availability.plan_ = plan;
  availability.seed_ = seed;
  availability.clients_.resize(names.size());
  if (plan.kind == AvailabilityPlan::Kind::kOnOff) {
    for (std::size_t i = 0; i < names.size(); ++i) {
      Client& client = availability.clients_[i];
      client.draws.emplace(seed, "availability", i);
      const bool there = client.draws->uniform() < plan.first / (plan.first + plan.second);
      client.current = {there, in_ms(client.draws->exponential(there ? plan.first : plan.second)) + 1};
    }
  }
  if (plan.kind != AvailabilityPlan::Kind::kFile) return availability;

  SKERRY_ASSIGN(const CsvTable table, read_csv(plan.path));
  SKERRY_ASSIGN(const std::size_t client_column, table.column("client"));
  SKERRY_ASSIGN(const std::size_t from_column, table.column("from_s"));
  SKERRY_ASSIGN(const std::size_t to_column, table.column("to_s"));
  const auto places = places_of(names);
  std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> there(names.size());
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    SKERRY_ASSIGN(const std::size_t client, client_of(table, row, client_column, places));
    SKERRY_ASSIGN(const double from, table.number(row, from_column, 0, kMost));
    SKERRY_ASSIGN(const double to, table.number(row, to_column, from, kMost));
    there[client].emplace_back(in_ms(from), in_ms(to));
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (there[i].empty()) continue;
    std::sort(there[i].begin(), there[i].end());
    std::vector<Spell>& spells = availability.clients_[i].spells;
    std::int64_t at = 0;
    for (const auto& [from, to] : there[i]) {
      if (to <= at) continue;
      if (from > at) spells.push_back({false, from});
      // What touches or overlaps is one spell.
      if (!spells.empty() && spells.back().there && from <= at) spells.back().until_ms = to;
      else spells.push_back({true, to});
      at = to;
    }
    spells.push_back({false, std::nullopt});
    availability.clients_[i].current = spells.front();
  }
  return availability;
}

bool Availability::drawn(std::size_t client, std::uint64_t draw) const {
  // A number of its own for every pair, so that no client's draws overlap another's.
  Draws draws(seed_, "availability", (static_cast<std::uint64_t>(client) << 32) + draw);
  return draws.uniform() < plan_.first;
}

Availability::Spell Availability::spell(std::size_t client, std::int64_t at_ms) {
  Client& of = clients_[client];
  while (of.current.until_ms && *of.current.until_ms <= at_ms) {
    if (of.draws) {
      const bool there = !of.current.there;
      of.current = {there, *of.current.until_ms + in_ms(of.draws->exponential(there ? plan_.first : plan_.second)) + 1};
    } else {
      of.current = of.spells[++of.next];
    }
  }
  return of.current;
}

}  // namespace skerry::sim
