#include <algorithm>
#include <array>
#include <initializer_list>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "common/model/architectures.h"
#include "common/tensor/text.h"

namespace skerry {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 6> kArchitectures{"cnn", "linear", "mlp", "mpt", "resnet", "transformer"};

constexpr std::int64_t kMaxWidth = std::int64_t{1} << 24;
constexpr std::int64_t kMaxClasses = std::int64_t{1} << 20;

std::string number_text(double value) { return json(value).dump(); }

// Takes members one by one out of a model section, writes them with their defaults into another, and keeps the first
// error; after an error it returns values in range, so that the caller need not look before the end.
class Members {
 public:
  explicit Members(const json& given) : given_(given) {}

  std::int64_t whole(const char* name, std::optional<std::int64_t> otherwise, std::int64_t least, std::int64_t most) {
    const json* value = take(name, otherwise.has_value());
    std::int64_t result = otherwise.value_or(least);
    if (value != nullptr && read_whole(std::string("model.") + name, *value, least, most))
      result = value->get<std::int64_t>();
    resolved_[name] = result;
    return result;
  }

  std::vector<std::int64_t> wholes(const char* name, std::vector<std::int64_t> otherwise, std::size_t shortest,
                                   std::size_t longest, std::int64_t least, std::int64_t most) {
    const json* value = take(name, true);
    if (value != nullptr && !value->is_array()) {
      fail(std::string("model.") + name + " is " + value->dump().substr(0, 60) + ", must be a list of whole numbers");
    } else if (value != nullptr && (value->size() < shortest || value->size() > longest)) {
      fail(std::string("model.") + name + " has " + std::to_string(value->size()) + " entries, must have " +
           (shortest == longest ? std::to_string(shortest)
                                : std::to_string(shortest) + " to " + std::to_string(longest)));
    } else if (value != nullptr) {
      std::vector<std::int64_t> given;
      for (std::size_t i = 0; i < value->size(); ++i) {
        const std::string path = std::string("model.") + name + "[" + std::to_string(i) + "]";
        given.push_back(read_whole(path, (*value)[i], least, most) ? (*value)[i].get<std::int64_t>() : least);
      }
      otherwise = std::move(given);
    }
    resolved_[name] = otherwise;
    return otherwise;
  }

  double real(const char* name, double otherwise, double most) {
    const json* value = take(name, true);
    if (value != nullptr) {
      const double number = value->is_number() ? value->get<double>() : 0.0;
      if (number > 0.0 && number <= most) {
        otherwise = number;
      } else {
        fail(std::string("model.") + name + " is " + value->dump().substr(0, 60) +
             ", must be a number above 0 and at most " + number_text(most));
      }
    }
    resolved_[name] = otherwise;
    return otherwise;
  }

  bool flag(const char* name, bool otherwise) {
    const json* value = take(name, true);
    if (value != nullptr && !value->is_boolean()) {
      fail(std::string("model.") + name + " is " + value->dump().substr(0, 60) + ", must be true or false");
    } else if (value != nullptr) {
      otherwise = value->get<bool>();
    }
    resolved_[name] = otherwise;
    return otherwise;
  }

  void choice(const char* name, const char* otherwise, std::initializer_list<std::string_view> allowed) {
    const json* value = take(name, true);
    std::string chosen = otherwise;
    if (value != nullptr) {
      chosen = value->is_string() ? value->get<std::string>() : std::string();
      if (std::find(allowed.begin(), allowed.end(), chosen) == allowed.end()) {
        std::string list;
        for (const std::string_view each : allowed) list += (list.empty() ? "" : ", ") + std::string(each);
        fail(std::string("model.") + name + " is " + value->dump().substr(0, 60) + ", must be one of " + list);
      }
    }
    resolved_[name] = chosen;
  }

  void texts(const char* name) {
    constexpr std::size_t kMost = 1000;
    constexpr std::size_t kLongest = 300;
    const json* value = take(name, true);
    json list = json::array();
    if (value != nullptr) {
      bool right = value->is_array() && value->size() <= kMost;
      for (std::size_t i = 0; right && i < value->size(); ++i) {
        const json& item = (*value)[i];
        right = item.is_string() && !item.get_ref<const std::string&>().empty() &&
                item.get_ref<const std::string&>().size() <= kLongest;
      }
      if (right) {
        list = *value;
      } else {
        fail(std::string("model.") + name + " is " + value->dump().substr(0, 60) +
             ", must be a list of patterns of tensor names");
      }
    }
    resolved_[name] = std::move(list);
  }

  void require(bool holds, const std::string& sentence) {
    if (!holds) fail(sentence);
  }

  // The resolved section, or the first error; a member nobody took is one.
  Result<json> finish(std::string_view architecture) {
    for (const auto& item : given_.items()) {
      if (item.key() == "architecture" || taken_.count(item.key()) != 0) continue;
      std::string list;
      for (const std::string& name : taken_) list += ", " + name;
      fail("model." + item.key().substr(0, 60) + " is not a member of architecture " + std::string(architecture) +
           ", which has architecture" + list);
      break;
    }
    if (!error_.empty()) return invalid_argument(error_);
    resolved_["architecture"] = architecture;
    return std::move(resolved_);
  }

 private:
  const json* take(const char* name, bool has_default) {
    taken_.insert(name);
    const auto at = given_.find(name);
    if (at != given_.end()) return &*at;
    if (!has_default) fail(std::string("model.") + name + " is missing, it has no default");
    return nullptr;
  }

  bool read_whole(const std::string& path, const json& value, std::int64_t least, std::int64_t most) {
    const bool whole = value.is_number_integer();
    const bool fits =
        whole && !(value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX));
    if (fits && value.get<std::int64_t>() >= least && value.get<std::int64_t>() <= most) return true;
    fail(path + " is " + value.dump().substr(0, 60) + ", must be a whole number in [" + std::to_string(least) + ", " +
         std::to_string(most) + "]");
    return false;
  }

  void fail(std::string sentence) {
    if (error_.empty()) error_ = std::move(sentence);
  }

  const json& given_;
  json resolved_ = json::object();
  std::set<std::string> taken_;
  std::string error_;
};

void linear_members(Members& members) {
  members.whole("inputs", std::nullopt, 1, kMaxWidth);
  members.whole("outputs", std::nullopt, 1, kMaxWidth);
  members.flag("bias", true);
}

void mlp_members(Members& members) {
  members.whole("inputs", std::nullopt, 1, kMaxWidth);
  members.whole("outputs", std::nullopt, 1, kMaxWidth);
  members.wholes("hidden", {128}, 0, 64, 1, kMaxWidth);
  members.choice("activation", "relu", {"relu", "tanh", "gelu"});
}

void image_members(Members& members, std::vector<std::int64_t> shape) {
  const std::vector<std::int64_t> given = members.wholes("shape", std::move(shape), 3, 3, 1, 4096);
  members.require(given[0] <= 1024,
                  "model.shape[0] is " + std::to_string(given[0]) + ", at most 1024 channels are possible");
  members.whole("classes", 10, 2, kMaxClasses);
}

void cnn_members(Members& members) {
  image_members(members, {1, 28, 28});
  members.wholes("channels", {16, 32}, 2, 2, 1, 65536);
  const std::int64_t kernel = members.whole("kernel", 5, 1, 31);
  members.require(kernel % 2 == 1, "model.kernel is " + std::to_string(kernel) + ", must be odd");
  members.choice("padding", "valid", {"valid", "same"});
  members.whole("hidden", 128, 1, kMaxClasses);
}

void resnet_members(Members& members) {
  image_members(members, {3, 32, 32});
  const std::int64_t width = members.whole("width", 16, 1, 4096);
  members.wholes("blocks", {1, 1, 1}, 1, 6, 1, 64);
  const std::int64_t groups = members.whole("groups", width % 8 == 0 ? 8 : 1, 1, width);
  members.require(width % groups == 0,
                  "model.groups is " + std::to_string(groups) + ", must divide model.width " + std::to_string(width));
}

struct Heads {
  std::int64_t width = 0;
  std::int64_t heads = 0;
};

// What every text model has.
Heads text_members(Members& members) {
  members.whole("layers", 4, 1, 1024);
  const Heads sizes{members.whole("width", 128, 2, 65536), members.whole("heads", 4, 1, 65536)};
  members.whole("context", 128, 1, std::int64_t{1} << 20);
  members.whole("vocabulary", 256, 2, kMaxWidth);
  members.real("norm_epsilon", 1e-5, 1.0);
  members.real("initial_std", 0.02, 1.0);
  return sizes;
}

void mpt_members(Members& members) {
  const auto [width, heads] = text_members(members);
  members.require(width % heads == 0,
                  "model.heads is " + std::to_string(heads) + ", must divide model.width " + std::to_string(width));
  members.real("alibi_maximum", 8.0, 1000.0);
}

void transformer_members(Members& members) {
  const auto [width, heads] = text_members(members);
  members.require(width % (2 * heads) == 0, "model.heads is " + std::to_string(heads) + ", must divide model.width " +
                                                std::to_string(width) + " into heads of even size");
  const std::int64_t kv_heads = members.whole("kv_heads", heads, 1, heads);
  members.require(heads % kv_heads == 0, "model.kv_heads is " + std::to_string(kv_heads) +
                                             ", must divide model.heads " + std::to_string(heads));
  // 8/3 of the width keeps the three matrices of SwiGLU as large as the usual two of 4 · width.
  members.whole("hidden", ((8 * width + 2) / 3 + 31) / 32 * 32, 1, std::int64_t{1} << 20);
  members.flag("tied", true);
  members.flag("qk_norm", false);
  members.real("rope_theta", 10000.0, 1e9);
}

}  // namespace

std::span<const std::string_view> known_architectures() { return kArchitectures; }

bool is_text_model(std::string_view architecture) { return architecture == "transformer" || architecture == "mpt"; }

Result<json> resolve_members(const json& given) {
  if (!given.is_object()) return invalid_argument("model is " + given.dump().substr(0, 60) + ", must be a table");
  const auto named = given.find("architecture");
  if (named == given.end() || !named->is_string())
    return invalid_argument(
        "model.architecture is missing or not text, must be one of cnn, linear, mlp, mpt, resnet, transformer");
  const std::string architecture = named->get<std::string>();
  SKERRY_ASSIGN(const json model, expand_preset(given, architecture));
  Members members(model);
  if (architecture == "linear") {
    linear_members(members);
  } else if (architecture == "mlp") {
    mlp_members(members);
  } else if (architecture == "cnn") {
    cnn_members(members);
  } else if (architecture == "resnet") {
    resnet_members(members);
  } else if (architecture == "transformer") {
    transformer_members(members);
  } else if (architecture == "mpt") {
    mpt_members(members);
  } else {
    return invalid_argument("model.architecture is " + quoted_name(architecture) +
                            ", must be one of cnn, linear, mlp, mpt, resnet, transformer");
  }
  members.whole("fragments", 1, 1, 4096);
  members.choice("fragment_pattern", is_text_model(architecture) ? "strided" : "sequential", {"strided", "sequential"});
  for (const char* role : {"personal", "frozen", "only"}) members.texts(role);
  members.flag("control", false);
  return members.finish(architecture);
}

}  // namespace skerry
