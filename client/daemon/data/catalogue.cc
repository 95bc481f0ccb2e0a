#include "client/daemon/data/catalogue.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "common/crypto/sha256.h"
#include "common/os/files.h"

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxCatalogueBytes = 16 << 20;

// The boundary that a fraction names, as the trainer protocol's splits are read.
std::uint64_t boundary(double fraction, std::uint64_t count) {
  const double exact = fraction * static_cast<double>(count);
  const double nearest = std::round(exact);
  const double chosen = std::abs(exact - nearest) < 1e-6 ? nearest : std::floor(exact);
  return std::min(static_cast<std::uint64_t>(chosen), count);
}

bool good_name(std::string_view name) {
  if (name.empty() || name.size() > 63) return false;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (!letter && (i == 0 || (c != '-' && c != '_'))) return false;
  }
  return true;
}

}  // namespace

std::map<std::string, std::uint64_t> DataSet::examples(std::uint64_t context, bool bytes) const {
  const std::uint64_t cut = boundary(1.0 - holdout, total);
  const std::uint64_t units = bytes || kind == "tokens" ? 1 : 4;  // of `total` for a token
  const auto count = [&](std::uint64_t size) -> std::uint64_t {
    if (!is_text() || context == 0) return size;
    return size < units ? 0 : (size / units - 1) / context;
  };
  std::map<std::string, std::uint64_t> out{{"train", count(cut)}};
  if (holdout > 0) out["holdout"] = count(total - cut);
  return out;
}

std::string DataSet::splits_json() const {
  const double cut = 1.0 - holdout;
  json splits = {{"train", {{"from", 0.0}, {"to", cut}}}};
  if (holdout > 0) splits["holdout"] = {{"from", cut}, {"to", 1.0}};
  return splits.dump();
}

Result<Catalogue> Catalogue::load(const std::string& path) {
  Catalogue catalogue;
  catalogue.path_ = path;
  auto text = read_file(path, kMaxCatalogueBytes);
  if (!text.ok()) {
    if (text.error().code == Code::kNotFound) return catalogue;
    return std::move(text).error();
  }
  try {
    const json document = json::parse(*text);
    // Catalogues of earlier versions have no digest.
    if (document.contains("digest") && document["digest"] != sha256_hex(document.at("sets").dump()))
      return data_loss(path + " is damaged or was changed by another program; remove it and add the data sets again");
    for (const auto& item : document.at("sets")) {
      DataSet set;
      set.name = item.at("name");
      set.kind = item.at("kind");
      set.path = item.at("path");
      set.schema_json = item.at("schema").dump();
      set.indices = item.value("indices", "");
      set.holdout = item.at("holdout");
      set.total = item.at("total");
      set.files = item.value("files", std::uint64_t{0});
      set.checked_ms = item.value("checked_ms", std::int64_t{0});
      catalogue.sets_.push_back(std::move(set));
    }
  } catch (const json::exception& error) {
    return data_loss(path + " is damaged (" + error.what() + "); remove it and add the data sets again");
  }
  return catalogue;
}

Result<void> Catalogue::save() const {
  json sets = json::array();
  for (const auto& set : sets_) {
    json item = {{"name", set.name},       {"kind", set.kind},   {"path", set.path},   {"schema", json::parse(set.schema_json)},
                 {"holdout", set.holdout}, {"total", set.total}, {"files", set.files}, {"checked_ms", set.checked_ms}};
    if (!set.indices.empty()) item["indices"] = set.indices;
    sets.push_back(std::move(item));
  }
  const std::string digest = sha256_hex(sets.dump());
  return write_file_atomic(path_, json{{"version", 1}, {"sets", std::move(sets)}, {"digest", digest}}.dump(2) + "\n", 0600);
}

const DataSet* Catalogue::find(std::string_view name) const {
  const auto found = std::find_if(sets_.begin(), sets_.end(), [&](const DataSet& set) { return set.name == name; });
  return found == sets_.end() ? nullptr : &*found;
}

Result<void> Catalogue::add(DataSet set) {
  if (!good_name(set.name))
    return invalid_argument("data set name \"" + set.name + "\" must be 1 to 63 of a-z, 0-9, '-', '_' and begin with a letter or digit");
  if (find(set.name) != nullptr)
    return already_exists("there is a data set \"" + set.name + "\" already; `skerry-client data remove " + set.name + "` first");
  sets_.push_back(std::move(set));
  return {};
}

void Catalogue::replace(DataSet set) {
  for (auto& known : sets_)
    if (known.name == set.name) known = std::move(set);
}

Result<void> Catalogue::remove(std::string_view name) {
  const auto found = std::find_if(sets_.begin(), sets_.end(), [&](const DataSet& set) { return set.name == name; });
  if (found == sets_.end()) {
    std::string names;
    for (const auto& set : sets_) names += (names.empty() ? "" : ", ") + set.name;
    return not_found("there is no data set \"" + std::string(name) + "\"; known: " + (names.empty() ? "none" : names));
  }
  sets_.erase(found);
  return {};
}

}  // namespace skerry::client
