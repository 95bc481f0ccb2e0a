// Aggregation rules from shared objects, run in a helper process (skerry-plugin-host) that cannot take the coordinator down.
//
// What is loaded are exactly the bytes whose SHA-256 the configuration names: they are read once, hashed, and kept in a sealed
// memory file, from which every helper loads. A helper gets the values of a block through shared memory and answers through
// it; whatever it answers is copied, then checked, then used.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::server {

/// One [[plugins]] entry of server.toml.
struct PluginConfig {
  std::string path;
  std::string sha256;                       ///< 64 hexadecimal digits
  std::uint32_t deadline_ms = 10'000;       ///< for each answer; a helper that is later is killed
  std::uint64_t memory_mb = 1024;           ///< what a helper may use beyond the spans it shares
  bool operator==(const PluginConfig&) const = default;
};

struct PluginOptions {
  std::string host_program;                 ///< skerry-plugin-host; empty: beside our own program
  unsigned threads = 0;                     ///< blocks worked on at once; 0: one a core
  std::vector<std::string> environment;     ///< of the helper, "NAME=value"; tests give sanitizers their options
};

/// What a plug-in says of itself, checked.
struct PluginDescription {
  std::string name;
  std::string version;
  std::vector<strategies::PartInfo> rules;
};

/// A plug-in whose bytes were checked and that answered once. Safe from any thread.
class Plugin {
 public:
  /// Reads, hashes, starts a helper and asks what it offers.
  ///
  /// FAILED_PRECONDITION where the SHA-256 is another one (the message names both and the command that prints it), NOT_FOUND,
  /// PERMISSION_DENIED; INVALID_ARGUMENT for a symbolic link, something that is no shared object, another major version, a
  /// missing entry, a description that is not one.
  static Result<std::shared_ptr<Plugin>> load(const PluginConfig& config, const PluginOptions& options = {});
  virtual ~Plugin() = default;

  virtual const PluginConfig& config() const = 0;
  virtual const PluginDescription& description() const = 0;

  /// A rule of it, made from a resolved part. Its functions talk to a helper, which is started where there is none, and throw
  /// std::runtime_error where that fails: the engine fails the exchange with that sentence, and the next one gets a new
  /// helper. INVALID_ARGUMENT where the plug-in refuses the parameters.
  virtual Result<strategies::Rule> make(const strategies::Part& part) = 0;

 protected:
  Plugin() = default;
};

/// An entry for the file as it is now, with its absolute path and its SHA-256. Errors as Plugin::load.
Result<PluginConfig> plugin_config(const std::string& path);

/// The built-in rules and those of these plug-ins, loaded (errors as Plugin::load). Each rule from a plug-in has one more parameter, `plugin`: the SHA-256 of
/// the bytes that compute it. So a run's hash says which code aggregates, and a stored run goes on with no other.
/// ALREADY_EXISTS where two rules have one name.
Result<strategies::RuleCatalogue> rules_with(const std::vector<std::shared_ptr<Plugin>>& plugins);
Result<strategies::RuleCatalogue> rules_with(const std::vector<PluginConfig>& plugins, const PluginOptions& options = {});

}  // namespace skerry::server
