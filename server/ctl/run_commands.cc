#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <set>

#include <unistd.h>

#include "common/os/files.h"
#include "server/ctl/commands.h"
#include "server/ctl/console.h"

namespace skerry::ctl {
namespace {

constexpr std::uint64_t kMaxSpecBytes = 256 * 1024;

void print(const google::protobuf::Message& message) { std::printf("%s", to_json(message).c_str()); }

std::string rounds_text(const v1::RunSummary& run) {
  return std::to_string(run.round()) + "/" + std::to_string(run.rounds());
}

std::map<std::string, double> metrics_of(const v1::RunDetail& detail) {
  std::map<std::string, double> metrics;
  for (const v1::Metric& metric : detail.latest()) metrics[metric.name()] = metric.value();
  return metrics;
}

std::string quality(const v1::RunDetail& detail) {
  const auto metrics = metrics_of(detail);
  std::string text;
  for (const char* name : {"loss", "perplexity", "accuracy", "train_loss"})
    if (const auto found = metrics.find(name); found != metrics.end())
      text += (text.empty() ? "" : "  ") + std::string(name) + " " + human_number(found->second);
  return text.empty() ? "no measurement yet" : text;
}

void print_summary(const v1::RunDetail& detail) {
  const v1::RunSummary& run = detail.summary();
  std::printf("%s  %s\n", run.run_id().c_str(), printable(run.name()).c_str());
  std::printf("  status     %s%s%s\n", run.status().c_str(), run.status_reason().empty() ? "" : ": ",
              printable(run.status_reason()).c_str());
  std::printf("  strategy   %s\n  rounds     %s\n", run.strategy().c_str(), rounds_text(run).c_str());
  std::printf("  created    %s UTC\n", human_time(run.created_ms()).c_str());
  if (run.ended_ms() != 0) std::printf("  ended      %s UTC\n", human_time(run.ended_ms()).c_str());
  std::printf("  quality    %s\n", quality(detail).c_str());
  std::printf("  traffic    %s up, %s down\n", human_bytes(detail.bytes_up()).c_str(),
              human_bytes(detail.bytes_down()).c_str());
  if (detail.seconds_left() > 0)
    std::printf("  time left  %s (%s a round)\n", human_seconds(detail.seconds_left()).c_str(),
                human_seconds(detail.seconds_per_round()).c_str());
  std::printf("  spec       %s\n\n", detail.spec_hash().c_str());
  Table fragments({"FRAGMENT", "VERSION", "EXCHANGE", "ACCEPTED", "QUORUM", "OUTSTANDING"});
  for (const v1::FragmentState& state : detail.fragments())
    fragments.add({state.fragment(), std::to_string(state.version()), std::to_string(state.exchange()),
                   std::to_string(state.accepted()), std::to_string(state.quorum()),
                   std::to_string(state.outstanding())});
  std::printf("%s\n", fragments.text().c_str());
  if (detail.exchanges_size() > 1) {
    Table open({"EXCHANGE", "FRAGMENTS", "STATE", "ACCEPTED", "OUTSTANDING"});
    for (const v1::OpenExchange& exchange : detail.exchanges()) {
      std::string names;
      for (const std::string& name : exchange.fragments()) names += (names.empty() ? "" : " ") + name;
      open.add({std::to_string(exchange.exchange()), names, exchange.state(), std::to_string(exchange.accepted()),
                std::to_string(exchange.outstanding())});
    }
    std::printf("%s\n", open.text().c_str());
  }
  Table nodes({"NODE", "STATE", "STEP", "LOSS", "EXAMPLES", "COUNTED", "DISCARDED", "DETAIL"});
  for (const v1::Participant& node : detail.participants())
    nodes.add({node.node(), node.state(),
               node.of() > 0 ? std::to_string(node.step()) + "/" + std::to_string(node.of()) : "-",
               node.of() > 0 ? human_number(node.loss()) : "-", std::to_string(node.examples()),
               std::to_string(node.counted()), std::to_string(node.discarded()), printable(node.detail())});
  std::printf("%s", nodes.text().c_str());
  for (const auto& [reason, number] : detail.discarded())
    std::printf("\ndiscarded %llu: %s\n", static_cast<unsigned long long>(number), printable(reason).c_str());
}

std::string watch_line(const v1::RunDetail& detail) {
  std::string training;
  for (const v1::Participant& node : detail.participants())
    if (node.state() == "training" || node.state() == "evaluating")
      training += (training.empty() ? "" : ", ") + node.node() +
                  (node.of() > 0 ? " " + std::to_string(node.step()) + "/" + std::to_string(node.of()) : "");
  const v1::RunSummary& run = detail.summary();
  return run.status() + "  round " + rounds_text(run) + "  " + quality(detail) + "  up " +
         human_bytes(detail.bytes_up()) + "  down " + human_bytes(detail.bytes_down()) + "  left " +
         human_seconds(detail.seconds_left()) + (training.empty() ? "" : "  [" + training + "]");
}

Result<void> watch(const Context& context, const std::string& run) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  std::string last;
  std::string status;
  SKERRY_TRY(connection.watch(run, [&](const v1::RunDetail& detail) {
    status = detail.summary().status();
    if (context.json) {
      std::string line = to_json(detail);
      std::printf("%s\n", nlohmann::json::parse(line).dump().c_str());
    } else {
      const std::string line = watch_line(detail);
      // Into a file or a pipe only what is new for a reader: rounds and states, not each step.
      const std::string essence = detail.summary().status() + rounds_text(detail.summary()) + quality(detail);
      if (terminal)
        std::printf("\r\033[K%s", line.c_str());
      else if (essence != last)
        std::printf("%s\n", line.c_str());
      last = essence;
    }
    std::fflush(stdout);
    return detail.summary().ended_ms() == 0;
  }));
  if (terminal && !context.json) std::printf("\n");
  if (status == "failed") return Error{Code::kAborted, "the run failed; `skerry run show " + run + "` says why"};
  return {};
}

/// The section of a run spec that says "RUN@ROUND": RUN may be a name, ROUND is a whole number.
Result<std::string> start_section(Connection& connection, const std::string& resume) {
  const std::size_t at = resume.rfind('@');
  const std::string round = at == std::string::npos ? "" : resume.substr(at + 1);
  if (round.empty() || round.find_first_not_of("0123456789") != std::string::npos)
    return invalid_argument("--resume is '" + resume + "', must be RUN@ROUND, for example letters@12");
  SKERRY_ASSIGN(const v1::RunDetail detail, connection.get_run(resume.substr(0, at)));
  return "\n[start]\nrun = \"" + detail.summary().run_id() + "\"\nround = " + round + "\n";
}

Result<void> submit(const Context& context, const std::string& path, const std::string& resume, bool dry_run,
                    bool then_watch) {
  SKERRY_ASSIGN(std::string spec, read_file(path, kMaxSpecBytes));
  SKERRY_ASSIGN(Connection connection, context.connect());
  if (!resume.empty()) {
    SKERRY_ASSIGN(const std::string start, start_section(connection, resume));
    spec += start;
  }
  SKERRY_ASSIGN(spec, upload_named_files(connection, std::move(spec), parent_directory(path)));
  v1::SubmitRunRequest request;
  request.set_spec_toml(std::move(spec));
  request.set_dry_run(dry_run);
  SKERRY_ASSIGN(const v1::SubmitRunReply reply, connection.submit(request));
  if (context.json) {
    print(reply);
  } else {
    std::printf("%s\n", dry_run ? "The run spec is good. Nothing was started." : ("run " + reply.run_id()).c_str());
    std::printf("  parameters  %llu\n  spec        %s\n", static_cast<unsigned long long>(reply.parameters()),
                reply.spec_hash().c_str());
    for (const std::string& warning : reply.warnings()) std::printf("  note        %s\n", printable(warning).c_str());
    if (dry_run) {
      Table nodes({"NODE", "TAKES PART", "WHY"});
      for (const v1::NodeVerdict& verdict : reply.nodes())
        nodes.add({verdict.node(), verdict.takes_part() ? "yes" : "no", printable(verdict.reason())});
      std::printf("\n%s", nodes.text().c_str());
    }
  }
  std::fflush(stdout);
  return then_watch && !dry_run ? watch(context, reply.run_id()) : Result<void>();
}

Result<void> list(const Context& context) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_ASSIGN(const v1::ListRunsReply reply, connection.list_runs());
  if (context.json) {
    print(reply);
    return {};
  }
  Table runs({"RUN", "NAME", "STRATEGY", "STATUS", "ROUND", "CREATED (UTC)", "WHY"});
  for (const v1::RunSummary& run : reply.runs())
    runs.add({run.run_id(), printable(run.name()), run.strategy(), run.status(), rounds_text(run),
              human_time(run.created_ms()), printable(run.status_reason())});
  std::printf("%s", runs.text().c_str());
  return {};
}

Result<void> change(const Context& context, const std::string& run, v1::ChangeRunRequest::Action action,
                    const std::string& reason) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  v1::ChangeRunRequest request;
  request.set_run_id(run);
  request.set_action(action);
  request.set_reason(reason);
  SKERRY_ASSIGN(const v1::RunDetail detail, connection.change_run(request));
  if (context.json)
    print(detail);
  else
    std::printf("%s is %s\n", detail.summary().run_id().c_str(), detail.summary().status().c_str());
  return {};
}

std::string csv_number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return std::isfinite(value) ? text : "";
}

Result<void> metrics(const Context& context, const std::string& run, bool csv) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_ASSIGN(const v1::RunMetrics reply, connection.run_metrics(run));
  if (context.json) {
    print(reply);
    return {};
  }
  std::set<std::string> names;
  for (const v1::MetricRow& row : reply.rows())
    for (const v1::Metric& metric : row.metrics()) names.insert(metric.name());
  std::vector<std::string> headings = {"kind", "exchange", "version", "fragment", "node", "time_ms", "updates"};
  headings.insert(headings.end(), names.begin(), names.end());
  std::vector<std::vector<std::string>> rows;
  for (const v1::MetricRow& row : reply.rows()) {
    std::vector<std::string> cells = {
        row.kind(), std::to_string(row.exchange()), std::to_string(row.version()), row.fragment(),
        row.node(), std::to_string(row.time_ms()),  std::to_string(row.updates())};
    for (const std::string& name : names) {
      std::string cell = csv ? "" : "-";
      for (const v1::Metric& metric : row.metrics())
        if (metric.name() == name) cell = csv ? csv_number(metric.value()) : human_number(metric.value());
      cells.push_back(cell);
    }
    rows.push_back(std::move(cells));
  }
  if (!csv) {
    Table table(headings);
    for (auto& row : rows) table.add(std::move(row));
    std::printf("%s", table.text().c_str());
    return {};
  }
  rows.insert(rows.begin(), headings);
  for (const auto& row : rows) {
    std::string line;
    for (const std::string& cell : row) line += (&cell == &row.front() ? "" : ",") + cell;
    std::printf("%s\n", line.c_str());
  }
  return {};
}

}  // namespace

void add_run_commands(CLI::App& app, Context& context) {
  CLI::App* run = app.add_subcommand("run", "Training jobs")->require_subcommand(1);
  // Options live as long as the program: each command's arguments are shared with its callback.
  struct Arguments {
    std::string run, file, reason, resume;
    bool dry_run = false, watch = false, csv = false;
  };
  auto arguments = std::make_shared<Arguments>();
  const auto named = [arguments](CLI::App* command) {
    command->add_option("RUN", arguments->run, "Its id, the beginning of its id, or its name")->required();
    return command;
  };

  CLI::App* submit_command = run->add_subcommand("submit", "Start a run from a spec (docs/run-spec.md)");
  submit_command->add_option("SPEC", arguments->file, "The run spec, a TOML file")->required();
  submit_command->add_flag("--dry-run", arguments->dry_run,
                           "Only check: who would take part, and why others would not");
  submit_command->add_flag("--watch", arguments->watch, "Then watch it");
  submit_command->add_option("--resume", arguments->resume,
                             "RUN@ROUND: continue that run after so many rounds, with its model and outer optimizer");
  submit_command->callback([&context, arguments] {
    context.chosen = [&context, arguments] {
      return submit(context, arguments->file, arguments->resume, arguments->dry_run, arguments->watch);
    };
  });
  run->add_subcommand("list", "All runs")->callback([&context] {
    context.chosen = [&context] { return list(context); };
  });
  named(run->add_subcommand("show", "One run: fragments, nodes, quality, traffic"))->callback([&context, arguments] {
    context.chosen = [&context, arguments]() -> Result<void> {
      SKERRY_ASSIGN(Connection connection, context.connect());
      SKERRY_ASSIGN(const v1::RunDetail detail, connection.get_run(arguments->run));
      if (context.json)
        print(detail);
      else
        print_summary(detail);
      return {};
    };
  });
  named(run->add_subcommand("watch", "Follow a run until it ends"))->callback([&context, arguments] {
    context.chosen = [&context, arguments] { return watch(context, arguments->run); };
  });
  const struct {
    const char* name;
    const char* help;
    v1::ChangeRunRequest::Action action;
  } changes[] = {{"stop", "End a run for good; the last released model stays", v1::ChangeRunRequest::STOP},
                 {"pause", "Give out no new work; what is under way is accepted", v1::ChangeRunRequest::PAUSE},
                 {"resume", "Go on after a pause", v1::ChangeRunRequest::RESUME}};
  for (const auto& one : changes) {
    CLI::App* command = named(run->add_subcommand(one.name, one.help));
    command->add_option("--reason", arguments->reason, "For the audit log and the run's status");
    command->callback([&context, arguments, action = one.action] {
      context.chosen = [&context, arguments, action] {
        return change(context, arguments->run, action, arguments->reason);
      };
    });
  }
  CLI::App* metrics_command = named(run->add_subcommand("metrics", "Every exchange's and evaluation's figures"));
  metrics_command->add_flag("--csv", arguments->csv, "Comma-separated, all digits");
  metrics_command->callback([&context, arguments] {
    context.chosen = [&context, arguments] { return metrics(context, arguments->run, arguments->csv); };
  });
}

}  // namespace skerry::ctl
