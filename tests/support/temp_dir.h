// A directory of its own for a test, removed with all it contains at the end.
#pragma once

#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkdtemp

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "common/os/files.h"

namespace skerry::test {

class TempDir {
 public:
  TempDir() {
    const char* base = std::getenv("TMPDIR");
    std::string pattern = join_path(base != nullptr ? base : "/tmp", "skerry-test-XXXXXX");
    if (::mkdtemp(pattern.data()) == nullptr) {
      std::perror(pattern.c_str());
      std::abort();
    }
    path_ = pattern;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { (void)remove_tree(path_).ok(); }

  const std::string& path() const { return path_; }

  /// The path of `name` in it.
  std::string operator/(std::string_view name) const { return join_path(path_, name); }

 private:
  std::string path_;
};

}  // namespace skerry::test
