#include "client/daemon/policy/policy.h"

#include <arpa/inet.h>
#include <toml++/toml.h>

#include <charconv>
#include <cmath>
#include <initializer_list>

#include "common/codec/encoding.h"
#include "common/os/files.h"

namespace skerry::client {
namespace {

constexpr std::uint64_t kMaxPolicyBytes = 1 << 20;

/// Reads one table and remembers the first thing that was wrong with it.
class Section {
 public:
  Section(const toml::table& table, std::string path, const std::string& file)
      : table_(table), path_(std::move(path)), file_(file) {}

  void only(std::initializer_list<std::string_view> known) {
    for (auto&& [key, node] : table_) {
      bool found = false;
      std::string names;
      for (auto name : known) {
        found = found || name == key.str();
        names += (names.empty() ? "" : ", ") + std::string(name);
      }
      if (!found) fail(node, "unknown key " + full(key.str()) + "; known here: " + names);
    }
  }

  void texts(std::string_view key, std::vector<std::string>& out) {
    const auto* node = table_.get(key);
    if (node == nullptr) return;
    const auto* array = node->as_array();
    if (array == nullptr) return fail(*node, full(key) + " must be a list of texts, for example [\"a\", \"b\"]");
    out.clear();
    for (const auto& item : *array) {
      const auto* text = item.as_string();
      if (text == nullptr) return fail(item, full(key) + " must hold texts only");
      out.push_back(text->get());
    }
  }

  void text(std::string_view key, std::string& out) {
    const auto* node = table_.get(key);
    if (node == nullptr) return;
    if (const auto* value = node->as_string()) out = value->get();
    else fail(*node, full(key) + " must be a text");
  }

  template <typename T>
  void whole(std::string_view key, T& out, std::uint64_t minimum, std::uint64_t maximum) {
    const auto* node = table_.get(key);
    if (node == nullptr) return;
    const auto* value = node->as_integer();
    if (value == nullptr || value->get() < 0 || static_cast<std::uint64_t>(value->get()) < minimum ||
        static_cast<std::uint64_t>(value->get()) > maximum)
      return fail(*node, full(key) + " must be a whole number in [" + std::to_string(minimum) + ", " + std::to_string(maximum) + "]");
    out = static_cast<T>(value->get());
  }

  void number(std::string_view key, double& out) {
    const auto* node = table_.get(key);
    if (node == nullptr) return;
    const auto value = node->value<double>();
    if (!value || !std::isfinite(*value) || *value < 0) return fail(*node, full(key) + " must be a number of at least 0");
    out = *value;
  }

  template <typename T>
  void choice(std::string_view key, T& out, std::initializer_list<std::pair<std::string_view, T>> choices) {
    const auto* node = table_.get(key);
    if (node == nullptr) return;
    std::string names;
    const auto* value = node->as_string();
    for (const auto& [name, meaning] : choices) {
      if (value != nullptr && value->get() == name) {
        out = meaning;
        return;
      }
      names += (names.empty() ? "\"" : ", \"") + std::string(name) + "\"";
    }
    fail(*node, full(key) + " must be one of " + names);
  }

  void fail(const toml::node& node, const std::string& what) {
    if (!error_) error_ = invalid_argument(file_ + " line " + std::to_string(node.source().begin.line) + ": " + what);
  }

  Result<void> done() {
    if (error_) return *std::move(error_);
    return {};
  }

 private:
  std::string full(std::string_view key) const { return path_.empty() ? std::string(key) : path_ + "." + std::string(key); }

  const toml::table& table_;
  std::string path_;
  const std::string& file_;
  std::optional<Error> error_;
};

/// IP:PORT in digits, IPv6 in brackets: a sandboxed trainer has no name service.
bool is_socket_address(const std::string& text) {
  const auto colon = text.rfind(':');
  if (colon == std::string::npos) return false;
  std::uint16_t port = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data() + colon + 1, last, port);
  if (error != std::errc() || end != last || port == 0) return false;
  const std::string host = text.substr(0, colon);
  unsigned char bytes[sizeof(in6_addr)];
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    return ::inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), bytes) == 1;
  return ::inet_pton(AF_INET, host.c_str(), bytes) == 1;
}

Result<void> read_island(const toml::table& table, const std::string& file, Policy& policy) {
  Section island(table, "island", file);
  island.only({"workers", "local", "address"});
  island.whole("workers", policy.island_workers, 1, 1024);
  island.text("address", policy.island_address);
  policy.island_local = policy.island_address.empty() ? policy.island_workers : 1;
  island.whole("local", policy.island_local, 1, policy.island_workers);
  if (!policy.island_address.empty() && !is_socket_address(policy.island_address))
    island.fail(*table.get("address"), "island.address is \"" + policy.island_address +
                                           "\", must be IP:PORT in digits, for example \"10.0.0.1:29400\" or \"[fd00::1]:29400\"");
  if (policy.island_address.empty() && policy.island_local < policy.island_workers)
    island.fail(*table.get("local"), "island.local leaves " + std::to_string(policy.island_workers - policy.island_local) +
                                         " workers to other machines, which need island.address = \"IP:PORT\": it grants the trainer this "
                                         "machine's network");
  return island.done();
}

Result<Policy> read_policy(const toml::table& root, const std::string& file) {
  Policy policy;
  Section top(root, "", file);
  top.only({"coordinators", "hours", "allow", "data", "limits", "privacy", "trainer", "island"});
  top.texts("coordinators", policy.coordinators);
  std::vector<std::string> hours;
  top.texts("hours", hours);
  SKERRY_TRY(top.done());
  auto parsed_hours = Hours::parse(hours);
  if (!parsed_hours.ok()) return with_context(std::move(parsed_hours).error(), file);
  policy.hours = *std::move(parsed_hours);

  static const toml::table kEmpty;
  const auto section = [&](std::string_view name) -> Result<const toml::table*> {
    const auto* node = root.get(name);
    if (node == nullptr) return &kEmpty;
    if (const auto* table = node->as_table()) return table;
    return invalid_argument(file + " line " + std::to_string(node->source().begin.line) + ": " + std::string(name) +
                            " must be a section [" + std::string(name) + "]");
  };

  SKERRY_ASSIGN(const toml::table* allow_table, section("allow"));
  Section allow(*allow_table, "allow", file);
  allow.only({"purposes", "architectures", "max_parameters", "metrics", "error_messages", "encodings", "tokenizers"});
  allow.texts("purposes", policy.purposes);
  allow.texts("architectures", policy.architectures);
  allow.whole("max_parameters", policy.max_parameters, 0, std::uint64_t{1} << 42);
  allow.texts("metrics", policy.metrics);
  allow.texts("encodings", policy.encodings);
  allow.texts("tokenizers", policy.tokenizers);
  allow.choice<Policy::Telling>("error_messages", policy.error_messages,
                                {{"none", Policy::Telling::kNone}, {"code", Policy::Telling::kCode}, {"full", Policy::Telling::kFull}});
  SKERRY_TRY(allow.done());
  for (const auto& name : policy.encodings) {
    auto known = find_encoding(name);
    if (!known.ok()) return with_context(std::move(known).error(), file + ": allow.encodings");
  }

  if (const auto* node = root.get("data"); node != nullptr) {
    const auto* array = node->as_array();
    if (array == nullptr)
      return invalid_argument(file + " line " + std::to_string(node->source().begin.line) + ": write each data rule as [[data]]");
    for (const auto& item : *array) {
      const auto* table = item.as_table();
      if (table == nullptr) return invalid_argument(file + ": data must hold tables, written [[data]]");
      Policy::DataRule rule;
      Section data(*table, "data", file);
      data.only({"set", "purposes"});
      data.text("set", rule.set);
      data.texts("purposes", rule.purposes);
      if (rule.set.empty()) data.fail(item, "data.set is missing: the name of a data set, see `skerry-client data list`");
      SKERRY_TRY(data.done());
      policy.data.push_back(std::move(rule));
    }
  }

  SKERRY_ASSIGN(const toml::table* limits_table, section("limits"));
  Section limits(*limits_table, "limits", file);
  limits.only({"threads", "memory_mb", "trainers", "task_seconds", "disk_mb", "rounds_a_day"});
  limits.whole("threads", policy.threads, 1, 4096);
  limits.whole("memory_mb", policy.memory_mb, 0, std::uint64_t{1} << 32);
  limits.whole("trainers", policy.trainers, 1, 64);
  limits.whole("task_seconds", policy.task_seconds, 0, 365ull * 24 * 3600);
  limits.whole("disk_mb", policy.disk_mb, 1, std::uint64_t{1} << 40);
  limits.whole("rounds_a_day", policy.rounds_a_day, 0, std::uint64_t{1} << 40);
  SKERRY_TRY(limits.done());

  SKERRY_ASSIGN(const toml::table* privacy_table, section("privacy"));
  Section privacy(*privacy_table, "privacy", file);
  privacy.only({"minimum_examples", "maximum_update_norm"});
  privacy.whole("minimum_examples", policy.minimum_examples, 1, std::uint64_t{1} << 50);
  privacy.number("maximum_update_norm", policy.maximum_update_norm);
  SKERRY_TRY(privacy.done());

  SKERRY_ASSIGN(const toml::table* trainer_table, section("trainer"));
  Section trainer(*trainer_table, "trainer", file);
  trainer.only({"sandbox", "command", "read_only", "devices", "work_dir", "checkpoint_seconds"});
  trainer.choice<Policy::Sandbox>("sandbox", policy.sandbox,
                                  {{"bubblewrap", Policy::Sandbox::kBubblewrap}, {"none", Policy::Sandbox::kNone}});
  trainer.choice<Policy::WorkPlace>("work_dir", policy.work_dir,
                                    {{"disk", Policy::WorkPlace::kDisk}, {"tmpfs", Policy::WorkPlace::kTmpfs}});
  trainer.whole("checkpoint_seconds", policy.checkpoint_seconds, 0, 1'000'000);
  trainer.texts("command", policy.trainer);
  trainer.texts("read_only", policy.read_only);
  trainer.texts("devices", policy.devices);
  SKERRY_TRY(trainer.done());
  SKERRY_ASSIGN(const toml::table* island_table, section("island"));
  SKERRY_TRY(read_island(*island_table, file, policy));
  if (!policy.trainer.empty() && !policy.trainer.front().starts_with('/'))
    return invalid_argument(file + ": trainer.command starts with \"" + policy.trainer.front() + "\", must be an absolute path");
  for (const auto* paths : {&policy.read_only, &policy.devices})
    for (const auto& path : *paths)
      if (!path.starts_with('/')) return invalid_argument(file + ": trainer: \"" + path + "\" must be an absolute path");
  return policy;
}

}  // namespace

std::vector<std::string> Policy::island_arguments() const {
  if (island_workers == 1) return {};
  std::vector<std::string> words{"--island-size", std::to_string(island_workers), "--island-local", std::to_string(island_local)};
  if (!island_address.empty()) words.insert(words.end(), {"--island-address", island_address});
  return words;
}

Result<Policy> parse_policy(std::string_view text, const std::string& name) {
  try {
    return read_policy(toml::parse(text, name), name);
  } catch (const toml::parse_error& error) {
    return invalid_argument(name + " line " + std::to_string(error.source().begin.line) + ": " + std::string(error.description()));
  }
}

Result<Policy> load_policy(const std::string& path) {
  auto text = read_file(path, kMaxPolicyBytes);
  if (!text.ok()) {
    if (text.error().code == Code::kNotFound)
      return not_found("there is no policy at " + path + "; `skerry-client join` writes one, `skerry-client policy template` prints one");
    return std::move(text).error();
  }
  return parse_policy(*text, path);
}

std::string policy_template(std::string_view ca_fingerprint) {
  return R"(# The policy of this data holder. Everything that is not allowed here is refused; as it stands, nothing is allowed.
# Changes take effect at once. `skerry-client policy test RUN.toml` explains what this file says about a run.

# Coordinators this machine may talk to, by the SHA-256 of their root certificate.
coordinators = [")" +
         std::string(ca_fingerprint) + R"("]

# When work may be done, local time. Examples: "always", "Sat,Sun", "Mon-Fri 18:00-08:00".
hours = ["always"]

[allow]
# purposes = ["language-model", "diabetes-*"]   # what a run may be for
# architectures = ["linear", "mlp", "cnn", "resnet", "transformer", "mpt"]
# max_parameters = 100_000_000
# metrics = ["train_loss", "loss", "accuracy", "perplexity"]   # measurements that may leave; "*" allows all
# encodings = ["f32", "bf16", "int8", "int8_block"] # of updates
# tokenizers = ["bytes", "b2-*"]                # of text: bytes alone where nothing is said; "b2-*": any model file
error_messages = "none"                         # what a coordinator is told of failures and refusals: none, code, full

# Which data set may serve which purpose; see `skerry-client data list`.
# [[data]]
# set = "letters"
# purposes = ["language-model"]

[limits]
threads = 1              # of one trainer
# memory_mb = 4096       # of one trainer
trainers = 1             # at once
# task_seconds = 3600
disk_mb = 10000          # runs, caches and outbox together
# rounds_a_day = 100

[privacy]
minimum_examples = 100   # fewer may not make an update
# maximum_update_norm = 10.0   # larger updates are scaled down to this L2 norm

[trainer]
sandbox = "bubblewrap"   # "none" runs the trainer with this user's rights
work_dir = "disk"        # "tmpfs" keeps models in memory
checkpoint_seconds = 60  # between the trainer's checkpoints in the middle of a task; 0: only at its end
# command = ["/usr/bin/python3", "/opt/my_trainer.py"]
# read_only = ["/opt"]   # more that a sandboxed trainer may read
# devices = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"]

# Several trainer processes that train as this one node: one for each GPU or machine of yours.
# [island]
# workers = 4
# address = "10.0.0.1:29400"  # where workers of other machines come; it gives the trainer this machine's network
# local = 1                   # of the workers on this machine
)";
}

}  // namespace skerry::client
