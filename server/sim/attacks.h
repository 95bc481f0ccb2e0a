// What hostile clients send instead of an honest update. All of Δ = base − trained, as everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "server/sim/draws.h"

namespace skerry::sim {

enum class AttackKind {
  kNone,
  kSignFlip,          ///< −s · its own honest Δ
  kNoise,             ///< normal draws whose deviation is s times the root mean square of its own honest Δ
  kInnerProduct,      ///< −s · mean of the honest Δ (IPM; Xie, Koyejo, Gupta, UAI 2019)
  kALittle,           ///< mean − s · deviation of the honest Δ, value by value (ALIE; Baruch et al., NeurIPS 2019)
  kLabelFlip,         ///< trains on labels y → classes − 1 − y, then is honest
  kFreeRider,         ///< s times the model's last change instead of what it trained; 0: a zero update
  kModelReplacement,  ///< s times the Δ trained on flipped labels (Bagdasaryan et al., AISTATS 2020)
};

struct AttackPlan {
  AttackKind kind = AttackKind::kNone;
  double share = 0;              ///< hostile clients: below 1 a share of all, otherwise their number
  std::optional<double> strength;  ///< s above; nothing: default_strength()

  bool poisons_labels() const { return kind == AttackKind::kLabelFlip || kind == AttackKind::kModelReplacement; }
  /// The attackers see the honest updates of their round.
  bool needs_honest() const { return kind == AttackKind::kInnerProduct || kind == AttackKind::kALittle; }
  bool alters_update() const { return kind != AttackKind::kNone && kind != AttackKind::kLabelFlip; }

  /// How many of `clients` are hostile: a share is rounded to the nearest.
  std::uint64_t hostile(std::uint64_t clients) const;
};

/// "none", or "KIND:COUNT" or "KIND:COUNT,STRENGTH": "sign_flip:4", "alie:0.2", "ipm:4,0.5". INVALID_ARGUMENT.
Result<AttackPlan> parse_attack(std::string_view text);
std::string_view attack_name(AttackKind kind);

/// The strength where the plan gives none: sign_flip 10, noise 100, ipm 0.5, free_rider 0, alie alie_z(n, f),
/// model_replacement n / η (n updates an exchange, η the outer optimizer's learning rate).
double default_strength(AttackKind kind, std::uint64_t clients, std::uint64_t hostile, double outer_learning_rate);

/// Baruch et al.'s z for n clients of which f are hostile: with s = ⌊n/2 + 1⌋ − f, the z below which a standard normal
/// lies with probability (n − f − s) / (n − f); 0 where that is below one half.
double alie_z(std::uint64_t clients, std::uint64_t hostile);

/// What an attacker knows when it makes its update; all vectors are as long as `own`.
struct AttackView {
  std::span<const float> own;                       ///< what it would send if it were honest
  std::span<const float> last_change;               ///< base before − base now; empty: none yet
  std::vector<std::span<const float>> honest = {};  ///< the honest updates of its round, in the order of their nodes
};

/// The update it sends. Without honest updates to look at, ipm and alie send −s and 1 times their own.
std::vector<float> hostile_update(AttackKind kind, double strength, const AttackView& view, Draws draws);

}  // namespace skerry::sim
