#include "server/sim/population.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include <nlohmann/json.hpp>

#include "common/os/files.h"
#include "server/sim/draws.h"

namespace skerry::sim {
namespace {

using nlohmann::json;
using trainer::DataSet;
using trainer::ExampleShape;

constexpr const char* kAll = "all";

/// Somebody's data with every label y as classes − 1 − y.
class FlippedLabels final : public DataSet {
 public:
  explicit FlippedLabels(std::unique_ptr<DataSet> honest) : honest_(std::move(honest)) {
    shape_ = honest_->shape();
    for (const auto& [split, count] : honest_->examples()) splits_[split] = {0, count, 0};
  }

  Result<void> fill(const std::string& split, std::span<const std::uint64_t> numbers, std::uint64_t shift,
                    trainer::Batch& batch) const override {
    SKERRY_TRY(honest_->fill(split, numbers, shift, batch));
    for (std::int64_t& label : batch.labels) label = static_cast<std::int64_t>(shape_.classes) - 1 - label;
    return {};
  }

 private:
  std::unique_ptr<DataSet> honest_;
};

// How a text lies there, by the names of its files.
std::string kind_of_text(const std::string& path) {
  std::string name = path;
  if (const auto entries = list_directory(path); entries.ok()) {
    for (const DirectoryEntry& entry : *entries)
      if (!entry.name.starts_with('.')) name = entry.name;
  }
  if (name.ends_with(".tokens")) return "tokens";
  return name.ends_with(".jsonl") || name.ends_with(".ndjson") ? "jsonl" : "text";
}

Result<std::shared_ptr<const DataSet>> open_whole(const Scenario& scenario, const RunSpec& spec, const std::string& path) {
  const bool text = spec.data.kind == "text";
  if (text && scenario.tokenizer.empty() && spec.data.tokenizer != "bytes")
    return invalid_argument("data.tokenizer is " + spec.data.tokenizer + ": say which file that is, with --tokenizer FILE");
  json section = {{"kind", text ? kind_of_text(path) : spec.data.kind},
                  {"path", path},
                  {"schema", json::parse(spec.data.schema_json)},
                  {"splits", {{kAll, {{"from", 0}, {"to", 1}}}}}};
  if (!scenario.tokenizer.empty()) section["tokenizer"] = scenario.tokenizer;
  if (spec.data.documents) section["packing"] = "documents";
  const json model = json::parse(spec.model_json);
  SKERRY_ASSIGN(auto set, DataSet::open(section.dump(), model.value("context", std::uint64_t{0})));
  return std::shared_ptr<const DataSet>(std::move(set));
}

Result<std::vector<std::int64_t>> labels_of(const DataSet& set, std::uint64_t rows) {
  std::vector<std::int64_t> labels;
  trainer::Batch batch;
  for (std::uint64_t first = 0; first < rows; first += 1024) {
    std::vector<std::uint64_t> numbers(std::min<std::uint64_t>(1024, rows - first));
    std::iota(numbers.begin(), numbers.end(), first);
    SKERRY_TRY(set.fill(kAll, numbers, 0, batch));
    labels.insert(labels.end(), batch.labels.begin(), batch.labels.end());
  }
  return labels;
}

// As `skerry-client data add --holdout` divides a set.
std::map<std::string, trainer::SplitFractions> splits_of(double holdout) {
  const double cut = 1.0 - holdout;
  std::map<std::string, trainer::SplitFractions> splits{{"train", {0.0, cut}}};
  if (holdout > 0) splits["holdout"] = {cut, 1.0};
  return splits;
}

std::string client_name(std::uint64_t number, std::uint64_t clients) {
  const std::string digits = std::to_string(number);
  return "client-" + std::string(std::to_string(clients - 1).size() - digits.size(), '0') + digits;
}

bool is_text(const DataSet& set) { return set.shape().kind == ExampleShape::Kind::kText; }

// Rows first … first + size − 1, or these tokens of a text.
trainer::DataPart piece_of(const DataSet& set, std::uint64_t first, std::uint64_t size) {
  if (is_text(set)) return {.first = first, .count = size};
  trainer::DataPart part;
  part.rows.resize(size);
  std::iota(part.rows.begin(), part.rows.end(), first);
  return part;
}

trainer::DataPart all_of(const DataSet& set) { return piece_of(set, 0, set.size()); }

Result<std::vector<ClientPlan>> clients_of_files(const Scenario& scenario, const RunSpec& spec) {
  SKERRY_ASSIGN(auto entries, list_directory(scenario.data));
  std::vector<ClientPlan> clients;
  for (const DirectoryEntry& entry : entries) {
    if (entry.name.starts_with('.')) continue;
    ClientPlan client;
    client.name = entry.is_directory ? entry.name : entry.name.substr(0, entry.name.rfind('.'));
    const std::string path = join_path(scenario.data, entry.name);
    SKERRY_ASSIGN(client.whole, open_whole(scenario, spec, path));
    client.part = all_of(*client.whole);
    clients.push_back(std::move(client));
  }
  if (clients.empty()) return not_found(scenario.data + ": has no file; the partition \"files\" takes one for each client");
  std::sort(clients.begin(), clients.end(), [](const ClientPlan& a, const ClientPlan& b) { return a.name < b.name; });
  for (std::size_t i = 1; i < clients.size(); ++i) {
    if (clients[i].name == clients[i - 1].name) return invalid_argument(scenario.data + ": two clients would be called \"" + clients[i].name + "\"");
  }
  return clients;
}

std::string trusted_node(const RunSpec& spec) {
  const auto found = spec.aggregation.parameters.find("trusted");
  const auto* name = found == spec.aggregation.parameters.end() ? nullptr : std::get_if<std::string>(&found->second);
  return name == nullptr ? "" : *name;
}

// Divides one data set; the test part and the trusted node's are taken care of too.
Result<Population> divide(const Scenario& scenario, const RunSpec& spec) {
  Population population;
  SKERRY_ASSIGN(const std::shared_ptr<const DataSet> whole, open_whole(scenario, spec, scenario.data));
  std::uint64_t size = whole->size();
  if (scenario.test_share > 0) {
    const auto test = static_cast<std::uint64_t>(scenario.test_share * static_cast<double>(size) + 0.5);
    size -= test;
    population.test_data = whole;
    population.test_part = piece_of(*whole, size, test);
  }
  if (scenario.examples > 0) size = std::min(size, scenario.examples);

  const std::string trusted = trusted_node(spec);
  for (std::uint64_t i = 0; i < scenario.clients; ++i) {
    population.clients.push_back({.name = client_name(i, scenario.clients), .whole = whole});
  }
  if (is_text(*whole)) {
    if (scenario.partition.needs_labels()) return invalid_argument("partition: a text has no labels: choose iid, power, linear or files");
    if (!trusted.empty()) return invalid_argument("aggregation.trusted: simulated for tables and images only");
    std::uint64_t first = 0;
    const auto sizes = partition_sizes(scenario.partition, size, scenario.clients);
    for (std::uint64_t i = 0; i < scenario.clients; ++i) {
      population.clients[i].part = piece_of(*whole, first, sizes[i]);
      first += sizes[i];
    }
    return population;
  }
  std::vector<std::int64_t> labels;
  if (scenario.partition.needs_labels()) {
    SKERRY_ASSIGN(labels, labels_of(*whole, size));
  }
  auto rows = partition_rows(scenario.partition, size, labels, scenario.clients, spec.seed);
  if (!rows.ok()) return with_context(std::move(rows).error(), "partition");
  for (std::uint64_t i = 0; i < scenario.clients; ++i) population.clients[i].part.rows = std::move((*rows)[i]);
  if (!trusted.empty()) {
    ClientPlan client{.name = trusted, .trusted = true, .whole = whole};
    client.part = piece_of(*whole, 0, size);
    Draws(spec.seed, "trusted").shuffle(client.part.rows);
    client.part.rows.resize(std::min(size, scenario.trusted_examples));
    population.clients.push_back(std::move(client));
  }
  return population;
}

void choose_hostile(const Scenario& scenario, std::uint64_t seed, std::vector<ClientPlan>& clients) {
  std::vector<std::size_t> candidates;
  for (std::size_t i = 0; i < clients.size(); ++i)
    if (!clients[i].trusted) candidates.push_back(i);
  Draws(seed, "hostile").shuffle(candidates);
  candidates.resize(scenario.attack.hostile(candidates.size()));
  for (const std::size_t i : candidates) {
    clients[i].hostile = true;
    clients[i].flip_labels = scenario.attack.poisons_labels();
  }
}

}  // namespace

Result<std::unique_ptr<DataSet>> ClientPlan::open_data() const {
  SKERRY_ASSIGN(auto own, whole->part(part));
  if (flip_labels) return std::unique_ptr<DataSet>(std::make_unique<FlippedLabels>(std::move(own)));
  return own;
}

Result<Population> make_population(const Scenario& scenario, const RunSpec& spec) {
  if (scenario.data.empty()) return invalid_argument("data: say where the data is, with --data PATH or in the scenario");
  Population population;
  if (scenario.partition.kind == PartitionPlan::Kind::kFiles) {
    if (scenario.test_share > 0) return invalid_argument("test: with one file a client, name other data for the test instead of a share");
    SKERRY_ASSIGN(population.clients, clients_of_files(scenario, spec));
    const std::string trusted = trusted_node(spec);
    for (ClientPlan& client : population.clients) client.trusted = client.name == trusted;
  } else {
    SKERRY_ASSIGN(population, divide(scenario, spec));
  }
  if (!scenario.test_path.empty()) {
    SKERRY_ASSIGN(population.test_data, open_whole(scenario, spec, scenario.test_path));
    population.test_part = all_of(*population.test_data);
  }
  population.test_part.splits = {{"test", {}}};

  std::sort(population.clients.begin(), population.clients.end(), [](const ClientPlan& a, const ClientPlan& b) { return a.name < b.name; });
  std::vector<std::string> names;
  for (const ClientPlan& client : population.clients) names.push_back(client.name);
  SKERRY_ASSIGN(const std::vector<Pace> paces, draw_paces(scenario.speed, names, scenario.pace, spec.seed));
  if (scenario.attack.poisons_labels() && population.clients.front().whole->shape().classes < 2) {
    return invalid_argument("attack: labels can be flipped only where there are classes");
  }
  choose_hostile(scenario, spec.seed, population.clients);
  for (std::size_t i = 0; i < population.clients.size(); ++i) {
    ClientPlan& client = population.clients[i];
    client.pace = paces[i];
    client.part.splits = splits_of(scenario.holdout);
    SKERRY_ASSIGN(const auto own, client.open_data());
    const auto counts = own->examples();
    const auto count = [&](const std::string& split) { return counts.count(split) != 0 ? counts.at(split) : 0; };
    client.examples = count(spec.data.train_split);
    client.holdout_examples = count(spec.evaluation.split);
  }
  return population;
}

}  // namespace skerry::sim
