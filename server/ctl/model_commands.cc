#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <utility>

#include <unistd.h>

#include "common/model/fragment_file.h"
#include "common/model/hugging_face.h"
#include "common/model/layout.h"
#include "common/model/tokenizer_model.h"
#include "common/os/files.h"
#include "common/os/process.h"
#include "common/tensor/safetensors.h"
#include "server/ctl/commands.h"
#include "server/ctl/console.h"

namespace skerry::ctl {
namespace {

constexpr std::size_t kBlockElements = 1 << 20;

// A directory that goes with its owner.
class ScratchDirectory {
 public:
  static Result<ScratchDirectory> make() {
    const char* base = std::getenv("TMPDIR");
    std::string path = join_path(base ? base : "/tmp", "skerry-model-XXXXXX");
    if (!mkdtemp(path.data()))
      return Error{Code::kInternal, "no temporary directory could be made below " + parent_directory(path)};
    return ScratchDirectory(path);
  }
  ScratchDirectory(ScratchDirectory&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  ScratchDirectory& operator=(ScratchDirectory&&) = delete;
  ~ScratchDirectory() {
    if (!path_.empty()) (void)remove_tree(path_).ok();
  }
  const std::string& path() const { return path_; }

 private:
  explicit ScratchDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// The run's model at one version, as fragment files FRAGMENT.safetensors in a directory.
struct Fetched {
  std::string run_id;
  std::string model_json;
  std::string tokenizer;  // the SentencePiece model's content; empty: bytes
  ModelLayout layout;
  std::map<std::string, std::uint64_t> versions;  // by fragment
};

// What of a model the coordinator has: personal tensors stay with their nodes, control variates are no part of it.
ModelLayout released(const ModelLayout& layout) {
  ModelLayout out;
  out.architecture = layout.architecture;
  std::vector<std::size_t> numbers(layout.fragments.size(), SIZE_MAX);
  for (std::size_t i = 0; i < layout.fragments.size(); ++i) {
    FragmentLayout fragment = layout.fragments[i];
    if (fragment.role == FragmentRole::kControl || fragment.role == FragmentRole::kPersonal) continue;
    numbers[i] = out.fragments.size();
    fragment.tensors.clear();
    out.parameters += fragment.elements;
    out.fragments.push_back(std::move(fragment));
  }
  for (TensorLayout tensor : layout.tensors) {
    tensor.fragment = numbers[tensor.fragment];
    if (tensor.fragment == SIZE_MAX) continue;
    out.fragments[tensor.fragment].tensors.push_back(out.tensors.size());
    out.tensors.push_back(std::move(tensor));
  }
  return out;
}

Result<Fetched> fetch(Connection& connection, const std::string& run, std::uint64_t version,
                      const std::string& directory) {
  SKERRY_ASSIGN(const v1::ListVersionsReply reply, connection.list_versions(run));
  Fetched fetched;
  fetched.run_id = reply.run_id();
  fetched.model_json = reply.model_json();
  SKERRY_ASSIGN(const ModelLayout layout, build_layout(nlohmann::json::parse(reply.model_json())));
  fetched.layout = released(layout);
  if (reply.has_tokenizer()) {
    const std::string path = join_path(directory, "tokenizer.model");
    SKERRY_TRY(connection.download(reply.tokenizer(), path));
    SKERRY_ASSIGN(fetched.tokenizer, read_file(path, kMaxTokenizerBytes));
  }
  for (const FragmentLayout& fragment : fetched.layout.fragments) {
    const v1::FragmentVersion* chosen = nullptr;
    std::string stored;
    for (const v1::FragmentVersion& one : version == 0 ? reply.latest() : reply.kept()) {
      if (one.fragment() != fragment.name) continue;
      stored += (stored.empty() ? "" : ", ") + std::to_string(one.version());
      if (version == 0 || one.version() == version || fragment.role == FragmentRole::kFrozen) chosen = &one;
    }
    if (!chosen)
      return not_found("version " + std::to_string(version) + " of fragment '" + fragment.name +
                       "' is not stored; there are " + stored);
    SKERRY_TRY(connection.download(chosen->whole(), join_path(directory, fragment.name + ".safetensors")));
    fetched.versions[fragment.name] = chosen->version();
  }
  return fetched;
}

Result<void> list(const Context& context, const std::string& run) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_ASSIGN(v1::ListVersionsReply reply, connection.list_versions(run));
  if (context.json) {
    for (auto* versions : {reply.mutable_latest(), reply.mutable_kept()})
      for (v1::FragmentVersion& version : *versions) version.mutable_whole()->clear_inline_data();
    std::printf("%s", to_json(reply).c_str());
    return {};
  }
  Table table({"FRAGMENT", "VERSION", "SIZE", "CONTENT"});
  for (const v1::FragmentVersion& version : reply.kept())
    table.add({version.fragment(), std::to_string(version.version()), human_bytes(version.whole().size()),
               version.whole().content_id()});
  std::printf("%s", table.text().c_str());
  return {};
}

Result<void> inspect(const Context& context, const std::string& run, std::uint64_t version) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_ASSIGN(const ScratchDirectory scratch, ScratchDirectory::make());
  SKERRY_ASSIGN(const Fetched model, fetch(connection, run, version, scratch.path()));
  nlohmann::json json = {{"run_id", model.run_id},
                         {"model", nlohmann::json::parse(model.model_json)},
                         {"parameters", model.layout.parameters}};
  Table table({"TENSOR", "SHAPE", "FRAGMENT", "MEAN", "STD", "MIN", "MAX"});
  for (const FragmentLayout& fragment : model.layout.fragments) {
    SKERRY_ASSIGN(const FragmentFile file, FragmentFile::open(join_path(scratch.path(), fragment.name + ".safetensors"),
                                                              model.layout, fragment.name));
    for (std::size_t index : fragment.tensors) {
      const TensorLayout& tensor = model.layout.tensors[index];
      double sum = 0, squares = 0, low = std::numeric_limits<double>::infinity(), high = -low;
      std::vector<float> block(std::min<std::uint64_t>(kBlockElements, tensor.elements));
      for (std::uint64_t first = 0; first < tensor.elements; first += block.size()) {
        const std::span<float> part(block.data(), std::min<std::uint64_t>(block.size(), tensor.elements - first));
        SKERRY_TRY(file.read(tensor.offset + first, part));
        for (const float value : part) {
          sum += value;
          squares += static_cast<double>(value) * value;
          low = std::min<double>(low, value);
          high = std::max<double>(high, value);
        }
      }
      const double count = static_cast<double>(std::max<std::uint64_t>(tensor.elements, 1));
      const double mean = sum / count;
      const double deviation = std::sqrt(std::max(0.0, squares / count - mean * mean));
      std::string shape = "[";
      for (std::uint64_t size : tensor.shape) shape += (shape.size() > 1 ? ", " : "") + std::to_string(size);
      table.add({tensor.name, shape + "]", fragment.name, human_number(mean), human_number(deviation),
                 human_number(low), human_number(high)});
      json["tensors"].push_back({{"name", tensor.name},
                                 {"shape", tensor.shape},
                                 {"fragment", fragment.name},
                                 {"mean", mean},
                                 {"std", deviation},
                                 {"min", low},
                                 {"max", high}});
    }
  }
  json["versions"] = model.versions;
  if (context.json) {
    std::printf("%s\n", json.dump(2).c_str());
    return {};
  }
  std::printf("%s: %llu parameters\n", model.run_id.c_str(), static_cast<unsigned long long>(model.layout.parameters));
  for (const auto& [fragment, number] : model.versions)
    std::printf("  fragment %s at version %llu\n", fragment.c_str(), static_cast<unsigned long long>(number));
  std::printf("\n%s", table.text().c_str());
  return {};
}

// The fragments as they are, for `skerry-trainer generate` and `evaluate`.
Result<void> export_fragments(const Context& context, const std::string& run, std::uint64_t version,
                              const std::string& directory) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_TRY(make_directories(directory, 0755));
  SKERRY_ASSIGN(const Fetched model, fetch(connection, run, version, directory));
  SKERRY_TRY(write_file_atomic(join_path(directory, "model.json"), model.model_json + "\n", 0644));
  if (context.json)
    std::printf("%s\n",
                nlohmann::json({{"run_id", model.run_id}, {"versions", model.versions}, {"directory", directory}})
                    .dump(2)
                    .c_str());
  else
    std::printf("%zu fragments of %s are in %s\n", model.layout.fragments.size(), model.run_id.c_str(),
                directory.c_str());
  return {};
}

// model.safetensors, and what Hugging Face's transformers needs beside it: for text models, or an error where
// `hugging_face` says that it must be there.
Result<void> export_model(const Context& context, const std::string& run, std::uint64_t version,
                          const std::string& directory, bool hugging_face) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_TRY(make_directories(directory, 0755));
  SKERRY_ASSIGN(const ScratchDirectory scratch, ScratchDirectory::make());
  SKERRY_ASSIGN(const Fetched model, fetch(connection, run, version, scratch.path()));
  const auto beside = hugging_face_files(nlohmann::json::parse(model.model_json), model.tokenizer);
  if (hugging_face && !beside.ok()) return beside.error();
  std::map<std::string, FragmentFile> files;
  for (const FragmentLayout& fragment : model.layout.fragments) {
    SKERRY_ASSIGN(FragmentFile file, FragmentFile::open(join_path(scratch.path(), fragment.name + ".safetensors"),
                                                        model.layout, fragment.name));
    files.emplace(fragment.name, std::move(file));
  }
  std::vector<TensorSpec> specs;
  for (const TensorLayout& tensor : model.layout.tensors) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  SafetensorsMetadata metadata{{"format", "pt"}, {"skerry_run", model.run_id}};
  for (const auto& [fragment, number] : model.versions) metadata["skerry_version_" + fragment] = std::to_string(number);
  SKERRY_ASSIGN(ShardedWriter writer, ShardedWriter::create(directory, specs, metadata));
  std::vector<float> block(kBlockElements);
  for (const TensorLayout& tensor : model.layout.tensors) {
    const FragmentFile& file = files.at(model.layout.fragments[tensor.fragment].name);
    for (std::uint64_t first = 0; first < tensor.elements; first += block.size()) {
      const std::span<float> part(block.data(), std::min<std::uint64_t>(block.size(), tensor.elements - first));
      SKERRY_TRY(file.read(tensor.offset + first, part));
      SKERRY_TRY(writer.append(std::as_bytes(part)));
    }
  }
  SKERRY_TRY(writer.finish());
  SKERRY_TRY(write_file_atomic(join_path(directory, "model.json"), model.model_json + "\n", 0644));
  std::vector<std::string> written = writer.files();
  written.push_back("model.json");
  if (beside.ok()) {
    for (const auto& [name, content] : *beside) {
      SKERRY_TRY(write_file_atomic(join_path(directory, name), content, 0644));
      written.push_back(name);
    }
  }
  if (context.json) {
    std::printf(
        "%s\n",
        nlohmann::json(
            {{"run_id", model.run_id}, {"versions", model.versions}, {"directory", directory}, {"files", written}})
            .dump(2)
            .c_str());
  } else {
    std::printf("%llu parameters of %s are in %s:\n", static_cast<unsigned long long>(model.layout.parameters),
                model.run_id.c_str(), directory.c_str());
    for (const std::string& name : written) std::printf("  %s\n", name.c_str());
  }
  return {};
}

// A model section as a run spec's [model], with the imported file as its initial tensors.
std::string spec_section(const nlohmann::json& section) {
  std::string text = "[model]\n";
  for (const auto& [member, value] : section.items()) {
    const bool said_elsewhere =
        value.is_array() || member == "fragments" || member == "fragment_pattern" || member == "control";
    if (!said_elsewhere) text += member + " = " + value.dump() + "\n";
  }
  return text + "initial = \"model.safetensors\"\n";
}

Result<void> import_model(const Context& context, const std::string& from, const std::string& directory) {
  SKERRY_TRY(make_directories(directory, 0755));
  const std::string path = join_path(directory, "model.safetensors");
  SKERRY_ASSIGN(const nlohmann::json section, import_hugging_face(from, path));
  const std::string spec = spec_section(section);
  SKERRY_TRY(write_file_atomic(join_path(directory, "model.toml"), spec, 0644));
  if (context.json)
    std::printf("%s\n", nlohmann::json({{"model", section}, {"file", path}}).dump(2).c_str());
  else
    std::printf("%s is the model as f32. In a run spec beside it:\n\n%s", path.c_str(), spec.c_str());
  return {};
}

struct SampleArguments {
  std::string prompt = "The ", trainer = "skerry-trainer";
  std::uint64_t tokens = 200, top_k = 40, seed = 1;
  double temperature = 0.8, top_p = 1;
};

// The trainer beside this program, else one in PATH.
Result<std::string> trainer_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  if (length > 0) {
    const std::string beside = join_path(parent_directory(std::string(self, static_cast<std::size_t>(length))), name);
    if (path_exists(beside)) return beside;
  }
  return find_program(name);
}

Result<void> sample(const Context& context, const std::string& run, std::uint64_t version,
                    const SampleArguments& arguments) {
  SKERRY_ASSIGN(const std::string trainer, trainer_program(arguments.trainer));
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_ASSIGN(const ScratchDirectory scratch, ScratchDirectory::make());
  SKERRY_ASSIGN(const Fetched model, fetch(connection, run, version, scratch.path()));
  SKERRY_TRY(write_file_atomic(join_path(scratch.path(), "model.json"), model.model_json));
  SpawnOptions options;
  options.command = {trainer,         "generate",
                     "--model-dir",   scratch.path(),
                     "--prompt",      arguments.prompt,
                     "--tokens",      std::to_string(arguments.tokens),
                     "--temperature", human_number(arguments.temperature),
                     "--top-k",       std::to_string(arguments.top_k),
                     "--top-p",       human_number(arguments.top_p),
                     "--seed",        std::to_string(arguments.seed)};
  options.environment = pick_environment({"PATH", "HOME", "LANG", "LD_LIBRARY_PATH"});
  options.pipe_stdin = options.pipe_stdout = options.pipe_stderr = false;
  SKERRY_ASSIGN(Process child, Process::spawn(options));
  const auto status = child.wait(-1);
  if (!status || !status->clean())
    return Error{Code::kInternal,
                 "skerry-trainer " + (status ? to_string(*status) : std::string("could not be waited for"))};
  return {};
}

}  // namespace

void add_model_commands(CLI::App& app, Context& context) {
  CLI::App* model = app.add_subcommand("model", "Released models")->require_subcommand(1);
  struct Arguments {
    std::string run, directory = ".", format = "safetensors", from;
    std::uint64_t version = 0;
    bool fragments = false;
    SampleArguments sample;
  };
  auto arguments = std::make_shared<Arguments>();
  const auto add = [&](const char* name, const char* help, bool versioned) {
    CLI::App* command = model->add_subcommand(name, help);
    command->add_option("RUN", arguments->run, "The run's id, the beginning of its id, or its name")->required();
    if (versioned)
      command->add_option("--version", arguments->version, "Which version; 0: the newest")->capture_default_str();
    return command;
  };
  add("list", "Every version that is stored", false)->callback([&context, arguments] {
    context.chosen = [&context, arguments] { return list(context, arguments->run); };
  });
  add("inspect", "Tensors, shapes and their statistics", true)->callback([&context, arguments] {
    context.chosen = [&context, arguments] { return inspect(context, arguments->run, arguments->version); };
  });
  CLI::App* export_command =
      add("export", "Write model.safetensors, and for text models the files with which transformers loads it", true);
  export_command->add_option("-o,--output", arguments->directory, "Directory")->capture_default_str();
  export_command
      ->add_option(
          "--format", arguments->format,
          "safetensors; huggingface: the same, refused where transformers has no such model; fragments: one file "
          "a fragment, as skerry-trainer takes them")
      ->check(CLI::IsMember({"safetensors", "huggingface", "fragments"}))
      ->capture_default_str();
  export_command->add_flag("--fragments", arguments->fragments, "The same as --format fragments");
  export_command->callback([&context, arguments] {
    context.chosen = [&context, arguments] {
      if (arguments->fragments || arguments->format == "fragments")
        return export_fragments(context, arguments->run, arguments->version, arguments->directory);
      return export_model(context, arguments->run, arguments->version, arguments->directory,
                          arguments->format == "huggingface");
    };
  });
  CLI::App* import_command = model->add_subcommand(
      "import", "Make a run's initial model from a directory in Hugging Face's layout (Llama, Qwen3, MPT)");
  import_command->add_option("DIR", arguments->from, "Holds config.json and model.safetensors or its shards")
      ->required();
  import_command->add_option("-o,--output", arguments->directory, "Directory for model.safetensors and model.toml")
      ->required();
  import_command->callback([&context, arguments] {
    context.chosen = [&context, arguments] { return import_model(context, arguments->from, arguments->directory); };
  });
  CLI::App* sample_command = add("sample", "Let a text model continue a prompt, on this machine", true);
  SampleArguments& options = arguments->sample;
  sample_command->add_option("--prompt", options.prompt, "What it continues")->capture_default_str();
  sample_command->add_option("--tokens", options.tokens, "How many")->capture_default_str();
  sample_command->add_option("--temperature", options.temperature, "0: always the likeliest")->capture_default_str();
  sample_command->add_option("--top-k", options.top_k, "Choose among so many; 0: all")->capture_default_str();
  sample_command->add_option("--top-p", options.top_p, "Choose among the fewest that have this probability together")
      ->check(CLI::Range(1e-9, 1.0))
      ->capture_default_str();
  sample_command->add_option("--seed", options.seed, "Of the choice")->capture_default_str();
  sample_command->add_option("--trainer", options.trainer, "The program that computes")->capture_default_str();
  sample_command->callback([&context, arguments] {
    context.chosen = [&context, arguments] {
      return sample(context, arguments->run, arguments->version, arguments->sample);
    };
  });
}

}  // namespace skerry::ctl
