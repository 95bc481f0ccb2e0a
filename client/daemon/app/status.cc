#include "client/daemon/app/status.h"

#include <cstdio>

#include <nlohmann/json.hpp>

namespace skerry::client {

using nlohmann::json;

json status_json(const MachineStatus& status) {
  json runs = json::array();
  for (const auto& run : status.runs) {
    json tasks = json::array();
    for (const auto& task : run.tasks)
      tasks.push_back({{"task", task.task_id},
                       {"kind", task.kind == v1::TASK_EVALUATE ? "evaluate" : "train"},
                       {"phase", task.phase},
                       {"round", task.round},
                       {"step", task.step},
                       {"of", task.of},
                       {"loss", task.loss}});
    runs.push_back({{"run", run.run_id},       {"name", run.name},       {"answer", run.answer},   {"data_set", run.data_set},
                    {"reasons", run.reasons},  {"trainer", run.trainer}, {"tasks", std::move(tasks)}, {"counted", run.counted},
                    {"discarded", run.discarded}});
  }
  json outbox = json::array();
  for (const auto& entry : status.outbox) outbox.push_back({{"task", entry.task_id}, {"run", entry.run_id}, {"phase", entry.phase}});
  return {{"running", true},
          {"session", status.session},
          {"detail", status.detail},
          {"incarnation", status.incarnation},
          {"coordinator", status.coordinator},
          {"paused", status.paused},
          {"unavailable", status.unavailable},
          {"runs", std::move(runs)},
          {"outbox", std::move(outbox)}};
}

std::string status_text(const json& status) {
  std::string out;
  const auto line = [&out](const char* name, const std::string& value) {
    if (!value.empty()) out += std::string(name) + std::string(14 - std::string(name).size(), ' ') + value + "\n";
  };
  const auto text = [&status](const char* name) { return status.value(name, ""); };
  line("node", text("node") + (text("federation").empty() ? "" : " of federation " + text("federation")));
  line("coordinator", text("coordinator_address"));
  line("daemon", status.value("running", false) ? "running, process " + std::to_string(status.value("pid", 0)) : "not running");
  line("session", text("session") + (text("detail").empty() ? "" : ": " + text("detail")));
  if (status.value("paused", false)) line("paused", "yes; `skerry-client resume` goes on");
  line("no work now", text("unavailable"));
  line("certificate", text("certificate_expires").empty() ? "" : "ends " + text("certificate_expires"));
  line("policy", text("policy"));
  for (const auto& run : status.value("runs", json::array())) {
    out += "run " + run.value("run", "") + " \"" + run.value("name", "") + "\": " + run.value("answer", "");
    if (!run.value("data_set", "").empty()) out += " with data set " + run.value("data_set", "");
    if (run.contains("trainer")) out += ", trainer " + run.value("trainer", "");
    if (run.contains("counted")) out += ", " + std::to_string(run.value("counted", 0)) + " updates counted";
    if (run.value("discarded", 0) > 0) out += ", " + std::to_string(run.value("discarded", 0)) + " discarded";
    out += "\n";
    for (const auto& reason : run.value("reasons", json::array())) out += "    refused: " + reason.get<std::string>() + "\n";
    for (const auto& task : run.value("tasks", json::array())) {
      out += "    " + task.value("kind", "") + " round " + std::to_string(task.value("round", 0)) + ": " + task.value("phase", "");
      if (task.value("of", 0) > 0) {
        char progress[96];
        std::snprintf(progress, sizeof progress, ", step %d of %d, loss %.4g", task.value("step", 0), task.value("of", 0), task.value("loss", 0.0));
        out += progress;
      }
      out += "\n";
    }
  }
  const auto outbox = status.value("outbox", json::array());
  if (!outbox.empty()) out += "outbox: " + std::to_string(outbox.size()) + " updates whose fate is not known yet\n";
  for (const auto& entry : outbox) out += "    " + entry.value("task", "") + " " + entry.value("phase", "") + "\n";
  return out;
}

}  // namespace skerry::client
