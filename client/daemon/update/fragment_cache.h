// The fragments of one run as this node has them: safetensors files named by version and content id.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/model/fragment_file.h"
#include "common/model/layout.h"
#include "skerry/v1/types.pb.h"

namespace skerry::client {

/// Fetches cargo of this id and size into a file, verified. Called by FragmentCache::bring, on its thread.
using Download = std::function<Result<void>(const std::string& content_id, std::uint64_t size, const std::string& path)>;

/// One thread at a time brings and trims; any may look meanwhile. Nothing here is fsynced: each file's name is its proof, and one that was cut is fetched again.
class FragmentCache {
 public:
  struct Entry {
    std::string fragment;
    std::uint64_t version = 0;
    std::string content_id;
    std::string path;
    bool verified = false;               ///< its bytes were compared with its name in this life
    std::unique_ptr<FragmentFile> file;  ///< open where verified
  };

  /// Takes over what an earlier life left in `directory`, which is made if need be; what is no fragment of this layout is
  /// removed.
  static Result<FragmentCache> open(std::string directory, ModelLayout layout);
  /// Looks at a directory that another process may be using; changes nothing.
  static Result<FragmentCache> look(std::string directory, ModelLayout layout);

  /// Compares an entry of an earlier life with its name. DATA_LOSS where they differ.
  Result<void> verify(std::string_view fragment, std::uint64_t version);

  /// Makes sure that this version is here: from an earlier life, from inline bytes, by adding the step to the version
  /// before, or by fetching the whole. A step that does not give exactly the named whole is not used.
  /// INVALID_ARGUMENT (no such fragment, wrong size, bytes that do not fit the id); errors of `download`.
  Result<void> bring(const v1::FragmentVersion& wanted, const Download& download);

  /// nullptr where it is not here or was not verified.
  std::shared_ptr<const Entry> find(std::string_view fragment, std::uint64_t version) const;
  /// The highest version here, verified or not; nullptr where there is none.
  std::shared_ptr<const Entry> newest(std::string_view fragment) const;

  /// Removes all but the newest version of each fragment and those that `keep` names.
  void trim(const std::set<std::pair<std::string, std::uint64_t>>& keep);

  const ModelLayout& layout() const { return layout_; }
  const std::string& directory() const { return directory_; }

 private:
  FragmentCache(std::string directory, ModelLayout layout) : directory_(std::move(directory)), layout_(std::move(layout)) {}

  Result<void> scan(bool tidy);
  std::shared_ptr<Entry> lookup(std::string_view fragment, std::uint64_t version, std::string_view content_id);
  Result<void> admit(Entry entry);
  Result<void> write_inline(const v1::FragmentVersion& wanted, const std::string& path) const;
  Result<bool> apply_step(const v1::FragmentVersion& wanted, const Download& download, const std::string& path) const;

  std::string directory_;
  ModelLayout layout_;
  // Shared with whoever looks; an entry does not change once it is verified.
  std::vector<std::shared_ptr<Entry>> entries_;
  std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();  // of the list
};

}  // namespace skerry::client
