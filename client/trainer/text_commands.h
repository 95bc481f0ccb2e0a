// `skerry-trainer tokenizer` and `skerry-trainer tokens`: what a run's text needs before the run.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

/// Trains a tokenizer on local text and writes its model file, for the arguments after `tokenizer`. What it says at the
/// end. OUT_OF_RANGE: the arguments are wrong; otherwise errors of reading, training and writing.
Result<std::string> tokenizer_command(const std::vector<std::string_view>& arguments);

/// Cuts local text into token files, for the arguments after `tokens`. As above.
Result<std::string> tokens_command(const std::vector<std::string_view>& arguments);

}  // namespace skerry::trainer
