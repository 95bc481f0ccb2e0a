// Runs a fuzz target over files, without a fuzzing engine: a corpus as a regression test under any compiler.
//
//   NAME_fuzz [--mutations N] PATH…     a path is a file or a directory (not searched further)
//
// Besides each file itself, N variants of it are tried, the same on every run: cut, with bytes changed, with bits
// flipped. Built with clang and -fsanitize=fuzzer this file is left out, and libFuzzer is the main program.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "common/model/philox.h"
#include "common/os/files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

void run(const std::string& input) {
  // A copy of exactly this size, so that a sanitizer sees a read beyond it.
  const std::vector<std::uint8_t> exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

std::string variant(const std::string& input, const skerry::PhiloxStream& random, std::uint64_t number) {
  const skerry::PhiloxCounter draw = random.block(number);
  std::string changed = input;
  if (changed.empty()) return std::string(1, static_cast<char>(draw[0]));
  const std::size_t at = draw[0] % changed.size();
  switch (draw[1] % 4) {
    case 0:
      changed.resize(at);
      break;
    case 1:
      changed[at] = static_cast<char>(changed[at] ^ (1 << draw[2] % 8));
      break;
    case 2:
      changed[at] = "{}[]\",:0129eE.-+ \\"[draw[2] % 18];
      break;
    default:
      changed.insert(at, changed.substr(draw[2] % changed.size(), draw[3] % 16));
      break;
  }
  return changed;
}

}  // namespace

int main(int count, char** arguments) {
  std::uint64_t mutations = 0;
  std::vector<std::string> files;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--mutations" && i + 1 < count) {
      mutations = std::strtoull(arguments[++i], nullptr, 10);
      continue;
    }
    const auto entries = skerry::list_directory(argument);
    if (!entries.ok()) {
      files.push_back(argument);
      continue;
    }
    for (const skerry::DirectoryEntry& entry : *entries)
      if (!entry.is_directory) files.push_back(skerry::join_path(argument, entry.name));
  }
  std::uint64_t runs = 0;
  for (const std::string& file : files) {
    const auto content = skerry::read_file(file, std::uint64_t{1} << 28);
    if (!content.ok()) {
      std::fprintf(stderr, "%s\n", to_string(content.error()).c_str());
      return 1;
    }
    run(*content);
    const skerry::PhiloxStream random(1, skerry::stream_of_name(file.substr(file.rfind('/') + 1)));
    for (std::uint64_t number = 0; number < mutations; ++number) run(variant(*content, random, number));
    runs += 1 + mutations;
  }
  std::printf("%zu files, %llu runs\n", files.size(), static_cast<unsigned long long>(runs));
  if (files.empty()) std::fprintf(stderr, "nothing to run: name files or directories\n");
  return files.empty() ? 1 : 0;
}
