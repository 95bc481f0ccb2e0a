// Named sizes of text models (docs/model-layout.md has the table).
#include <iterator>

#include <nlohmann/json.hpp>

#include "common/model/architectures.h"

namespace skerry {
namespace {

struct ModelPreset {
  const char* architecture;
  const char* name;
  const char* members;
};

constexpr ModelPreset kPresets[] = {
    {"transformer", "1m", R"({"layers":5,"width":128,"heads":4,"context":128})"},
    {"transformer", "3m", R"({"layers":7,"width":192,"heads":6,"context":256})"},
    {"transformer", "10m", R"({"layers":8,"width":320,"heads":5,"context":256})"},
    // The smallest of the scaling laws for DiLoCo (arXiv 2503.09799); SwiGLU's three matrices in place of two.
    {"transformer", "35m", R"({"layers":6,"width":512,"heads":8,"context":1024,"vocabulary":32000})"},
    // DiLoCo, table 1 (arXiv 2311.08105).
    {"transformer", "60m", R"({"layers":3,"width":896,"heads":16,"context":1024,"vocabulary":32000})"},
    {"transformer", "150m", R"({"layers":12,"width":896,"heads":16,"context":1024,"vocabulary":32000})"},
    {"transformer", "400m", R"({"layers":12,"width":1536,"heads":12,"context":1024,"vocabulary":32000})"},
    // OpenDiLoCo's 1.1 B (arXiv 2407.07852), which is TinyLlama's shape.
    {"transformer", "1b",
     R"({"layers":22,"width":2048,"heads":32,"kv_heads":4,"hidden":5632,"context":2048,"vocabulary":32000,"tied":false})"},
    // OpenLLaMA 3B.
    {"transformer", "3b",
     R"({"layers":26,"width":3200,"heads":32,"hidden":8640,"context":2048,"vocabulary":32000,"tied":false})"},
    // Llama 2 7B (arXiv 2307.09288).
    {"transformer", "7b",
     R"({"layers":32,"width":4096,"heads":32,"hidden":11008,"context":4096,"vocabulary":32000,"tied":false})"},
    // Photon (arXiv 2411.02908), table of architectures.
    {"mpt", "125m", R"({"layers":12,"width":768,"heads":12,"context":2048,"vocabulary":50368})"},
    {"mpt", "1b", R"({"layers":24,"width":2048,"heads":16,"context":2048,"vocabulary":50368})"},
    {"mpt", "3b", R"({"layers":32,"width":2560,"heads":20,"context":2048,"vocabulary":50368})"},
    {"mpt", "7b", R"({"layers":32,"width":4096,"heads":32,"context":2048,"vocabulary":50368})"},
};

}  // namespace

Result<nlohmann::json> expand_preset(const nlohmann::json& model, std::string_view architecture) {
  const auto named = model.find("preset");
  if (named == model.end()) return model;
  std::string known;
  for (const ModelPreset& preset : kPresets) {
    if (architecture != preset.architecture) continue;
    if (*named == preset.name) {
      nlohmann::json expanded = nlohmann::json::parse(preset.members);
      expanded.update(model);
      expanded.erase("preset");
      return expanded;
    }
    known += (known.empty() ? "" : ", ") + std::string(preset.name);
  }
  return invalid_argument("model.preset is " + named->dump().substr(0, 60) +
                          (known.empty() ? ", but architecture " + std::string(architecture).substr(0, 60) + " has none"
                                         : ", must be one of " + known));
}

}  // namespace skerry
