#include "server/sim/attacks.h"

#include <algorithm>
#include <cmath>

#include "server/sim/text_form.h"

namespace skerry::sim {
namespace {

struct Name {
  std::string_view name;
  AttackKind kind;
};
constexpr Name kNames[] = {{"none", AttackKind::kNone},
                           {"sign_flip", AttackKind::kSignFlip},
                           {"noise", AttackKind::kNoise},
                           {"ipm", AttackKind::kInnerProduct},
                           {"alie", AttackKind::kALittle},
                           {"label_flip", AttackKind::kLabelFlip},
                           {"free_rider", AttackKind::kFreeRider},
                           {"model_replacement", AttackKind::kModelReplacement}};

/// The x below which a standard normal lies with probability p, by bisection of erfc: exact to the last digits.
double normal_quantile(double p) {
  double low = -40;
  double high = 40;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

std::vector<float> scaled(std::span<const float> values, double factor) {
  std::vector<float> out(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) out[i] = static_cast<float>(factor * static_cast<double>(values[i]));
  return out;
}

/// mean_factor · mean + deviation_factor · deviation of the honest updates, value by value.
std::vector<float> from_moments(const AttackView& view, double mean_factor, double deviation_factor) {
  const auto count = static_cast<double>(view.honest.size());
  std::vector<float> out(view.own.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    double sum = 0;
    for (const auto& update : view.honest) sum += static_cast<double>(update[i]);
    const double mean = sum / count;
    double squares = 0;
    if (deviation_factor != 0) {
      for (const auto& update : view.honest) {
        const double off = static_cast<double>(update[i]) - mean;
        squares += off * off;
      }
    }
    out[i] = static_cast<float>(mean_factor * mean + deviation_factor * std::sqrt(squares / count));
  }
  return out;
}

std::vector<float> noise(std::span<const float> own, double strength, Draws& draws) {
  double squares = 0;
  for (const float value : own) squares += static_cast<double>(value) * static_cast<double>(value);
  const double deviation = strength * std::sqrt(squares / static_cast<double>(own.size()));
  std::vector<float> out(own.size());
  for (float& value : out) value = static_cast<float>(deviation * draws.normal());
  return out;
}

}  // namespace

std::uint64_t AttackPlan::hostile(std::uint64_t clients) const {
  if (kind == AttackKind::kNone) return 0;
  const double wanted = share < 1 ? std::round(share * static_cast<double>(clients)) : share;
  return std::min(clients, static_cast<std::uint64_t>(wanted));
}

Result<AttackPlan> parse_attack(std::string_view text) {
  SKERRY_ASSIGN(const TextForm form, parse_text_form(text));
  const auto* known = std::find_if(std::begin(kNames), std::end(kNames), [&](const Name& name) { return name.name == form.name; });
  if (known == std::end(kNames)) {
    std::string names;
    for (const Name& name : kNames) names += (names.empty() ? "" : ", ") + std::string(name.name);
    return invalid_argument("\"" + std::string(text) + "\" is no attack; known are " + names);
  }
  if (known->kind == AttackKind::kNone && form.numbers.empty()) return AttackPlan{};
  if (known->kind == AttackKind::kNone || form.numbers.empty() || form.numbers.size() > 2) {
    return invalid_argument("\"" + std::string(text) + "\" must be KIND:COUNT or KIND:COUNT,STRENGTH, for example sign_flip:4");
  }
  AttackPlan plan{known->kind, form.numbers[0], std::nullopt};
  if (plan.share <= 0 || plan.share > 1e9 || (plan.share >= 1 && plan.share != std::floor(plan.share))) {
    return invalid_argument("\"" + std::string(text) + "\": the hostile clients must be a share in (0, 1) or a whole number");
  }
  if (form.numbers.size() == 2) plan.strength = form.numbers[1];
  return plan;
}

std::string_view attack_name(AttackKind kind) {
  return std::find_if(std::begin(kNames), std::end(kNames), [&](const Name& name) { return name.kind == kind; })->name;
}

double default_strength(AttackKind kind, std::uint64_t clients, std::uint64_t hostile, double outer_learning_rate) {
  switch (kind) {
    case AttackKind::kSignFlip: return 10;
    case AttackKind::kNoise: return 100;
    case AttackKind::kInnerProduct: return 0.5;
    case AttackKind::kALittle: return alie_z(clients, hostile);
    case AttackKind::kModelReplacement:
      return static_cast<double>(clients) / (outer_learning_rate > 0 ? outer_learning_rate : 1);
    default: return 0;
  }
}

double alie_z(std::uint64_t clients, std::uint64_t hostile) {
  const auto n = static_cast<double>(clients);
  const auto f = static_cast<double>(hostile);
  const double supporters = std::floor(n / 2 + 1) - f;
  if (hostile >= clients || supporters <= 0) return 0;
  const double share = (n - f - supporters) / (n - f);
  return share > 0.5 ? normal_quantile(share) : 0;
}

std::vector<float> hostile_update(AttackKind kind, double strength, const AttackView& view, Draws draws) {
  switch (kind) {
    case AttackKind::kSignFlip: return scaled(view.own, -strength);
    case AttackKind::kNoise: return noise(view.own, strength, draws);
    case AttackKind::kInnerProduct: return view.honest.empty() ? scaled(view.own, -strength) : from_moments(view, -strength, 0);
    case AttackKind::kALittle: return view.honest.empty() ? scaled(view.own, 1) : from_moments(view, 1, -strength);
    case AttackKind::kFreeRider:
      return view.last_change.empty() ? std::vector<float>(view.own.size(), 0.0f) : scaled(view.last_change, strength);
    case AttackKind::kModelReplacement: return scaled(view.own, strength);
    default: return scaled(view.own, 1);
  }
}

}  // namespace skerry::sim
