#include "server/store/store.h"

namespace skerry::server {

std::string kind_of_reason(std::string_view reason) {
  std::string kind;
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  for (std::size_t i = 0; i < reason.size(); ++i) {
    const char c = reason[i];
    const bool word = i > 0 && ((reason[i - 1] >= 'a' && reason[i - 1] <= 'z') || (reason[i - 1] >= 'A' && reason[i - 1] <= 'Z'));
    if (c == '\'' && !word) {  // not an apostrophe
      const std::size_t end = reason.find('\'', i + 1);
      kind += "'…'";
      if (end == std::string_view::npos) break;
      i = end;
    } else if (digit(c)) {
      while (i + 1 < reason.size() && (digit(reason[i + 1]) || (reason[i + 1] == '.' && i + 2 < reason.size() && digit(reason[i + 2])))) ++i;
      kind += '#';
    } else {
      kind += c;
    }
  }
  return kind;
}

void Batch::put_run(RunRecord run) { operations_.emplace_back(std::move(run)); }

void Batch::set_run_status(std::string run_id, std::string status, std::string reason, std::int64_t ended_ms) {
  operations_.emplace_back(SetStatus{std::move(run_id), std::move(status), std::move(reason), ended_ms});
}

void Batch::add_traffic(std::string run_id, std::string node, std::uint64_t bytes_up, std::uint64_t bytes_down) {
  operations_.emplace_back(TrafficRecord{std::move(run_id), std::move(node), bytes_up, bytes_down});
}

void Batch::machine_rows(std::string run_id, std::map<std::string, std::string> rows) {
  if (!rows.empty()) operations_.emplace_back(MachineRows{std::move(run_id), std::move(rows)});
}

void Batch::accept(UpdateRecord update, std::int64_t now_ms) {
  operations_.emplace_back(Accept{std::move(update), now_ms});
}

void Batch::count(std::string task_id, std::string run_id, std::string node, std::uint64_t exchange,
                  std::uint64_t version, std::int64_t now_ms) {
  operations_.emplace_back(Decide{
      std::move(task_id), std::move(run_id), std::move(node), UpdateState::kCounted, exchange, version, {}, now_ms});
}

void Batch::discard(std::string task_id, std::string run_id, std::string node, std::uint64_t exchange,
                    std::string reason, std::int64_t now_ms) {
  operations_.emplace_back(Decide{std::move(task_id), std::move(run_id), std::move(node), UpdateState::kDiscarded,
                                  exchange, 0, std::move(reason), now_ms});
}

void Batch::release(VersionRecord version) { operations_.emplace_back(std::move(version)); }

void Batch::keep_version(std::string run_id, std::string fragment, std::uint64_t version, bool kept) {
  operations_.emplace_back(Keep{std::move(run_id), std::move(fragment), version, kept});
}

void Batch::prune_versions(std::string run_id, std::string fragment, std::uint64_t latest,
                           std::vector<std::uint64_t> needed) {
  operations_.emplace_back(Prune{std::move(run_id), std::move(fragment), latest, std::move(needed)});
}

void Batch::add_metric(MetricRecord metric) { operations_.emplace_back(std::move(metric)); }

void Batch::audit(AuditRecord entry) { operations_.emplace_back(std::move(entry)); }

}  // namespace skerry::server
