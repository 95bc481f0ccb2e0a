#include "server/sim/model_files.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/os/files.h"

namespace skerry::sim {

ModelFile::~ModelFile() { (void)remove_file(path).ok(); }

Result<std::shared_ptr<const ModelFile>> ModelFiles::get(const server::VersionRecord& version) {
  std::weak_ptr<const ModelFile>& known = known_[{version.fragment, version.version}];
  if (auto file = known.lock()) return file;
  const std::string path = join_path(directory_, version.fragment + "-" + std::to_string(version.version) + ".safetensors");
  if (!version.whole.bytes.empty()) {
    SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrEmpty));
    SKERRY_TRY(file.append(as_bytes_of(version.whole.bytes)));
  } else if (::link(cargo_.cargo_path(version.whole.content_id).c_str(), path.c_str()) != 0) {
    // A second name for the sealed file: it may leave the store while somebody still trains on it.
    return internal_error(path + ": cannot link the version's cargo here: " + std::strerror(errno));
  }
  SKERRY_ASSIGN(FragmentFile opened, FragmentFile::open(path, layout_, version.fragment));
  auto file = std::make_shared<const ModelFile>(version.fragment, version.version, path, std::move(opened));
  known = file;
  return file;
}

}  // namespace skerry::sim
