#include <algorithm>
#include <cstdio>
#include <exception>
#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "common/tensor/safetensors.h"
#include "common/tensor/text.h"

namespace skerry {
namespace {

using nlohmann::json;

constexpr const char* kSingleName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr std::size_t kMaxShards = 99'999;

std::string shard_name(std::size_t number, std::size_t count) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number, count);
  return name;
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Tensor name → shard name, and no name twice: the JSON library would keep the last silently.
Result<std::map<std::string, std::string>> parse_index(const std::string& text) {
  std::map<std::string, std::string> shards;
  std::set<std::string> names;
  std::string twice;
  std::string top;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event != json::parse_event_t::key) return true;
    if (depth == 1) top = parsed.get_ref<const std::string&>();
    if (depth == 2 && top == "weight_map" && !names.insert(parsed.get_ref<const std::string&>()).second &&
        twice.empty())
      twice = parsed.get_ref<const std::string&>();
    return true;
  };
  try {
    const json document = json::parse(text, watch);
    if (!twice.empty()) return invalid_argument("tensor " + quoted_name(twice) + ": the name is there twice");
    if (!document.is_object() || !document.contains("weight_map") || !document["weight_map"].is_object())
      return invalid_argument("the index is not an object with an object \"weight_map\"");
    for (const auto& item : document["weight_map"].items()) {
      if (!item.value().is_string())
        return invalid_argument("tensor " + quoted_name(item.key()) + ": its shard is " + item.value().type_name() +
                                ", must be text");
      const std::string& shard = item.value().get_ref<const std::string&>();
      if (shard.empty() || shard == "." || shard == ".." ||
          shard.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
        return invalid_argument("tensor " + quoted_name(item.key()) + ": its shard " + quoted_name(shard) +
                                " is not the name of a file beside the index");
      shards.emplace(item.key(), shard);
    }
  } catch (const std::exception& exception) {
    return invalid_argument(std::string("the index is not JSON: ") + exception.what());
  }
  return shards;
}

}  // namespace

Result<ShardedWriter> ShardedWriter::create(const std::string& directory, std::vector<TensorSpec> tensors,
                                            SafetensorsMetadata metadata, std::uint64_t shard_bytes) {
  ShardedWriter writer;
  writer.directory_ = directory;
  writer.tensors_ = std::move(tensors);
  writer.metadata_ = std::move(metadata);

  std::set<std::string_view> names;
  std::uint64_t total = 0;
  std::vector<std::uint64_t> sizes;
  for (const TensorSpec& tensor : writer.tensors_) {
    if (!names.insert(tensor.name).second)
      return invalid_argument("tensor " + quoted_name(tensor.name) + ": the name is there twice");
    auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
    if (!bytes.ok()) return with_context(bytes.error(), "tensor " + quoted_name(tensor.name));
    if (*bytes > UINT64_MAX - total) return invalid_argument("the model is larger than any disk");
    sizes.push_back(*bytes);
    total += *bytes;
  }

  writer.shards_.emplace_back();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    Shard* shard = &writer.shards_.back();
    // A model below the threshold is one file; above it a shard is closed before the tensor that would overfill it.
    const bool full = total >= shard_bytes && shard->end_tensor > shard->first_tensor &&
                      (shard->bytes >= shard_bytes || sizes[i] > shard_bytes - shard->bytes);
    if (full) {
      writer.shards_.push_back({i, i, 0});
      shard = &writer.shards_.back();
    }
    shard->end_tensor = i + 1;
    shard->bytes += sizes[i];
  }
  if (writer.shards_.size() > kMaxShards)
    return invalid_argument("the model would need " + std::to_string(writer.shards_.size()) + " shards, at most " +
                            std::to_string(kMaxShards) + " are possible; choose larger shards");
  if (writer.shards_.size() == 1) {
    writer.names_ = {kSingleName};
  } else {
    for (std::size_t i = 0; i < writer.shards_.size(); ++i)
      writer.names_.push_back(shard_name(i + 1, writer.shards_.size()));
    writer.names_.emplace_back(kIndexName);
  }
  SKERRY_TRY(writer.open_shard());
  return writer;
}

Result<void> ShardedWriter::open_shard() {
  const Shard& shard = shards_[current_];
  const auto tensors = std::span(tensors_).subspan(shard.first_tensor, shard.end_tensor - shard.first_tensor);
  SKERRY_ASSIGN(SafetensorsWriter writer,
                SafetensorsWriter::create(join_path(directory_, names_[current_]), tensors, metadata_));
  writer_ = std::make_unique<SafetensorsWriter>(std::move(writer));
  left_ = shard.bytes;
  return {};
}

Result<void> ShardedWriter::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (left_ == 0 && current_ + 1 < shards_.size()) {
      SKERRY_TRY(writer_->finish());
      ++current_;
      SKERRY_TRY(open_shard());
      continue;
    }
    // The last shard's writer says itself when there is too much.
    const std::size_t piece =
        current_ + 1 < shards_.size() ? std::min<std::uint64_t>(left_, bytes.size()) : bytes.size();
    SKERRY_TRY(writer_->append(bytes.first(piece)));
    left_ -= piece;
    bytes = bytes.subspan(piece);
  }
  return {};
}

Result<void> ShardedWriter::finish() {
  while (left_ == 0 && current_ + 1 < shards_.size()) {  // shards of empty tensors alone
    SKERRY_TRY(writer_->finish());
    ++current_;
    SKERRY_TRY(open_shard());
  }
  if (current_ + 1 < shards_.size())
    return failed_precondition(directory_ + ": " + std::to_string(shards_.size() - current_ - 1) + " shards and " +
                               std::to_string(left_) + " bytes of shard " + names_[current_] + " were not written");
  SKERRY_TRY(writer_->finish());
  if (shards_.size() == 1) return {};

  std::uint64_t total = 0;
  json weights = json::object();
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    total += shards_[i].bytes;
    for (std::size_t t = shards_[i].first_tensor; t < shards_[i].end_tensor; ++t) weights[tensors_[t].name] = names_[i];
  }
  const json index{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(weights)}};
  return write_file_atomic(join_path(directory_, kIndexName), index.dump(2) + "\n", 0644);
}

Result<ShardedModel> ShardedModel::open(const std::string& path) {
  ShardedModel model;
  std::string index_path;
  if (ends_with(path, ".safetensors")) {
    SKERRY_ASSIGN(SafetensorsFile file, SafetensorsFile::open(path));
    model.files_.push_back(std::make_unique<SafetensorsFile>(std::move(file)));
  } else if (ends_with(path, ".json")) {
    index_path = path;
  } else if (path_exists(join_path(path, kIndexName))) {
    index_path = join_path(path, kIndexName);
  } else {
    SKERRY_ASSIGN(SafetensorsFile file, SafetensorsFile::open(join_path(path, kSingleName)));
    model.files_.push_back(std::make_unique<SafetensorsFile>(std::move(file)));
  }

  std::map<std::string, std::string> listed;
  std::vector<std::string> names;  // of the shards, sorted, which is their order
  if (!index_path.empty()) {
    SKERRY_ASSIGN(const std::string text, read_file(index_path, kMaxSafetensorsHeader));
    auto parsed = parse_index(text);
    if (!parsed.ok()) return with_context(std::move(parsed).error(), index_path);
    listed = *std::move(parsed);
    std::set<std::string> distinct;
    for (const auto& [tensor, shard] : listed) distinct.insert(shard);
    names.assign(distinct.begin(), distinct.end());
    for (const std::string& name : names) {
      SKERRY_ASSIGN(SafetensorsFile file, SafetensorsFile::open(join_path(parent_directory(index_path), name)));
      model.files_.push_back(std::make_unique<SafetensorsFile>(std::move(file)));
    }
  }

  for (std::size_t i = 0; i < model.files_.size(); ++i) {
    for (const TensorEntry& entry : model.files_[i]->tensors()) {
      model.tensors_.push_back({model.files_[i].get(), &entry});
      if (index_path.empty()) continue;
      const auto at = listed.find(entry.name);
      if (at == listed.end() || at->second != names[i])
        return invalid_argument(index_path + ": tensor " + quoted_name(entry.name) + " is in shard " +
                                quoted_name(names[i]) + ", the index " +
                                (at == listed.end() ? "does not list it" : "says " + quoted_name(at->second)));
    }
  }
  for (const auto& [tensor, shard] : listed)
    if (model.find(tensor).entry == nullptr)
      return invalid_argument(index_path + ": tensor " + quoted_name(tensor) + " is not in its shard " +
                              quoted_name(shard));
  return model;
}

ShardedModel::Tensor ShardedModel::find(std::string_view name) const {
  for (const auto& file : files_)
    if (const TensorEntry* entry = file->find(name)) return {file.get(), entry};
  return {};
}

}  // namespace skerry
