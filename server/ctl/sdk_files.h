// The files of examples/custom_strategy, as they were when this program was built.
#pragma once

#include <span>
#include <string_view>

namespace skerry::ctl {

struct SdkFile {
  std::string_view name;
  std::string_view text;
};

std::span<const SdkFile> sdk_files();

}  // namespace skerry::ctl
