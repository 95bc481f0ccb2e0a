#include "client/daemon/app/rest.h"

#include <malloc.h>  // NOLINT(modernize-deprecated-headers): malloc_trim
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <memory>

namespace skerry::client {

void give_back_memory() {
  ::malloc_trim(0);
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> maps(std::fopen("/proc/self/maps", "re"));
  if (maps == nullptr) return;
  char line[4608];
  while (std::fgets(line, sizeof line, maps.get()) != nullptr) {
    unsigned long long begin = 0, end = 0, inode = 0;
    char permissions[8] = {};
    // Code only: it is never written, so nothing can be lost; data pages with relocations would be.
    if (std::sscanf(line, "%llx-%llx %7s %*s %*s %llu", &begin, &end, permissions, &inode) != 4 || inode == 0) continue;
    if (permissions[0] != 'r' || permissions[1] != '-' || permissions[2] != 'x' || permissions[3] != 'p') continue;
    (void)::madvise(reinterpret_cast<void*>(static_cast<std::uintptr_t>(begin)), static_cast<std::size_t>(end - begin), MADV_DONTNEED);
  }
}

}  // namespace skerry::client
