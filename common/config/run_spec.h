// A run spec: the TOML file an operator writes, resolved into one canonical document whose hash is the run's identity.
//
// docs/run-spec.md is the reference; its tables are compared with fields.h by a test.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/result.h"
#include "common/config/fields.h"

namespace skerry {

/// A part of a strategy named by a run spec, for example {"nesterov", {{"learning_rate", 0.7}, {"momentum", 0.9}}}.
struct SpecPart {
  std::string name;
  std::map<std::string, std::variant<double, bool, std::string>> parameters;

  bool operator==(const SpecPart&) const = default;
};

struct TrainingSpec {
  std::uint64_t steps = 0;  ///< inner steps a task; 0: `epochs` counts
  double epochs = 0;        ///< passes over the training split a task
  double learning_rate = 0;
  std::uint64_t batch = 0;
  double proximal = 0;             ///< FedProx's μ; 0: off
  bool control_variates = false;   ///< SCAFFOLD: every exchanged fragment has a control fragment
  bool start_loss = false;         ///< updates carry the metric start_loss
  std::uint64_t first_step = 0;    ///< position in the learning-rate schedule where the run begins
  bool operator==(const TrainingSpec&) const = default;
};

struct ParticipationSpec {
  enum class Mode : std::uint8_t { kSynchronous, kAsynchronous };
  enum class Work : std::uint8_t { kEqual, kDylu, kFedCompass };
  Mode mode = Mode::kSynchronous;
  std::uint64_t quorum = 1;             ///< synchronous: fewest updates an exchange is committed with
  std::uint64_t start_nodes = 1;        ///< nodes that must be ready before the first exchange opens; at least `quorum`
  std::uint64_t cohort_size = 0;        ///< 0: everyone
  double cohort_fraction = 1;           ///< of the nodes ready when an exchange opens
  double deadline_s = 0;                ///< 0: none
  double grace_s = -1;                  ///< after the quorum (buffer) is reached; -1: until the deadline (none)
  double reconnect_s = 0;               ///< how long a node that went away is waited for
  std::uint64_t buffer = 1;             ///< asynchronous: fewest updates of an exchange
  std::uint64_t maximum_staleness = 0;  ///< asynchronous
  double staleness_exponent = 0.5;      ///< asynchronous: an update's factor is (1 + staleness)^-exponent
  double over_selection = 1;            ///< synchronous: invited for each node of the cohort
  double minimum_completion = 0;        ///< synchronous: share of the invited, below which an exchange is void
  bool adaptive_grace = false;          ///< the grace window follows what is measured; grace_s is its most
  double grace_safety = 0.5;            ///< adaptive: at most so many times the slack, see adaptive_grace_ms
  std::vector<std::string> required_nodes;  ///< always invited; nothing is committed without them
  std::uint64_t minimum_separation = 1;     ///< exchanges from one participation of a node to its next
  std::uint64_t concurrency = 0;            ///< asynchronous: nodes that train at once; 0: all
  Work work = Work::kEqual;
  std::uint64_t minimum_steps = 1;  ///< work by speed: of a task; training.steps is the most
  double group_patience = 1.2;      ///< fedcompass
  bool operator==(const ParticipationSpec&) const = default;
};

struct ExchangeSpec {
  enum class Schedule : std::uint8_t { kWhole, kStaggered };
  std::uint64_t fragments = 1;
  std::string pattern;  ///< "strided" or "sequential"
  Schedule schedule = Schedule::kWhole;
  std::vector<std::string> personal;  ///< patterns of tensors that never leave a node
  std::vector<std::string> frozen;    ///< of tensors that nobody trains
  std::vector<std::string> only;      ///< of the tensors that are trained; empty: all that are not frozen
  std::string up;    ///< encoding of updates
  std::string down;  ///< encoding of outer steps
  bool up_stochastic = false;    ///< how updates are rounded (common/codec/encoding.h: Rounding)
  bool down_stochastic = false;  ///< the same of outer steps
  double up_feedback = 0;        ///< β of the nodes' error feedback; 0: none
  double down_feedback = 0;      ///< of the coordinator's
  bool zstd = false;             ///< payloads are compressed where that pays
  std::string late;  ///< "discard"
  std::uint64_t overlap = 0;      ///< inner steps between sending a fragment and merging its new version; 0: it waits
  std::string merge = "lerp";     ///< "lerp", "replace", "eager"
  double alpha = 0.5;             ///< lerp: share of its own tensors a node keeps; eager: of what it adds again
  bool block = true;              ///< a node waits for a version that is late
  bool operator==(const ExchangeSpec&) const = default;
};

struct EvaluationSpec {
  std::uint64_t every = 1;  ///< versions; 0: never
  std::string split;
  std::uint64_t minimum = 1;  ///< reports
  double deadline_s = 0;
  bool layer_norms = false;
  std::uint64_t keep_every = 0;  ///< rounds; 0: only the newest two versions and the best stay
  bool operator==(const EvaluationSpec&) const = default;
};

struct StartSpec {
  std::string run;          ///< that this run continues; empty: none
  std::uint64_t round = 0;  ///< of it, that are over
  bool operator==(const StartSpec&) const = default;
};

struct StopSpec {
  enum class Comparison : std::uint8_t { kAtLeast, kAtMost };
  std::uint64_t rounds = 1;  ///< exchanges of each fragment
  std::string metric;        ///< empty: rounds alone
  Comparison comparison = Comparison::kAtLeast;
  double value = 0;
  bool operator==(const StopSpec&) const = default;
};

struct LimitsSpec {
  double maximum_update_norm = 0;    ///< 0: none
  std::vector<std::string> metrics;  ///< names a node may report
  bool operator==(const LimitsSpec&) const = default;
};

struct DataSpec {
  std::string kind;         ///< "text", "idx", "csv"
  std::string schema_json;  ///< canonical JSON
  std::string tokenizer;    ///< text: "bytes" or a content id
  bool documents = false;   ///< text: at most one document a window
  std::string train_split;
  std::uint64_t minimum_examples = 1;
  bool operator==(const DataSpec&) const = default;
};

/// A resolved run spec. Equal canonical JSON means an equal RunSpec.
struct RunSpec {
  std::string name;
  std::string purpose;
  std::string strategy;  ///< the preset it started from
  std::uint64_t seed = 0;

  std::string model_json;     ///< canonical JSON of the resolved model section, as build_layout and trainers take it
  std::string initial_model;  ///< content id of an uploaded model to start from; empty: initialisers
  DataSpec data;
  TrainingSpec training;
  std::string training_json;  ///< canonical JSON of the whole training section, as trainers take it
  ParticipationSpec participation;
  ExchangeSpec exchange;
  SpecPart aggregation;
  SpecPart outer;
  EvaluationSpec evaluation;
  StartSpec start;
  StopSpec stop;
  LimitsSpec limits;

  std::string canonical_json;  ///< RFC 8785, everything above with all defaults written out
  std::string hash;            ///< hex SHA-256 of canonical_json: the run's identity
};

/// The run spec in a TOML text.
///
/// `catalogue` holds the presets and the parts' parameters (strategies::spec_catalogue()). Values come from the file,
/// else from the preset it names, else from the field's default. INVALID_ARGUMENT with the line, the path, the value
/// and what is allowed: `run spec line 12: outer.momentum is 1.3, must be in [0, 1)`; an unknown key names the nearest
/// known one.
Result<RunSpec> parse_run_spec(std::string_view toml, const SpecCatalogue& catalogue);

/// The run spec in a resolved document, as a daemon receives it or a store keeps it. The parts' parameters are taken as
/// they are; everything else is checked as in a file, and nothing may be unknown. A field that is missing, because the
/// document was written before there was such a field, has its default; the identity is that of the document as it is.
/// INVALID_ARGUMENT naming the path; also where `json` is not its own canonical form or `spec_version` is not 1.
Result<RunSpec> parse_resolved_spec(std::string_view json);

}  // namespace skerry
