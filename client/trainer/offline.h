// `skerry-trainer generate`: text from the files of a model, without a daemon.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

/// The prompt and its continuation, for the arguments after `generate`. OUT_OF_RANGE: the arguments are wrong;
/// otherwise errors of reading model.json and the fragment files.
Result<std::string> generate_offline(const std::vector<std::string_view>& arguments);

}  // namespace skerry::trainer
