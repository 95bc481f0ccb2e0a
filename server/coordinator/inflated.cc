#include "server/coordinator/inflated.h"

#include "common/codec/compression.h"
#include "common/os/files.h"

namespace skerry::server {

Result<Inflated> Inflated::open(const std::string& path, std::uint64_t size, CargoStore& cargo) {
  SKERRY_ASSIGN(const MappedFile frame, MappedFile::open(path));
  Inflated inflated(cargo.scratch_path());
  SKERRY_TRY(decompress_to_file(frame.bytes(), size, inflated.path()));
  SKERRY_TRY(frame.check());
  return inflated;
}

Inflated::~Inflated() {
  if (!path_.empty()) (void)remove_file(path_);
}

}  // namespace skerry::server
