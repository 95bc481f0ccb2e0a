// Rules of your own, written as the built-in ones are (strategies/aggregation/rule.h), in a shared object:
//
//   #include "strategies/sdk/plugin.hpp"
//   using namespace skerry::strategies;
//
//   Result<Rule> clipped_mean(const Part& part) { … return rule; }
//
//   SKERRY_PLUGIN("my-rules", "1.0.0",
//                 {{{"clipped_mean", "mean of updates that are no longer than a bound", {{.name = "bound", …}}}, clipped_mean}})
//
// Header-only: needs C++20, nlohmann_json and nothing else of Skerry's but headers. docs/strategies.md, "Your own rule".
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "strategies/aggregation/rule.h"
#include "strategies/sdk/plugin.h"

namespace skerry::strategies::sdk {

/// A rule of the plug-in: how run specs name it, and how to make it from a part with every parameter given and checked.
struct RuleExport {
  PartInfo info;
  Result<Rule> (*make)(const Part& part);
};

struct PluginExport {
  std::string name;
  std::string version;
  std::vector<RuleExport> rules;
};

// ---- the C interface, implemented once for every plug-in

namespace detail {

inline nlohmann::json to_json(const Value& value) {
  return std::visit([](const auto& known) { return nlohmann::json(known); }, value);
}

inline nlohmann::json to_json(const ParameterInfo& info) {
  return {{"name", info.name},
          {"meaning", info.meaning},
          {"default", to_json(info.fallback)},
          {"minimum", info.minimum},
          {"maximum", info.maximum},
          {"above_minimum", info.above_minimum},
          {"below_maximum", info.below_maximum},
          {"whole", info.whole},
          {"choices", info.choices}};
}

inline nlohmann::json to_json(const PluginExport& plugin) {
  nlohmann::json rules = nlohmann::json::array();
  for (const RuleExport& rule : plugin.rules) {
    nlohmann::json parameters = nlohmann::json::array();
    for (const ParameterInfo& info : rule.info.parameters) parameters.push_back(to_json(info));
    rules.push_back({{"name", rule.info.name}, {"meaning", rule.info.meaning}, {"parameters", std::move(parameters)}});
  }
  return {{"name", plugin.name}, {"version", plugin.version}, {"rules", std::move(rules)}};
}

inline nlohmann::json to_json(const Needs& needs) {
  return {{"individual_updates", needs.individual_updates},
          {"linear", needs.linear},
          {"all_clients", needs.all_clients},
          {"tensors", needs.tensors},
          {"rebased", needs.rebased},
          {"partial_updates", needs.partial_updates},
          {"nodes", needs.nodes},
          {"metrics", needs.metrics},
          {"minimum_updates", needs.minimum_updates},
          {"because", needs.because},
          {"maximum_updates", needs.maximum_updates}};
}

inline Part part_from(const nlohmann::json& json) {
  Part part{json.at("name").get<std::string>(), {}};
  for (const auto& [name, value] : json.at("parameters").items()) {
    if (value.is_boolean()) part.parameters[name] = value.get<bool>();
    else if (value.is_string()) part.parameters[name] = value.get<std::string>();
    else part.parameters[name] = value.get<double>();
  }
  return part;
}

// A cohort with what its spans point to.
struct OwnedCohort {
  std::vector<Contribution> contributions;
  std::vector<TensorRange> tensors;
  Cohort view;

  explicit OwnedCohort(const nlohmann::json& json) {
    for (const auto& from : json.at("contributions")) {
      Contribution& to = contributions.emplace_back();
      to.examples = from.at("examples").get<std::uint64_t>();
      to.tokens = from.at("tokens").get<std::uint64_t>();
      to.steps = from.at("steps").get<std::uint64_t>();
      to.factor = from.at("factor").get<double>();
      to.node = from.at("node").get<std::string>();
      to.metrics = from.at("metrics").get<std::vector<double>>();
    }
    for (const auto& from : json.at("tensors"))
      tensors.push_back({from.at("name").get<std::string>(), from.at("first").get<std::uint64_t>(), from.at("count").get<std::uint64_t>()});
    view.contributions = contributions;
    view.tensors = tensors;
    view.seed = json.at("seed").get<std::uint64_t>();
    view.step = json.at("step").get<std::uint64_t>();
  }
};

inline void say(const skerry_answer* answer, std::string_view text) { answer->text(answer->context, text.data(), text.size()); }
inline void say(const skerry_answer* answer, const nlohmann::json& json) { say(answer, std::string_view(json.dump())); }

// Runs `body`, which answers and returns a Result<void>; an exception becomes a failure.
template <typename Body>
int guarded(const skerry_answer* answer, Body body) noexcept {
  try {
    const Result<void> done = body();
    if (done.ok()) return SKERRY_DONE;
    say(answer, std::string_view(done.error().message));
    return done.error().code == Code::kInvalidArgument ? SKERRY_REFUSED : SKERRY_FAILED;
  } catch (const std::exception& error) {
    say(answer, std::string_view(error.what()));
  } catch (...) {
    say(answer, std::string_view("it threw something that is no std::exception"));
  }
  return SKERRY_FAILED;
}

inline Block block_from(const skerry_block& from) {
  Block block;
  block.fragment = {from.fragment.data, from.fragment.size};
  block.first = from.first;
  block.count = static_cast<std::size_t>(from.count);
  block.tensor = static_cast<std::size_t>(from.tensor);
  block.updates = {from.updates, static_cast<std::size_t>(from.update_count)};
  block.base = from.base;
  block.state = {from.state, static_cast<std::size_t>(from.state_count)};
  return block;
}

// A table that a rule sees as its own, around sums that lie elsewhere.
inline thread_local Table scratch_table;

}  // namespace detail

/// The C interface over a function that gives the PluginExport (always the same one).
template <const PluginExport& (*Export)()>
struct Entry {
  static int describe(const skerry_answer* answer) {
    return detail::guarded(answer, [&]() -> Result<void> {
      detail::say(answer, detail::to_json(Export()));
      return {};
    });
  }

  static int make(skerry_text part_text, void** made, const skerry_answer* answer) {
    return detail::guarded(answer, [&]() -> Result<void> {
      const Part part = detail::part_from(nlohmann::json::parse(part_text.data, part_text.data + part_text.size));
      for (const RuleExport& known : Export().rules) {
        if (known.info.name != part.name) continue;
        SKERRY_ASSIGN(Rule rule, known.make(part));
        detail::say(answer, nlohmann::json{{"needs", detail::to_json(rule.needs)}, {"state_vectors", rule.state_vectors}});
        *made = new Rule(std::move(rule));
        return {};
      }
      return invalid_argument("there is no rule " + part.name + " in plug-in " + Export().name);
    });
  }

  static int next(void* rule, skerry_text cohort_text, const skerry_table* tables, std::size_t table_count, void** made,
                  const skerry_answer* answer) {
    return detail::guarded(answer, [&]() -> Result<void> {
      auto holder = std::make_unique<HeldPass>(nlohmann::json::parse(cohort_text.data, cohort_text.data + cohort_text.size));
      std::vector<Table> sums;
      for (std::size_t i = 0; i < table_count; ++i) {
        const std::size_t cells = static_cast<std::size_t>(tables[i].rows * tables[i].columns);
        sums.push_back({static_cast<std::size_t>(tables[i].rows), static_cast<std::size_t>(tables[i].columns),
                        std::vector<double>(tables[i].values, tables[i].values + cells)});
      }
      SKERRY_ASSIGN(holder->pass, static_cast<const Rule*>(rule)->next(holder->cohort.view, sums));
      if (const auto* statistics = std::get_if<StatisticsPass>(&*holder->pass)) {
        detail::say(answer, nlohmann::json{{"pass", "statistics"}, {"rows", statistics->rows}, {"columns", statistics->columns}});
      } else if (const auto* linear = std::get_if<LinearOutput>(&*holder->pass)) {
        detail::say(answer, nlohmann::json{{"pass", "linear"}});
        answer->numbers(answer->context, linear->coefficients.data(), linear->coefficients.size());
      } else {
        detail::say(answer, nlohmann::json{{"pass", "values"}});
      }
      *made = holder.release();
      return {};
    });
  }

  static int add(void* held, const skerry_block* block, double* sums, const skerry_answer* answer) {
    return detail::guarded(answer, [&]() -> Result<void> {
      const auto& pass = std::get<StatisticsPass>(*static_cast<const HeldPass*>(held)->pass);
      Table& table = detail::scratch_table;
      const std::size_t cells = pass.rows * pass.columns;
      table.rows = pass.rows;
      table.columns = pass.columns;
      table.values.assign(sums, sums + cells);
      pass.add(detail::block_from(*block), table);
      if (table.values.size() != cells) return internal_error("its add changed the size of the table");
      std::copy(table.values.begin(), table.values.end(), sums);
      return {};
    });
  }

  static int reduce(void* held, const skerry_block* block, float* out, float* const* state, const skerry_answer* answer) {
    return detail::guarded(answer, [&]() -> Result<void> {
      const auto& pass = std::get<ValueOutput>(*static_cast<const HeldPass*>(held)->pass);
      const auto count = static_cast<std::size_t>(block->count);
      pass.reduce(detail::block_from(*block), {out, count}, {state, static_cast<std::size_t>(block->state_count)});
      return {};
    });
  }

  static void free_pass(void* pass) { delete static_cast<HeldPass*>(pass); }
  static void free_rule(void* rule) { delete static_cast<Rule*>(rule); }

  static constexpr skerry_plugin kTable = {
      sizeof(skerry_plugin), SKERRY_PLUGIN_MAJOR, SKERRY_PLUGIN_MINOR, 0, describe, make, next, add, reduce, free_pass, free_rule};

 private:
  // A pass may look at its cohort as long as it lives.
  struct HeldPass {
    detail::OwnedCohort cohort;
    std::optional<Pass> pass;
    explicit HeldPass(const nlohmann::json& json) : cohort(json) {}
  };
};

}  // namespace skerry::strategies::sdk

/// Exports the rules of this shared object: SKERRY_PLUGIN("name", "1.0.0", {{info, make}, …}). Once, outside any namespace.
#define SKERRY_PLUGIN(plugin_name, plugin_version, ...)                                                  \
  static const skerry::strategies::sdk::PluginExport& skerry_plugin_export() {                           \
    static const skerry::strategies::sdk::PluginExport plugin{plugin_name, plugin_version, __VA_ARGS__}; \
    return plugin;                                                                                       \
  }                                                                                                      \
  extern "C" __attribute__((visibility("default"))) const skerry_plugin* skerry_plugin_entry() {         \
    return &skerry::strategies::sdk::Entry<skerry_plugin_export>::kTable;                                \
  }
