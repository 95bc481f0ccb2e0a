// A model as bytes: which tensors it has, in which order, in which fragment, and how each starts. No LibTorch needed.
//
// docs/model-layout.md specifies everything here so that a trainer in any language builds the same model.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "common/base/result.h"
#include "common/tensor/dtype.h"

namespace skerry {

/// The values a tensor starts with; `initialise_*` in model/initialise.h draws them.
struct Initialiser {
  enum class Kind : std::uint8_t {
    kZeros,
    kOnes,
    kNormal,   ///< mean 0, standard deviation `scale`
    kUniform,  ///< in (-scale, scale)
  };
  Kind kind = Kind::kZeros;
  double scale = 0.0;

  friend bool operator==(const Initialiser&, const Initialiser&) = default;
};

struct TensorLayout {
  std::string name;
  DType dtype = DType::kF32;         ///< f32 in every architecture: fragments and updates are f32 vectors
  std::vector<std::uint64_t> shape;  ///< row-major; empty for a scalar
  std::uint64_t elements = 0;        ///< product of `shape`
  std::size_t fragment = 0;          ///< index into ModelLayout::fragments; never a control fragment's
  std::uint64_t offset = 0;          ///< of its first element inside its fragment, in elements
  Initialiser initialiser;
};

/// What becomes of a fragment in a run.
enum class FragmentRole : std::uint8_t {
  kExchanged,  ///< trained by the nodes, aggregated by the coordinator
  kControl,    ///< the control variate of an exchanged fragment (its twin): the twin's tensors, zeros at first
  kFrozen,     ///< read by the nodes, never trained: version 0 for ever
  kPersonal,   ///< trained by each node for itself; it never travels
};

/// A named set of tensors exchanged together: one vector of `elements` f32 values, tensor after tensor.
struct FragmentLayout {
  std::string name;  ///< "all", or "f0", "f1", …; "all-control", "f0-control", …; "frozen"; "personal"
  std::uint64_t elements = 0;
  std::vector<std::size_t> tensors;  ///< indices into ModelLayout::tensors, ascending
  FragmentRole role = FragmentRole::kExchanged;
  std::size_t twin = 0;  ///< control: the index of the exchanged fragment whose tensors it shares
};

struct ModelLayout {
  std::string architecture;
  std::vector<TensorLayout> tensors;      ///< in model order
  std::vector<FragmentLayout> fragments;  ///< exchanged, then control, then frozen, then personal
  std::uint64_t parameters = 0;           ///< elements of all tensors together

  /// nullptr where there is none of that name.
  const TensorLayout* find_tensor(std::string_view name) const;
  const FragmentLayout* find_fragment(std::string_view name) const;

  /// How many fragments travel: those before the personal one. Coordinator and nodes number these alike.
  std::size_t shared_fragments() const;
};

/// More elements than this in one model is an error (it guards every later multiplication).
inline constexpr std::uint64_t kMaxModelElements = std::uint64_t{1} << 42;

/// The model section of a run spec with every default written out; resolving twice changes nothing.
///
/// `model` is an object with `architecture` (linear, mlp, cnn, resnet, transformer, mpt), that architecture's sizes, for
/// text models `preset` (a name for sizes, which the resolved section has instead), and for each of them `fragments` (1 …
/// number of layers; default 1), `fragment_pattern` (strided or sequential), the tensors' roles (`personal`, `frozen`,
/// `only`: lists of patterns) and `control` (whether there are control fragments).
/// INVALID_ARGUMENT naming "model.MEMBER", its value and what is allowed, for an unknown architecture or member, a
/// missing required member, a wrong type, a value out of range, or sizes that do not fit together.
Result<nlohmann::json> resolve_model(const nlohmann::json& model);

/// The layout of a model section, resolved or not. Errors as resolve_model.
Result<ModelLayout> build_layout(const nlohmann::json& model);

/// The names resolve_model knows, in alphabetical order.
std::span<const std::string_view> known_architectures();

/// Whether a model of this architecture predicts text: it has a context and a vocabulary.
bool is_text_model(std::string_view architecture);

/// For people: one line a tensor, for example "fc2.bias [10] zeros all+80192".
std::string describe_layout(const ModelLayout& layout);

}  // namespace skerry
