// How fast a link must be for a share of the time to be spent computing, and what a link that there is leaves of it.
//
// Between two exchanges a node computes for `compute_seconds`; then `bits` cross its link, while it goes on computing
// for `hidden_seconds` of them at most. So CU = compute / (compute + what the transfer takes beyond the hidden part),
// which solved for the bandwidth is Gbit/s = b·N/P ÷ [(H·t/P)(1/CU − 1) + ⅔t + τ].
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace skerry::strategies {

/// One exchange as a node's link sees it.
struct LinkLoad {
  double bits = 0;
  double compute_seconds = 0;  ///< from one exchange to the next, H·t/P
  double hidden_seconds = 0;   ///< of a transfer, beside which the node computes
  double fixed_seconds = 0;    ///< that each exchange takes whatever the bandwidth is: latency, the coordinator's work
};

/// Bits a second for a utilisation in (0, 1); infinite where no bandwidth is enough, because fixed_seconds alone take
/// more.
double needed_bandwidth(const LinkLoad& load, double utilisation);

/// The utilisation, in (0, 1], that this many bits a second give; `bandwidth` > 0.
double compute_utilisation(const LinkLoad& load, double bandwidth);

/// compute / (compute + exposed): the same where the time that is not hidden is known. INTELLECT-1's table is this.
double compute_utilisation(double compute_seconds, double exposed_seconds);

/// How often islands that exchange among themselves, without a coordinator, exchange what.
struct ExchangeMethod {
  std::string name;
  double bits_per_parameter = 16;
  std::uint64_t inner_steps = 1;  ///< H: from one exchange of a parameter to its next
  std::uint64_t fragments = 1;    ///< P
  double overlap_steps = 0;       ///< τ: inner steps between sending a fragment and needing it
};

/// The rows of Streaming DiLoCo's table 4: data-parallel, DiLoCo, streaming, with overlap of one step, and that with
/// 4-bit floats.
std::vector<ExchangeMethod> published_methods(std::uint64_t inner_steps, std::uint64_t fragments);

/// A method's load for `parameters` and a step of `step_seconds`: b·N/P bits, the two islands of the paper each sending
/// half of what they reduce and getting half; ⅔t hidden, the backward pass beside which what it has finished is
/// reduced, and τ steps. Source: arXiv 2501.18512 §3 and table 4, of whose 75 cells this meets 71 within 20 %
/// (tests/unit/strategies/bandwidth_test.cc).
LinkLoad published_load(const ExchangeMethod& method, double parameters, double step_seconds);

}  // namespace skerry::strategies
