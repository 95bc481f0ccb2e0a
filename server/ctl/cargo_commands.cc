// `skerry cargo`: files that runs refer to by content id.
#include <toml++/toml.h>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <memory>
#include <utility>

#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "server/ctl/commands.h"

namespace skerry::ctl {
namespace {

Result<void> upload(const Context& context, const std::string& path) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_ASSIGN(const std::string id, connection.upload(path));
  if (context.json)
    std::printf("%s\n", nlohmann::json({{"content_id", id}, {"file", path}}).dump(2).c_str());
  else
    std::printf("%s\n", id.c_str());
  return {};
}

// Where position (line, column), both counted from 1 and the column in characters of UTF-8, is in a text.
std::size_t offset_of(const std::string& text, toml::source_position position) {
  std::size_t at = 0;
  for (toml::source_index line = 1; line < position.line && at < text.size(); ++line)
    at = std::min(text.find('\n', at), text.size() - 1) + 1;
  for (toml::source_index column = 1; column < position.column && at < text.size(); ++column) do
      ++at;
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return at;
}

}  // namespace

Result<std::string> upload_named_files(Connection& connection, std::string spec, const std::string& directory) {
  for (const auto& [section, key] : {std::pair{"data", "tokenizer"}, std::pair{"model", "initial"}}) {
    toml::table table;
    try {
      table = toml::parse(spec);
    } catch (const toml::parse_error&) {
      return spec;  // the coordinator says what is wrong with it
    }
    const auto* value = table[section][key].as_string();
    if (value == nullptr || value->get().empty() || value->get() == "bytes" || check_content_id(value->get()).ok())
      continue;
    const std::string& name = value->get();
    SKERRY_ASSIGN(const std::string id, connection.upload(name.starts_with('/') ? name : join_path(directory, name)));
    const std::size_t begin = offset_of(spec, value->source().begin);
    const std::size_t end = offset_of(spec, value->source().end);
    if (begin >= end || end > spec.size())
      return internal_error(std::string(section) + "." + key + " was not found in the spec");
    spec.replace(begin, end - begin, "\"" + id + "\"");
  }
  return spec;
}

void add_cargo_commands(CLI::App& app, Context& context) {
  CLI::App* cargo = app.add_subcommand("cargo", "Files that runs refer to")->require_subcommand(1);
  auto path = std::make_shared<std::string>();
  CLI::App* command = cargo->add_subcommand("upload", "Upload a tokenizer or a model; prints its content id");
  command->add_option("FILE", *path, "The file")->required();
  command->callback([&context, path] { context.chosen = [&context, path] { return upload(context, *path); }; });
}

}  // namespace skerry::ctl
