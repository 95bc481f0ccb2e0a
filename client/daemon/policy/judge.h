// What a policy says about a run, rule by rule.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/daemon/data/catalogue.h"
#include "client/daemon/policy/policy.h"
#include "common/base/result.h"
#include "common/config/run_spec.h"

namespace skerry::client {

struct RuleVerdict {
  std::string rule;         ///< the policy's key, for example "allow.purposes"
  bool allowed = false;
  std::string explanation;  ///< a sentence with the values on both sides
};

struct Verdict {
  std::vector<RuleVerdict> rules;  ///< every rule, also after the first that refuses
  std::string data_set;            ///< that matched; empty: none
  std::map<std::string, std::uint64_t> examples;  ///< of it, per split
  std::uint64_t parameters = 0;

  bool allowed() const;
  /// What the coordinator may be told of the refusal: the policy's error_messages decide.
  std::vector<std::string> reasons(Policy::Telling telling) const;
};

/// `ca_fingerprint` is the hex SHA-256 of the root that the coordinator's certificate leads to.
Verdict judge(const Policy& policy, const RunSpec& spec, std::span<const DataSet> catalogue, std::string_view ca_fingerprint);

/// The bytes of context a text model reads; 0 for models without.
std::uint64_t model_context(const RunSpec& spec);

}  // namespace skerry::client
