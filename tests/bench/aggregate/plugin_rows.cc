// What the process boundary costs: built-in rules against the same code in a plug-in.
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "server/plugin/plugin.h"
#include "strategies/aggregation/rule.h"
#include "tests/bench/aggregate/rows.h"

namespace skerry::server::bench {

using strategies::Part;
using strategies::Rule;

void across_the_boundary(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  std::array<char, 4096> self{};
  const ssize_t size = ::readlink("/proc/self/exe", self.data(), self.size());
  const std::string programs = parent_directory(std::string(self.data(), static_cast<std::size_t>(size)));
  const PluginConfig config = must(plugin_config(programs + "/../plugins/builtin_rules.so"));
  const std::shared_ptr<Plugin> plugin = must(Plugin::load(config, {.host_program = programs + "/skerry-plugin-host", .threads = engine.threads()}));
  const Spool spool(settings, {settings.elements.value_or(5'000'000), settings.updates.value_or(10), "f32", true});
  for (const auto& [rule_name, part] : {std::pair{"weighted_mean", Part{"weighted_mean", {}}}, std::pair{"median", Part{"median", {}}},
                                        std::pair{"krum", Part{"krum", {{"byzantine", 1.0}}}}}) {
    const Rule inside = must(strategies::make_rule(part));
    const Rule outside = must(plugin->make({std::string(rule_name) + "_outside", {}}));
    std::vector<double> seconds[2];
    for (unsigned i = 0; i < settings.repeat + 1; ++i) {
      for (const Rule* rule : {&inside, &outside}) {
        ReduceJob job = spool.job();
        job.rule = rule;
        const double taken = seconds_of([&] { (void)must(engine.measure(job)); });
        if (i > 0) seconds[rule == &outside].push_back(taken);
      }
    }
    const double gigabytes = spool.update_gigabytes();
    const double speed = gigabytes / median(seconds[1]);
    const double built_in = gigabytes / median(seconds[0]);
    print({name + "." + rule_name, speed, "GB/s", built_in, "the same rule built in", speed / built_in, "≥ 2 GB/s", speed >= 2});
  }
}

}  // namespace skerry::server::bench
