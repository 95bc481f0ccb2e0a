// skerry-tokenizer: what `skerry-trainer tokenizer` starts.
#include "client/trainer/text_commands.h"
#include "client/trainer/tokenizer_training.h"

#include <cstdio>
#include <string_view>
#include <vector>

int main(int argc, char** argv) {
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  const auto said = skerry::trainer::tokenizer_command(arguments, skerry::trainer::train_tokenizer);
  if (said.ok()) {
    std::printf("%s\n", said->c_str());
    return 0;
  }
  std::fprintf(stderr, "skerry-trainer: %s\n", said.error().message.c_str());
  return said.error().code == skerry::Code::kOutOfRange ? 2 : 1;
}
