#include "client/trainer/offline.h"

#include <algorithm>
#include <charconv>
#include <map>

#include <nlohmann/json.hpp>

#include "client/trainer/engine.h"
#include "client/trainer/sampling.h"
#include "client/trainer/tokenizer.h"
#include "common/model/fragment_file.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

Error wrong(std::string message) { return {Code::kOutOfRange, std::move(message), false}; }

using Options = std::map<std::string, std::string, std::less<>>;

Result<Options> parse_options(const std::vector<std::string_view>& arguments) {
  Options options{{"--model-dir", ""}, {"--prompt", ""}, {"--tokens", "200"}, {"--temperature", "0.8"},
                  {"--top-k", "40"},   {"--top-p", "1"}, {"--seed", "1"},     {"--threads", "2"}};
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    const auto option = options.find(arguments[i]);
    if (option == options.end()) return wrong("generate has no option \"" + std::string(arguments[i]) + "\"");
    if (i + 1 == arguments.size()) return wrong(option->first + " needs a value");
    option->second = arguments[i + 1];
  }
  if (options["--model-dir"].empty()) return wrong("generate needs --model-dir DIR");
  return options;
}

template <typename T>
Result<T> number(const Options& options, const char* name, T low, T high) {
  const std::string& text = options.find(name)->second;
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= low && value <= high)) {
    return wrong(std::string(name) + " is \"" + text + "\", must be a number in [" + json(low).dump() + ", " +
                 json(high).dump() + "]");
  }
  return value;
}

}  // namespace

Result<std::string> generate_offline(const std::vector<std::string_view>& arguments) {
  SKERRY_ASSIGN(const Options options, parse_options(arguments));
  SKERRY_ASSIGN(const std::uint64_t tokens, number<std::uint64_t>(options, "--tokens", 0, 1 << 20));
  SKERRY_ASSIGN(const double temperature, number<double>(options, "--temperature", 0, 100));
  SKERRY_ASSIGN(const std::uint64_t top_k, number<std::uint64_t>(options, "--top-k", 0, 1 << 24));
  SKERRY_ASSIGN(const double top_p, number<double>(options, "--top-p", 1e-9, 1));
  SKERRY_ASSIGN(const std::uint64_t seed, number<std::uint64_t>(options, "--seed", 0, ~std::uint64_t{0}));
  SKERRY_ASSIGN(const int threads, number<int>(options, "--threads", 1, 1024));

  const std::string& directory = options.find("--model-dir")->second;
  SKERRY_ASSIGN(const std::string section, read_file(join_path(directory, "model.json"), 1 << 20));
  SKERRY_ASSIGN(const json model, resolve_model(json::parse(section, nullptr, false)));
  SKERRY_ASSIGN(const ModelLayout layout, build_layout(model));
  if (!is_text_model(layout.architecture)) {
    return Error(failed_precondition(directory + ": its model is " + layout.architecture +
                                     ", only transformer and mpt generate text"));
  }
  const std::string tokenizer_path = join_path(directory, "tokenizer.model");
  SKERRY_ASSIGN(const auto tokenizer, Tokenizer::open(path_exists(tokenizer_path) ? tokenizer_path : ""));
  const auto context = model.at("context").get<std::uint64_t>();
  SKERRY_ASSIGN(const auto engine,
                Engine::make(section, layout, {ExampleShape::Kind::kText, {context}, context, tokenizer->size()},
                             engine_options({}, threads)));
  const std::vector<std::uint64_t> offsets = fragment_offsets(layout);
  for (std::size_t i = 0; i < layout.fragments.size(); ++i) {
    if (layout.fragments[i].role == FragmentRole::kControl) continue;
    const std::string& fragment = layout.fragments[i].name;
    SKERRY_ASSIGN(const FragmentFile file,
                  FragmentFile::open(join_path(directory, fragment + ".safetensors"), layout, fragment));
    SKERRY_TRY(file.read(0, engine->parameters().subspan(offsets[i], layout.fragments[i].elements)));
  }
  const std::string& prompt = options.find("--prompt")->second;
  SamplingOptions sampling{{temperature, top_k, top_p, seed}, tokens};
  if (tokenizer->size() > static_cast<std::uint64_t>(tokenizer->end_of_text())) sampling.end = tokenizer->end_of_text();
  SKERRY_ASSIGN(const std::string continuation,
                continue_prompt(*engine, context, *tokenizer, prompt, sampling, [] { return Result<void>(); }));
  return prompt + continuation;
}

}  // namespace skerry::trainer
