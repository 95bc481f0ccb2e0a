#include "client/trainer/text_commands.h"

#include <charconv>
#include <cstdint>
#include <map>

#include "client/trainer/documents.h"
#include "client/trainer/tokenizer.h"
#include "common/model/tokenizer_model.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

constexpr std::uint64_t kMaxTrainingBytes = std::uint64_t{1} << 30;

Error wrong(std::string message) { return {Code::kOutOfRange, std::move(message), false}; }

using Options = std::map<std::string, std::string, std::less<>>;

// `options` holds every option there is with its default; one without a value must be given.
Result<Options> parse_options(const std::string& command, const std::vector<std::string_view>& arguments,
                              Options options) {
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    const auto option = options.find(arguments[i]);
    if (option == options.end()) return wrong(command + " has no option \"" + std::string(arguments[i]) + "\"");
    if (i + 1 == arguments.size()) return wrong(option->first + " needs a value");
    option->second = arguments[i + 1];
  }
  for (const auto& [name, value] : options)
    if (value.empty()) return wrong(command + " needs " + name);
  return options;
}

Result<std::uint64_t> number(const Options& options, const char* name, std::uint64_t low, std::uint64_t high) {
  const std::string& text = options.find(name)->second;
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && value >= low && value <= high) return value;
  return wrong(std::string(name) + " is \"" + text + "\", must be a whole number in [" + std::to_string(low) + ", " +
               std::to_string(high) + "]");
}

Result<std::string> one_of(const Options& options, const char* name, const char* first, const char* second) {
  const std::string& text = options.find(name)->second;
  if (text == first || text == second) return text;
  return wrong(std::string(name) + " is \"" + text + "\", must be " + first + " or " + second);
}

Result<DocumentSource> source_of(const Options& options) {
  SKERRY_ASSIGN(std::string kind, one_of(options, "--kind", "text", "jsonl"));
  return DocumentSource{std::move(kind), options.find("--input")->second, options.find("--field")->second};
}

}  // namespace

Result<std::string> tokenizer_command(const std::vector<std::string_view>& arguments, const TrainTokenizer& train) {
  if (arguments.empty() || arguments[0] != "train") return wrong("tokenizer knows one thing to do: train");
  SKERRY_ASSIGN(const Options options, parse_options("tokenizer train", {arguments.begin() + 1, arguments.end()},
                                                     {{"--input", ""},
                                                      {"--out", ""},
                                                      {"--vocabulary", ""},
                                                      {"--kind", "text"},
                                                      {"--field", "text"},
                                                      {"--type", "bpe"}}));
  SKERRY_ASSIGN(const std::uint64_t vocabulary, number(options, "--vocabulary", 260, kMaxVocabulary));
  SKERRY_ASSIGN(const std::string type, one_of(options, "--type", "bpe", "unigram"));
  SKERRY_ASSIGN(const DocumentSource source, source_of(options));
  std::vector<std::string> texts;
  std::uint64_t bytes = 0;
  SKERRY_TRY(each_document(source, [&](std::string_view text, const std::string& where) -> Result<void> {
    bytes += text.size();
    if (bytes > kMaxTrainingBytes)
      return invalid_argument(where +
                              ": with it there are more than 1 GiB of text; a part of it makes as good a tokenizer");
    texts.emplace_back(text);
    return {};
  }));
  const std::vector<std::string_view> documents(texts.begin(), texts.end());
  SKERRY_ASSIGN(std::string model, train(documents, {vocabulary, type == "bpe"}));
  const std::string& out = options.find("--out")->second;
  SKERRY_TRY(write_file_atomic(out, model, 0644));
  SKERRY_ASSIGN(const auto tokenizer, Tokenizer::from_model(std::move(model), out));
  return out + ": " + std::to_string(vocabulary) + " tokens from " + std::to_string(bytes) + " bytes of text\n" +
         tokenizer->id();
}

Result<std::string> tokens_command(const std::vector<std::string_view>& arguments) {
  SKERRY_ASSIGN(const Options options, parse_options("tokens", arguments,
                                                     {{"--input", ""},
                                                      {"--out", ""},
                                                      {"--kind", "text"},
                                                      {"--field", "text"},
                                                      {"--tokenizer", "bytes"},
                                                      {"--shards", "1"}}));
  SKERRY_ASSIGN(const std::uint64_t shards, number(options, "--shards", 1, 1000));
  SKERRY_ASSIGN(const DocumentSource source, source_of(options));
  const std::string& model = options.find("--tokenizer")->second;
  SKERRY_ASSIGN(const auto tokenizer, Tokenizer::open(model == "bytes" ? "" : model));
  SKERRY_ASSIGN(const TokenFilesWritten written,
                write_token_files(source, *tokenizer, options.find("--out")->second, static_cast<unsigned>(shards)));
  return std::to_string(written.tokens) + " tokens of " + std::to_string(written.documents) + " documents (" +
         std::to_string(written.text_bytes) + " bytes of text) in " + std::to_string(written.files) +
         (written.files == 1 ? " file" : " files") + ", tokenizer " + tokenizer->id();
}

}  // namespace skerry::trainer
