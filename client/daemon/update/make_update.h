// From a trainer's files to the encoded outer gradient Δ = base − trained, block by block in bounded memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/daemon/machine/client_machine.h"
#include "client/daemon/update/residual.h"
#include "common/base/result.h"
#include "common/codec/encoding.h"
#include "common/model/fragment_file.h"
#include "common/model/layout.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::client {

struct TrainedFragment {
  std::string fragment;
  std::uint64_t base_version = 0;
  const FragmentFile* base = nullptr;
  std::string trained_path;             ///< as the trainer wrote it
  std::span<const float> trained = {};  ///< instead of the path: the values themselves
  Residual residual = {};               ///< with feedback: what earlier updates lost; nothing: zeros
  std::shared_ptr<const void> held = {};  ///< keeps `base` alive where nobody else does
};

struct UpdateRecipe {
  const ModelLayout* layout = nullptr;
  std::vector<TrainedFragment> fragments;
  const Encoding* encoding = nullptr;
  double maximum_norm = 0;          ///< of what is encoded, over all fragments together; 0: not clipped
  bool stochastic = false;          ///< rounds at random,
  std::uint64_t seed = 0;           ///< from this and the fragments' names
  double feedback = 0;              ///< β: so much of what earlier updates lost goes into this one; 0: nothing, no residuals
  std::string residuals;            ///< directory of their files; empty: they are in memory
  bool zstd = false;                ///< payloads are compressed where that pays
  std::uint64_t inline_limit = 0;   ///< larger payloads, as encoded, become files
  std::uint64_t maximum_bytes = 0;  ///< of all payloads together; 0: no limit
  std::string file_prefix;          ///< a payload's file is this and "." and its content id
  bool in_memory = false;           ///< all payloads stay inline, without content ids: for a coordinator in this process
};

struct MadeUpdate {
  std::vector<v1::FragmentUpdate> fragments;
  std::vector<PendingUpload> uploads;  ///< their files are fsynced
  std::vector<Residual> residuals;     ///< with feedback: those in force once this update is kept, one a fragment
  double norm = 0;                     ///< L2 of what was encoded over all fragments, after clipping
  bool clipped = false;
};

/// INVALID_ARGUMENT (a file that does not hold the fragment), FAILED_PRECONDITION (a value that is not finite, with tensor
/// and index), RESOURCE_EXHAUSTED (over maximum_bytes, disk full).
Result<MadeUpdate> make_update(const UpdateRecipe& recipe);

/// "outbox/t-7" and an id → the payload's file.
std::string payload_path(const std::string& file_prefix, const std::string& content_id);

}  // namespace skerry::client
