#include "server/sim/partition.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "server/sim/draws.h"
#include "server/sim/text_form.h"

namespace skerry::sim {
namespace {

using Rows = std::vector<std::uint64_t>;
using Kind = PartitionPlan::Kind;

struct Choice {
  const char* name;
  Kind kind;
  bool parameter;  ///< needed
  double least, most;
  bool whole;
};

constexpr Choice kChoices[] = {{"iid", Kind::kIid, false, 0, 0, false},
                               {"dirichlet", Kind::kDirichlet, true, 1e-3, 1e6, false},
                               {"shards", Kind::kShards, true, 1, 1e6, true},
                               {"labels", Kind::kLabels, true, 1, 1e6, true},
                               {"power", Kind::kPower, true, 0, 100, false},
                               {"linear", Kind::kLinear, true, 1, 1e6, false},
                               {"files", Kind::kFiles, false, 0, 0, false}};

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

/// Cuts `rows` into pieces by shares: piece i ends at floor(sum of the first i shares · size).
void deal_by_shares(const Rows& rows, const std::vector<double>& shares, std::vector<Rows>& clients) {
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  double sum = 0;
  std::size_t first = 0;
  for (std::size_t client = 0; client < clients.size(); ++client) {
    sum += shares[client];
    const std::size_t end = client + 1 == clients.size()
                                ? rows.size()
                                : std::min(rows.size(), static_cast<std::size_t>(
                                                            std::floor(sum / total * static_cast<double>(rows.size()))));
    for (; first < end; ++first) clients[client].push_back(rows[first]);
  }
}

std::vector<double> quantity_shares(const PartitionPlan& plan, std::uint64_t clients) {
  std::vector<double> shares(clients, 1.0);
  for (std::uint64_t i = 0; i < clients; ++i) {
    if (plan.kind == Kind::kPower) shares[i] = std::pow(static_cast<double>(i + 1), -plan.parameter);
    if (plan.kind == Kind::kLinear && clients > 1) {
      shares[i] = 1 + (plan.parameter - 1) * static_cast<double>(i) / static_cast<double>(clients - 1);
    }
  }
  return shares;
}

std::map<std::int64_t, Rows> rows_by_label(std::span<const std::int64_t> labels, Draws& draws) {
  std::map<std::int64_t, Rows> by_label;
  for (std::uint64_t row = 0; row < labels.size(); ++row) by_label[labels[row]].push_back(row);
  for (auto& [label, rows] : by_label) draws.shuffle(rows);
  return by_label;
}

void deal_dirichlet(const PartitionPlan& plan, std::span<const std::int64_t> labels, Draws& draws,
                    std::vector<Rows>& clients) {
  for (const auto& [label, rows] : rows_by_label(labels, draws)) {
    std::vector<double> shares(clients.size());
    for (double& share : shares) share = std::max(draws.gamma(plan.parameter), 1e-300);
    deal_by_shares(rows, shares, clients);
  }
}

void deal_shards(const PartitionPlan& plan, std::span<const std::int64_t> labels, Draws& draws, std::vector<Rows>& clients) {
  Rows sorted;
  for (const auto& [label, rows] : rows_by_label(labels, draws)) sorted.insert(sorted.end(), rows.begin(), rows.end());
  const auto each = static_cast<std::size_t>(plan.parameter);
  std::vector<std::size_t> shards(clients.size() * each);
  std::iota(shards.begin(), shards.end(), std::size_t{0});
  draws.shuffle(shards);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::size_t first = sorted.size() * shards[i] / shards.size();
    const std::size_t end = sorted.size() * (shards[i] + 1) / shards.size();
    for (std::size_t at = first; at < end; ++at) clients[i / each].push_back(sorted[at]);
  }
}

void deal_labels(const PartitionPlan& plan, std::span<const std::int64_t> labels, Draws& draws, std::vector<Rows>& clients) {
  const auto by_label = rows_by_label(labels, draws);
  std::vector<std::int64_t> known;
  for (const auto& [label, rows] : by_label) known.push_back(label);
  const std::size_t each = std::min(known.size(), static_cast<std::size_t>(plan.parameter));
  // Labels are handed out from a deck that is shuffled anew when it is empty, so that each is held about as often.
  std::map<std::int64_t, std::vector<std::size_t>> holders;
  std::vector<std::int64_t> deck;
  for (std::size_t client = 0; client < clients.size(); ++client) {
    std::vector<std::int64_t> own;
    while (own.size() < each) {
      auto next = std::find_if(deck.rbegin(), deck.rend(),
                               [&](std::int64_t label) { return std::find(own.begin(), own.end(), label) == own.end(); });
      if (next == deck.rend()) {
        std::vector<std::int64_t> fresh = known;
        draws.shuffle(fresh);
        deck.insert(deck.begin(), fresh.begin(), fresh.end());
        continue;
      }
      own.push_back(*next);
      deck.erase(std::next(next).base());
    }
    for (const std::int64_t label : own) holders[label].push_back(client);
  }
  std::size_t orphan = 0;
  for (const auto& [label, rows] : by_label) {
    auto& of = holders[label];
    if (of.empty()) of.push_back(orphan++ % clients.size());  // more labels than places: nothing is left out
    for (std::size_t i = 0; i < rows.size(); ++i) clients[of[i * of.size() / rows.size()]].push_back(rows[i]);
  }
}

/// Moves rows, one at a time, from the client that has most to those below the minimum.
void fill_up(std::uint64_t minimum, std::vector<Rows>& clients) {
  for (Rows& poor : clients) {
    while (poor.size() < minimum) {
      Rows& rich = *std::max_element(clients.begin(), clients.end(),
                                     [](const Rows& a, const Rows& b) { return a.size() < b.size(); });
      poor.push_back(rich.back());
      rich.pop_back();
    }
  }
}

}  // namespace

Result<PartitionPlan> parse_partition(std::string_view text) {
  SKERRY_ASSIGN(const TextForm form, parse_text_form(text));
  for (const Choice& choice : kChoices) {
    if (form.name != choice.name) continue;
    const std::size_t needed = choice.parameter ? 1 : 0;
    if (form.numbers.size() < needed || form.numbers.size() > needed + (choice.kind == Kind::kFiles ? 0 : 1)) {
      return invalid_argument("\"" + std::string(text) + "\": " + choice.name + " takes " +
                              (choice.parameter ? "one number and, after a comma, the least rows a client has"
                               : choice.kind == Kind::kFiles ? "no number"
                                                             : "at most one number, the least rows a client has"));
    }
    PartitionPlan plan{choice.kind, choice.parameter ? form.numbers[0] : 0, 1};
    if (choice.parameter && (plan.parameter < choice.least || plan.parameter > choice.most ||
                             (choice.whole && plan.parameter != std::floor(plan.parameter)))) {
      return invalid_argument("\"" + std::string(text) + "\": the number of " + choice.name + " must be " +
                              (choice.whole ? "a whole number " : "") + "from " + number_text(choice.least) + " to " +
                              number_text(choice.most));
    }
    if (form.numbers.size() > needed) {
      const double minimum = form.numbers.back();
      if (minimum < 1 || minimum > 1e9 || minimum != std::floor(minimum)) {
        return invalid_argument("\"" + std::string(text) + "\": the least rows a client has must be a whole number from 1");
      }
      plan.minimum = static_cast<std::uint64_t>(minimum);
    }
    return plan;
  }
  return invalid_argument("\"" + std::string(text) +
                          "\" is no partition; known are iid, dirichlet:ALPHA, shards:N, labels:N, power:BETA, "
                          "linear:RATIO, files");
}

Result<std::vector<Rows>> partition_rows(const PartitionPlan& plan, std::uint64_t rows,
                                         std::span<const std::int64_t> labels, std::uint64_t clients,
                                         std::uint64_t seed) {
  if (plan.needs_labels() && labels.size() != rows) {
    return invalid_argument("this partition goes by labels, and the data has none: choose iid, power or linear");
  }
  if (clients == 0 || rows / clients < plan.minimum) {
    return invalid_argument(std::to_string(clients) + " clients with at least " + std::to_string(plan.minimum) +
                            " rows each need more than the " + std::to_string(rows) + " rows there are");
  }
  Draws draws(seed, "partition");
  std::vector<Rows> dealt(clients);
  switch (plan.kind) {
    case Kind::kDirichlet: deal_dirichlet(plan, labels, draws, dealt); break;
    case Kind::kShards: deal_shards(plan, labels, draws, dealt); break;
    case Kind::kLabels: deal_labels(plan, labels, draws, dealt); break;
    default: {
      Rows all(rows);
      std::iota(all.begin(), all.end(), std::uint64_t{0});
      draws.shuffle(all);
      deal_by_shares(all, quantity_shares(plan, clients), dealt);
    }
  }
  fill_up(plan.minimum, dealt);
  for (Rows& own : dealt) draws.shuffle(own);
  return dealt;
}

std::vector<std::uint64_t> partition_sizes(const PartitionPlan& plan, std::uint64_t total, std::uint64_t clients) {
  const std::vector<double> shares = quantity_shares(plan, clients);
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<std::uint64_t> sizes(clients);
  double gone = 0;
  std::uint64_t first = 0;
  for (std::uint64_t i = 0; i < clients; ++i) {
    gone += shares[i];
    const std::uint64_t end =
        i + 1 == clients ? total
                         : std::min(total, static_cast<std::uint64_t>(std::floor(gone / sum * static_cast<double>(total))));
    sizes[i] = end - first;
    first = end;
  }
  return sizes;
}

}  // namespace skerry::sim
