// The released versions that virtual clients work with, as files that they share.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "common/base/result.h"
#include "common/model/fragment_file.h"
#include "common/model/layout.h"
#include "server/store/cargo_store.h"
#include "server/store/records.h"

namespace skerry::sim {

/// One fragment at one version; its file goes with the last who holds it.
struct ModelFile {
  ModelFile(std::string fragment_name, std::uint64_t number, std::string place, FragmentFile opened)
      : fragment(std::move(fragment_name)), version(number), path(std::move(place)), file(std::move(opened)) {}
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;
  ~ModelFile();

  std::string fragment;
  std::uint64_t version;
  std::string path;
  FragmentFile file;
};

class ModelFiles {
 public:
  /// Both must outlive it; `directory` exists.
  ModelFiles(std::string directory, const ModelLayout& layout, const server::CargoStore& cargo)
      : directory_(std::move(directory)), layout_(layout), cargo_(cargo) {}

  /// The file of a stored version: one that somebody holds, or made anew.
  Result<std::shared_ptr<const ModelFile>> get(const server::VersionRecord& version);

 private:
  std::string directory_;
  const ModelLayout& layout_;
  const server::CargoStore& cargo_;
  std::map<std::pair<std::string, std::uint64_t>, std::weak_ptr<const ModelFile>> known_;
};

}  // namespace skerry::sim
