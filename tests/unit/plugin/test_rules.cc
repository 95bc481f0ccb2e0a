// A plug-in with good rules, and one that goes wrong as its parameters say.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "strategies/sdk/plugin.hpp"

using namespace skerry;
using namespace skerry::strategies;

namespace {

Result<Rule> midrange(const Part& part) {
  const double pull = number(part, "pull");
  Rule rule;
  rule.name = "midrange";
  rule.needs.individual_updates = true;
  rule.next = [pull](const Cohort&, std::span<const Table>) -> Result<Pass> {
    return Pass(ValueOutput{[pull](const Block& block, std::span<float> out, std::span<float* const>) {
      for (std::size_t i = 0; i < out.size(); ++i) {
        const auto [low, high] = std::minmax_element(block.updates.begin(), block.updates.end(),
                                                     [i](const float* a, const float* b) { return a[i] < b[i]; });
        out[i] = static_cast<float>((double{(*low)[i]} + (*high)[i]) / 2 * (1 - pull) + double{block.base[i]} * pull);
      }
    }});
  };
  return rule;
}

// The mean of the updates that are no longer than twice the shortest: statistics, then linear.
Result<Rule> short_mean(const Part&) {
  Rule rule;
  rule.name = "short_mean";
  rule.needs.individual_updates = true;
  rule.needs.minimum_updates = 2;
  rule.next = [](const Cohort& cohort, std::span<const Table> tables) -> Result<Pass> {
    if (tables.empty())
      return Pass(StatisticsPass{1, cohort.size(), [](const Block& block, Table& sum) {
                              for (std::size_t k = 0; k < block.updates.size(); ++k)
                                for (std::size_t i = 0; i < block.count; ++i) sum.at(0, k) += double{block.updates[k][i]} * block.updates[k][i];
                            }});
    std::vector<double> weights(cohort.size());
    const double shortest = *std::min_element(tables[0].values.begin(), tables[0].values.end());
    double total = 0;
    for (std::size_t k = 0; k < weights.size(); ++k) total += weights[k] = tables[0].at(0, k) <= 4 * shortest ? 1 : 0;
    for (double& weight : weights) weight /= total;
    return Pass(LinearOutput{weights});
  };
  return rule;
}

// Keeps the largest absolute value ever seen of each element, and says it.
Result<Rule> high_water(const Part&) {
  Rule rule;
  rule.name = "high_water";
  rule.state_vectors = {"mark"};
  rule.next = [](const Cohort&, std::span<const Table>) -> Result<Pass> {
    return Pass(ValueOutput{[](const Block& block, std::span<float> out, std::span<float* const> state) {
      for (std::size_t i = 0; i < out.size(); ++i) {
        float mark = block.state[0][i];
        for (const float* update : block.updates) mark = std::max(mark, std::fabs(update[i]));
        out[i] = state[0][i] = mark;
      }
    }});
  };
  return rule;
}

void go_wrong(const std::string& how) {
  if (how == "throw") throw std::runtime_error("the weather is bad");
  if (how == "throw_int") throw 7;
  if (how == "segfault") std::raise(SIGSEGV);
  if (how == "abort") std::abort();
  if (how == "exit") std::_Exit(0);
  if (how == "hang") {
    for (;;) {
      const timespec second{1, 0};
      nanosleep(&second, nullptr);
    }
  }
  if (how == "eat_memory") {
    for (std::vector<std::vector<char>> eaten;;) eaten.emplace_back(std::size_t{64} << 20, 'x');
  }
  if (how == "start_thread") std::thread([] {}).join();
  if (how == "open_socket" && ::socket(AF_INET, SOCK_STREAM, 0) < 0) throw std::runtime_error("no socket");
  if (how == "write_file" && ::open("/tmp/skerry-plugin-was-here", O_WRONLY | O_CREAT, 0600) < 0) throw std::runtime_error("no file");
  if (how == "run_program" && ::fork() < 0) throw std::runtime_error("no process");
  if (how == "kill_parent" && ::kill(::getppid(), SIGTERM) < 0) throw std::runtime_error("no signal");
  if (how == "close_sockets") {
    for (int fd = 0; fd < 32; ++fd) ::close(fd);
  }
}

Result<Rule> faulty(const Part& part) {
  const std::string how = text(part, "how");
  const std::string where = text(part, "where");
  if (where == "make") {
    go_wrong(how);
    if (how == "refuse") return invalid_argument("such a rule cannot be made");
  }
  Rule rule;
  rule.name = "faulty";
  if (where == "make" && how == "wrong_needs") rule.needs.metrics = {""};
  rule.next = [how, where](const Cohort& cohort, std::span<const Table>) -> Result<Pass> {
    if (where == "next") {
      go_wrong(how);
      if (how == "refuse") return invalid_argument("such a cohort cannot be aggregated");
      if (how == "nan") return Pass(LinearOutput{std::vector<double>(cohort.size(), std::nan(""))});
      if (how == "too_few") return Pass(LinearOutput{{1.0}});
      if (how == "giant") return Pass(StatisticsPass{std::size_t{1} << 30, std::size_t{1} << 30, nullptr});
      if (how == "endless") return Pass(StatisticsPass{1, 1, [](const Block&, Table&) {}});
      if (how == "verbose") return Pass(LinearOutput{std::vector<double>(std::size_t{1} << 23)});
    }
    if (where == "add")
      return Pass(StatisticsPass{1, 1, [how](const Block&, Table& sum) {
                              go_wrong(how);
                              if (how == "nan") sum.at(0, 0) = std::nan("");
                              if (how == "too_few") sum.values.clear();
                            }});
    return Pass(ValueOutput{[how](const Block&, std::span<float> out, std::span<float* const>) {
      go_wrong(how);
      std::fill(out.begin(), out.end(), how == "nan" ? std::numeric_limits<float>::quiet_NaN() : 1.0f);
    }});
  };
  return rule;
}

}  // namespace

SKERRY_PLUGIN("test-rules", "1.2.3",
              {{{"midrange", "half way between the lowest and the highest value",
                 {{.name = "pull", .meaning = "towards the present value", .fallback = 0.0, .minimum = 0, .maximum = 1}}},
                midrange},
               {{"short_mean", "mean of the updates that are not much longer than the shortest", {}}, short_mean},
               {{"high_water", "largest value so far", {}}, high_water},
               {{"faulty", "goes wrong",
                 {{.name = "how", .meaning = "in which way", .fallback = std::string("not")},
                  {.name = "where", .meaning = "in which function", .fallback = std::string("reduce"),
                   .choices = {"make", "next", "add", "reduce"}}}},
                faulty}})
