// A payload that came compressed, as a file in scratch/ for as long as somebody reads it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "common/base/result.h"
#include "server/store/cargo_store.h"

namespace skerry::server {

class Inflated {
 public:
  /// Decompresses the sealed file at `path` into a new one of exactly `size` bytes. Errors of decompress_to_file.
  static Result<Inflated> open(const std::string& path, std::uint64_t size, CargoStore& cargo);

  Inflated(Inflated&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  Inflated& operator=(Inflated&&) = delete;
  ~Inflated();

  const std::string& path() const { return path_; }

 private:
  explicit Inflated(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace skerry::server
