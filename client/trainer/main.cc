// skerry-trainer: trains, evaluates and generates for a daemon that speaks docs/trainer-protocol.md to it.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "client/trainer/island.h"
#include "client/trainer/line_channel.h"
#include "client/trainer/offline.h"
#include "client/trainer/session.h"
#include "client/trainer/text_commands.h"

namespace {

constexpr const char* kHelp = R"(skerry-trainer trains, evaluates and generates for skerry-client.

  skerry-trainer
      Speaks the trainer protocol, one JSON object a line, on stdin and stdout (docs/trainer-protocol.md).
      skerry-client starts it; nobody needs to.

  skerry-trainer --island-size N [--island-local K] [--island-address IP:PORT]
      The same as the leader of an island: N processes that train as one node (docs/data-holders.md). It starts the K - 1
      workers of its own machine; those of other machines come to the address. skerry-client says so by the policy.

  skerry-trainer --island-rank R --island-size N --island-address IP:PORT
      A worker of that island on another machine, of rank 1 to N - 1: it waits for the leader, follows it, and ends with it.
      Start it again then: your service manager does.

  skerry-trainer generate --model-dir DIR [--prompt TEXT] [--tokens N] [--temperature T] [--top-k K] [--top-p P] [--seed S]
                          [--threads N]
      Continues a prompt with a text model. DIR holds model.json (the run's model section), one FRAGMENT.safetensors for
      each fragment, for example all.safetensors, and where the model's tokens are no bytes its tokenizer.model.

  skerry-trainer tokenizer train --input PATH --vocabulary N --out FILE [--kind text|jsonl] [--field text] [--type bpe|unigram]
      Makes a SentencePiece model of N tokens from local text (a directory or a file; jsonl: JSON lines with that member). The
      same text gives the same file. Says its content id, which a run spec's data.tokenizer names once it is uploaded.

  skerry-trainer tokens --input PATH --out FILE [--kind text|jsonl] [--field text] [--tokenizer FILE|bytes] [--shards N]
      Cuts text into tokens once and for all: FILE, a data set of kind tokens, or N of them.

  skerry-trainer --version
  skerry-trainer --help

Exit status: 0 all well (also at the end of stdin), 1 an error (on stderr, or as a fatal error line), 2 wrong arguments.
)";

// Idle threads must sleep, not spin: ten trainers may share two cores. LibTorch's OpenMP and OpenBLAS read these when
// they are loaded, that is before main: so set them and start over, once. A daemon that sets them itself saves that.
void make_threads_passive(char** argv) {
  if (getenv("OMP_WAIT_POLICY") != nullptr) return;
  setenv("OMP_WAIT_POLICY", "PASSIVE", 1);
  setenv("GOMP_SPINCOUNT", "0", 0);
  setenv("OPENBLAS_THREAD_TIMEOUT", "4", 0);
  setenv("OPENBLAS_NUM_THREADS", "1", 0);
  execv("/proc/self/exe", argv);  // if that fails we run with threads that spin
}

// The end of stdin means: exit at once. Between two steps the session sees it; a step may take minutes, so another
// thread looks for the hang-up and gives the session a moment to end by itself.
void leave_when_abandoned() {
  std::thread([] {
    pollfd waiting{STDIN_FILENO, 0, 0};
    while (::poll(&waiting, 1, -1) < 0) {
    }
    ::usleep(500'000);
    ::_exit(0);
  }).detach();
}

int serve(const skerry::trainer::IslandOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);
  // Whatever a library prints to stdout must not get between the lines: it goes to stderr.
  const int output = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
  if (output < 0 || ::dup2(STDERR_FILENO, STDOUT_FILENO) < 0) {
    std::fprintf(stderr, "skerry-trainer: cannot use stdout: %s\n", std::strerror(errno));
    return 1;
  }
  leave_when_abandoned();
  skerry::trainer::LineChannel channel(STDIN_FILENO, output);
  std::unique_ptr<skerry::trainer::Island> island;
  if (options.size > 1) {
    auto made = skerry::trainer::Island::make(options);
    if (!made.ok()) {
      channel.send(skerry::trainer::error_line("", made.error(), true));
      return 1;
    }
    island = *std::move(made);
  }
  int status = 0;
  {
    skerry::trainer::Session session(channel, island.get());
    status = session.run();
  }
  island.reset();  // its workers end
  // No destructors of LibTorch's pools: everything is written.
  ::_exit(status);
}

// Becomes another program of the same directory, with these arguments.
int start_beside(const char* program, char** arguments) {
  char self[4096];
  const ssize_t length = ::readlink("/proc/self/exe", self, sizeof self - 1);
  std::string path(self, static_cast<std::size_t>(length > 0 ? length : 0));
  path = path.substr(0, path.rfind('/') + 1) + program;
  ::execv(path.c_str(), arguments);
  std::fprintf(stderr, "skerry-trainer: cannot start %s: %s\n", path.c_str(), std::strerror(errno));
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  if (arguments.empty() || arguments[0].starts_with("--island-")) {
    const auto island = skerry::trainer::parse_island_arguments({arguments.begin(), arguments.end()});
    if (!island.ok()) {
      std::fprintf(stderr, "skerry-trainer: %s\n", island.error().message.c_str());
      return 2;
    }
    make_threads_passive(argv);
    if (!island->rank) return serve(island->options);
    leave_when_abandoned();
    ::_exit(skerry::trainer::follow_island(island->options, *island->rank));
  }
  if (arguments[0] == "--help" || arguments[0] == "-h") {
    std::fputs(kHelp, stdout);
    return 0;
  }
  if (arguments[0] == "--version") {
    std::puts("skerry-trainer " SKERRY_VERSION);
    return 0;
  }
  if (arguments[0] == "tokenizer") return start_beside("skerry-tokenizer", argv + 1);
  const auto command = arguments[0] == "generate" ? skerry::trainer::generate_offline
                       : arguments[0] == "tokens" ? skerry::trainer::tokens_command
                                                  : nullptr;
  if (command != nullptr) {
    const auto text = command({arguments.begin() + 1, arguments.end()});
    if (!text.ok()) {
      std::fprintf(stderr, "skerry-trainer: %s\n", text.error().message.c_str());
      return text.error().code == skerry::Code::kOutOfRange ? 2 : 1;
    }
    std::fwrite(text->data(), 1, text->size(), stdout);
    std::fputs("\n", stdout);
    return 0;
  }
  std::fprintf(stderr, "skerry-trainer: unknown argument \"%s\"; see skerry-trainer --help\n", argv[1]);
  return 2;
}
