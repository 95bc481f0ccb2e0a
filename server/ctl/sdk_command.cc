// `skerry sdk new`: examples/custom_strategy under another name.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "common/os/files.h"
#include "server/ctl/commands.h"
#include "server/ctl/console.h"
#include "server/ctl/sdk_files.h"

namespace skerry::ctl {
namespace {

constexpr std::string_view kExampleName = "clipped_mean";

std::string renamed(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
  return text;
}

// clipped_mean, clipped-mean (the plug-in's and the run's name).
std::string under_name(std::string_view text, const std::string& name) {
  std::string dashed = name;
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  return renamed(renamed(std::string(text), std::string(kExampleName), name), "clipped-mean", dashed);
}

Result<void> make_project(const std::string& name, std::string directory) {
  const auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  if (name.size() > 63 || name.front() < 'a' || name.front() > 'z' || !std::all_of(name.begin(), name.end(), fits))
    return invalid_argument("the name is '" + name + "', must be of a-z, 0-9 and '_', at most 63, beginning with a letter: run specs name the rule by it");
  if (directory.empty()) directory = name;
  if (path_exists(directory)) return already_exists("there is something at " + directory + " already; give another directory");
  SKERRY_TRY(make_directories(directory, 0755));
  for (const SdkFile& file : sdk_files())
    SKERRY_TRY(write_file_atomic(join_path(directory, under_name(file.name, name)), under_name(file.text, name), 0644));
  const std::string file = printable(directory);
  std::printf("%s is a project with the rule %s, its test and a run of it; README.md begins with the commands:\n\n"
              "  cd %s && cmake -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build && ctest --test-dir build\n",
              file.c_str(), name.c_str(), file.c_str());
  return {};
}

}  // namespace

void add_sdk_commands(CLI::App& app, Context& context) {
  CLI::App* sdk = app.add_subcommand("sdk", "Aggregation rules of your own")->require_subcommand(1);
  CLI::App* make = sdk->add_subcommand("new", "Write a working project of a plug-in: rule, test, run spec, README");
  auto name = std::make_shared<std::string>();
  auto directory = std::make_shared<std::string>();
  make->add_option("NAME", *name, "The rule's name, for example my_mean")->required();
  make->add_option("DIR", *directory, "Where to write it; by default a new directory NAME");
  make->callback([&context, name, directory] { context.chosen = [name, directory] { return make_project(*name, *directory); }; });
}

}  // namespace skerry::ctl
