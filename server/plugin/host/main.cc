// skerry-plugin-host: runs one plug-in for a coordinator. Not for people: the coordinator starts it with the descriptors of
// server/plugin/wire.h and the number of slots as its argument.
//
// It lives as long as its standard input is open, whatever the plug-in does, because the thread that waits for its end never
// runs the plug-in's code.
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "server/plugin/host/confine.h"
#include "server/plugin/host/serve.h"

namespace skerry::plugin_host {
namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "skerry-plugin-host: %s\n", what.c_str());
  std::_Exit(2);
}

void run(unsigned slots) {
  ::dup2(STDERR_FILENO, STDOUT_FILENO);  // what a plug-in prints may be lost, but must not fill a pipe and wait
  ::fcntl(STDERR_FILENO, F_SETFL, ::fcntl(STDERR_FILENO, F_GETFL) | O_NONBLOCK);
  if (const std::string wrong = give_up_files(); !wrong.empty()) fail(wrong);
  void* memory = ::mmap(nullptr, slots * server::plugin_wire::kSlotBytes, PROT_READ | PROT_WRITE, MAP_SHARED, server::plugin_wire::kMemoryFd, 0);
  if (memory == MAP_FAILED) fail("it must be started by a coordinator");
  ::close(server::plugin_wire::kMemoryFd);

  Host host;
  std::mutex mutex;
  std::condition_variable confined;
  bool go = false;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < slots; ++i)
    threads.emplace_back([&, i] {
      {
        std::unique_lock<std::mutex> lock(mutex);
        confined.wait(lock, [&] { return go; });
      }
      host.serve(server::plugin_wire::kFirstSlotFd + static_cast<int>(i), static_cast<std::byte*>(memory) + i * server::plugin_wire::kSlotBytes);
    });
  if (const std::string wrong = give_up_system_calls(); !wrong.empty()) fail(wrong);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    go = true;
  }
  confined.notify_all();
  char nothing = 0;
  while (::read(STDIN_FILENO, &nothing, 1) > 0) {
  }
  std::_Exit(0);
}

}  // namespace
}  // namespace skerry::plugin_host

int main(int argc, char** argv) {
  const int slots = argc == 2 ? std::atoi(argv[1]) : 0;
  if (slots < 1 || slots > 256) {
    std::fprintf(stderr, "skerry-plugin-host runs an aggregation plug-in for skerry-server, which starts it; docs/strategies.md\n");
    return 2;
  }
  skerry::plugin_host::run(static_cast<unsigned>(slots));
}
