// What crosses the line between a holder and the coordinator, and how much of the time computing is left beside it.
#include <cmath>
#include <cstdio>
#include <sstream>

#include <nlohmann/json.hpp>

#include "common/os/files.h"
#include "tests/bench/figures/benchmarks.h"
#include "tests/bench/parts/link.h"

namespace skerry::bench {
namespace {

using nlohmann::json;

constexpr unsigned kNodes = 2;
constexpr double kMega = 1e6;

/// A federation of two holders with a paced trainer, each behind a line of its own.
struct Lines {
  std::unique_ptr<World> world;
  std::vector<std::unique_ptr<Link>> links;

  static Result<Lines> make(const BenchmarkContext& context) {
    const WorldOptions& outer = context.world.options();
    if (context.source.empty()) return invalid_argument("--source is needed: the paced trainer is a script of the repository");
    Lines lines;
    SKERRY_ASSIGN(lines.world, World::create({outer.programs, context.source + "/tests/bench/paced_trainer.py", outer.directory + "/lines"}));
    SKERRY_TRY(lines.world->start_coordinator());
    SKERRY_TRY(lines.world->make_holders(kNodes));
    for (unsigned i = 0; i < kNodes; ++i) {
      SKERRY_ASSIGN(auto link, Link::open(lines.world->coordinator_port(), {}));
      SKERRY_TRY(lines.world->route_holder(i, link->port()));
      lines.links.push_back(std::move(link));
      SKERRY_TRY(lines.world->start_daemon(i));
    }
    return lines;
  }

  Lines() = default;
  Lines(Lines&&) = default;
  Lines& operator=(Lines&&) = default;
  ~Lines() {
    if (!world) return;
    world->stop_daemons();
    world->stop_coordinator();
    (void)remove_tree(world->options().directory);  // the next figure begins with an empty one
  }

  std::string log_of(unsigned node) const { return world->holder_home(node) + "/paced.log"; }

  /// Runs to its end, a step taking `step_ms`.
  Result<void> run(const std::string& spec, double step_ms) {
    for (unsigned i = 0; i < kNodes; ++i) {
      SKERRY_TRY(remove_file(log_of(i)));
      SKERRY_TRY(write_file_atomic(world->holder_home(i) + "/pace", std::to_string(step_ms)));
    }
    SKERRY_ASSIGN(Operator submitter, world->open_operator());
    SKERRY_ASSIGN(const std::string run, submitter.submit(spec));
    SKERRY_ASSIGN(const RunState end, submitter.wait(run, 300'000));
    if (end.status != "completed") return failed_precondition("the run ended as " + end.status + ": " + end.reason);
    if (end.discarded != 0) return failed_precondition(std::to_string(end.discarded) + " updates were discarded");
    return {};
  }
};

struct Shape {
  std::string name;
  std::string hidden;      ///< of the perceptron
  unsigned steps = 1;      ///< a task
  unsigned rounds = 1;
  std::string exchange;    ///< lines of the section
};

/// 1,000,010 and 1,064,260 parameters.
constexpr const char* kOneLayer = "[9091]";
constexpr const char* kSixLayers = "[450, 450, 450, 450, 450, 450]";

double parameters_of(const std::string& hidden) { return hidden == kOneLayer ? 99.0 * 9091 + 9091 + 9091 * 10 + 10 : 99.0 * 450 + 5 * 450.0 * 450 + 6 * 450 + 4510; }

std::string spec_of(const Shape& shape) {
  std::string features;
  for (int i = 0; i < 99; ++i) features += (i == 0 ? "\"x" : ", \"x") + std::to_string(i) + "\"";
  const std::string nodes = std::to_string(kNodes);
  return "name = \"" + shape.name + "\"\npurpose = \"benchmark\"\nstrategy = \"diloco\"\n[model]\narchitecture = \"mlp\"\ninputs = 99\noutputs = 10\nhidden = " +
         shape.hidden + "\n[data]\nkind = \"csv\"\nschema = { features = [" + features +
         "], label = \"y\", classes = 10 }\n[training]\noptimizer = \"sgd\"\nlearning_rate = 0.01\nbatch = 8\nsteps = " + std::to_string(shape.steps) +
         "\n[exchange]\n" + shape.exchange + "[participation]\nquorum = " + nodes + "\nstart_nodes = " + nodes +
         "\n[evaluation]\nevery = 0\n[stop]\nrounds = " + std::to_string(shape.rounds) + "\n";
}

/// Seconds in steps over seconds that passed, over all nodes, from the third task's begin to the last one's.
struct Measured {
  double utilisation = 0;
  double task_seconds = 0;  ///< in steps, a task
  double waited = 0;        ///< inside a task, for merges
  double between = 0;       ///< from a task's end to the next one's begin
};

Result<Measured> measured_by(const Lines& lines) {
  double busy = 0, inside = 0, passed = 0, tasks = 0;
  for (unsigned node = 0; node < kNodes; ++node) {
    SKERRY_ASSIGN(const std::string text, read_file(lines.log_of(node), 1u << 20));
    std::istringstream rows(text);
    std::vector<json> log;
    for (std::string row; std::getline(rows, row);) log.push_back(json::parse(row));
    if (log.size() < 5) return internal_error("only " + std::to_string(log.size()) + " tasks were logged");
    for (std::size_t i = 2; i + 1 < log.size(); ++i, tasks += 1) {
      busy += log[i]["busy"].get<double>();
      inside += log[i]["end"].get<double>() - log[i]["begin"].get<double>();
    }
    passed += log.back()["begin"].get<double>() - log[2]["begin"].get<double>();
  }
  return Measured{busy / passed, busy / tasks, (inside - busy) / tasks, (passed - inside) / tasks};
}

struct Setting {
  std::string name;
  Shape shape;
  double step_ms = 0;
  LineRate line;
  double bytes = 0;   ///< of one exchange, each way
  bool overlapped = false;
};

/// The share of a task that its exchange leaves where nothing overlaps: T_c / (T_c + T_comm).
double formula(const Setting& setting, double task_seconds) {
  const double comm = setting.bytes / setting.line.up + setting.bytes / setting.line.down + 2 * setting.line.delay_ms / 1000;
  return task_seconds / (task_seconds + comm);
}

Result<Figure> utilisation_of(Lines& lines, const Setting& setting) {
  for (const auto& link : lines.links) link->set_rate(setting.line);
  const auto ran = lines.run(spec_of(setting.shape), setting.step_ms);
  for (const auto& link : lines.links) link->set_rate({});
  SKERRY_TRY(ran);
  SKERRY_ASSIGN(const Measured measured, measured_by(lines));
  const double percent = 100 * measured.utilisation;
  const double expected = 100 * formula(setting, measured.task_seconds);
  Figure figure{"utilisation." + setting.name, percent, "%", expected, "T_c/(T_c + T_comm) of the same bytes one after another", "", false};
  figure.target = setting.overlapped ? "≥ 98" : "baseline ± 3";
  figure.met = setting.overlapped ? percent >= 98 : std::abs(percent - expected) <= 3;
  figure.detail = {{"line_mb_s", setting.line.up / kMega}, {"delay_ms", setting.line.delay_ms}, {"bytes_each_way", setting.bytes},
                   {"task_seconds", measured.task_seconds}, {"waited_in_task", measured.waited}, {"between_tasks", measured.between}};
  if (setting.overlapped) {
    const double transfer = setting.bytes / setting.line.up + setting.bytes / setting.line.down;
    figure.detail["line_needed"] = transfer / measured.task_seconds;  // of the time that the overlap gives
  }
  return figure;
}

}  // namespace

Figures utilisation(BenchmarkContext& context) {
  std::vector<Figure> figures;
  const double delay_ms = 10;
  // The emulated line itself.
  for (const double rate : {1.0, 8.0, 32.0}) {
    SKERRY_ASSIGN(const LineAccuracy line, measure_line({rate * kMega, rate * kMega, delay_ms}, 1.0));
    char name[48];
    std::snprintf(name, sizeof name, "line.%.0f", rate);
    const double worst = std::abs(line.up / kMega - rate) > std::abs(line.down / kMega - rate) ? line.up / kMega : line.down / kMega;
    Figure figure{name, worst, "MB/s", rate, "the rate it is set to", "baseline ± 2 %", std::abs(worst / rate - 1) <= 0.02};
    figure.detail = {{"up", line.up / kMega}, {"down", line.down / kMega}, {"rtt_ms", line.rtt_ms}, {"delay_ms", delay_ms}};
    figures.push_back(figure);
  }
  SKERRY_ASSIGN(Lines lines, Lines::make(context));
  for (const double rate : {2.0, 8.0, 32.0}) {
    char name[48];
    std::snprintf(name, sizeof name, "diloco.%.0fMBs", rate);
    const Setting setting{name, {name, kOneLayer, 100, 7, "up = \"f32\"\ndown = \"f32\"\n"}, 20, {rate * kMega, rate * kMega, delay_ms},
                          4 * parameters_of(kOneLayer), false};
    SKERRY_ASSIGN(const Figure figure, utilisation_of(lines, setting));
    figures.push_back(figure);
  }
  // Each task sends one fragment of five and merges it at the end of the next task: the largest of them, 0.25 million
  // parameters, needs 60 % of that time for its way up and down.
  const double largest = 0.5 * (99 * 450 + 450 + 450 * 450 + 450);
  const double seconds = 100 * 0.02;
  const double rate = 2 * largest / (0.6 * seconds);
  const Setting streaming{"streaming",
                          {"streaming", kSixLayers, 100, 4,
                           "up = \"e3m0\"\ndown = \"e3m0\"\nfragments = 5\npattern = \"sequential\"\nschedule = \"staggered\"\n"
                           "overlap = 100\nmerge = \"lerp\"\nalpha = 0.5\n"},
                          20, {rate, rate, delay_ms}, largest, true};
  SKERRY_ASSIGN(const Figure figure, utilisation_of(lines, streaming));
  figures.push_back(figure);
  return figures;
}

Figures wire_bytes(BenchmarkContext& context) {
  struct Row {
    const char* encoding;
    double target;  ///< bytes a parameter, TLS and all
  };
  constexpr unsigned kFew = 3, kMany = 9;
  const double parameters = parameters_of(kOneLayer);
  SKERRY_ASSIGN(Lines lines, Lines::make(context));
  std::vector<Figure> figures;
  for (const Row& row : {Row{"f32", 4.001}, Row{"int8", 1.02}, Row{"e3m0", 0.52}, Row{"topk2", 0.03}}) {
    double up[2] = {}, down[2] = {};
    const unsigned rounds[2] = {kFew, kMany};
    for (int i = 0; i < 2; ++i) {
      const auto sum = [&](auto bytes) {
        double all = 0;
        for (const auto& link : lines.links) all += static_cast<double>(bytes(*link));
        return all;
      };
      const auto bytes_up = [](const Link& link) { return link.bytes_up(); };
      const auto bytes_down = [](const Link& link) { return link.bytes_down(); };
      const double up_before = sum(bytes_up), down_before = sum(bytes_down);
      const std::string encoding = row.encoding;
      SKERRY_TRY(lines.run(spec_of({"wire-" + encoding, kOneLayer, 1, rounds[i], "up = \"" + encoding + "\"\ndown = \"" + encoding + "\"\n"}), 1));
      up[i] = sum(bytes_up) - up_before;
      down[i] = sum(bytes_down) - down_before;
    }
    // What happens once in a run (the joiners' whole model) is in both, so the difference is that of rounds alone.
    const double per = kNodes * parameters * (kMany - kFew);
    const auto add = [&](const char* way, const double (&bytes)[2]) {
      const double value = (bytes[1] - bytes[0]) / per;
      char target[32];
      std::snprintf(target, sizeof target, "≤ %.3f + messages", row.target);
      Figure figure{std::string("wire.") + row.encoding + "." + way, value, "B/param", row.target, "the encoding with its framing; TLS adds 0.13 %, messages at most 3 kB a round", target, value <= row.target * 1.0015 + 0.003};
      figure.detail = {{"once_a_run", (bytes[0] - kFew * value * kNodes * parameters) / (kNodes * parameters)}};
      figures.push_back(figure);
    };
    add("up", up);
    add("down", down);
  }
  return figures;
}

}  // namespace skerry::bench
