#include "server/coordinator/run_host.h"

#include <algorithm>
#include <utility>

namespace skerry::server {
namespace {

constexpr std::uint64_t kVersionsRemembered = 4;   // of each fragment, in memory
constexpr std::uint64_t kVersionsStored = 2;       // the newest of each fragment; older ones go unless kept or needed
constexpr std::uint64_t kTrafficStoreMs = 10'000;  // how often byte counts become durable

std::map<std::string, double> as_map(const std::vector<MetricValue>& metrics) {
  std::map<std::string, double> values;
  for (const MetricValue& metric : metrics) values[metric.name] = metric.value;
  return values;
}

}  // namespace

RunHost::RunHost(RunServices& services, RunRecord record, RunPlan plan, RunMachine machine)
    : services_(services), record_(std::move(record)), plan_(std::move(plan)), machine_(std::move(machine)),
      figures_(figures_of(record_.run_id, services.metrics)) {
  versions_.resize(plan_.shapes.size());
  traffic_stored_ms_ = services_.clock.monotonic_ms();
}

RunHost::Figures RunHost::figures_of(const std::string& run_id, Metrics& metrics) {
  const Labels run = {{"run", run_id}};
  return {metrics.counter("skerry_updates_accepted_total", "Updates accepted into an exchange", run),
          metrics.counter("skerry_updates_discarded_total", "Updates discarded", run),
          metrics.counter("skerry_updates_counted_total", "Updates counted", run),
          metrics.counter("skerry_exchanges_total", "Exchanges committed", run),
          metrics.counter("skerry_exchanges_void_total", "Exchanges closed with the model unchanged", run),
          metrics.histogram("skerry_reduce_seconds", "Time of one fragment's reduction", duration_bounds(), run)};
}

static RunSetup setup_of(const RunRecord& record, const RunPlan& plan, const std::string& epoch) {
  // After a restored backup serial numbers may have gone back, so each epoch names its tasks anew.
  RunSetup setup{.run_id = record.run_id, .task_prefix = record.run_id + "." + epoch, .spec = plan.spec, .fragments = {}};
  for (const FragmentShape& shape : plan.shapes) {
    setup.fragments.push_back(shape.name);
    setup.roles.push_back(shape.role);
  }
  setup.needs = plan.rule.needs;
  return setup;
}

std::unique_ptr<RunHost> RunHost::create(RunServices& services, RunRecord record, RunPlan plan,
                                         std::vector<VersionRecord> initial) {
  RunSetup setup = setup_of(record, plan, services.store.epoch());
  if (!plan.spec.start.run.empty())
    for (const VersionRecord& version : initial) setup.start_versions.push_back(version.version);
  RunMachine machine(std::move(setup));
  std::unique_ptr<RunHost> host(new RunHost(services, std::move(record), std::move(plan), std::move(machine)));
  Batch& batch = services.commit.batch();
  host->record_.status = host->machine_.view().status;
  batch.put_run(host->record_);
  for (VersionRecord& version : initial) {
    version.run_id = host->record_.run_id;
    version.time_ms = host->record_.created_ms;
    batch.release(version);
    host->remember(std::move(version));
  }
  return host;
}

Result<std::unique_ptr<RunHost>> RunHost::restore(RunServices& services, RunRecord record) {
  SKERRY_ASSIGN(RunSpec spec, parse_resolved_spec(record.spec_json));
  SKERRY_ASSIGN(RunPlan plan, RunPlan::from_spec(std::move(spec), services.rules));
  SKERRY_ASSIGN(const MachineRows rows, services.store.machine_rows(record.run_id));
  SKERRY_ASSIGN(RunMachine machine, RunMachine::restore(setup_of(record, plan, services.store.epoch()), rows,
                                                        static_cast<Instant>(services.clock.monotonic_ms())));
  std::unique_ptr<RunHost> host(new RunHost(services, std::move(record), std::move(plan), std::move(machine)));
  const std::string& run_id = host->record_.run_id;
  SKERRY_ASSIGN(std::vector<VersionRecord> versions, services.store.versions(run_id, /*with_bytes=*/true));
  SKERRY_TRY(host->restore_figures(versions));
  for (VersionRecord& version : versions) host->remember(std::move(version));
  SKERRY_ASSIGN(const std::vector<UpdateRecord> updates, services.store.accepted_updates(run_id));
  for (const UpdateRecord& update : updates) {
    v1::UpdateBody body;
    if (!body.ParseFromString(update.body)) return data_loss("run " + run_id + ": the stored update of task " + update.task_id + " is damaged");
    SKERRY_ASSIGN(auto payloads, check_payloads(body, host->plan_.spec, host->plan_.shapes));
    host->accepted_[update.task_id] = std::make_shared<AcceptedUpdate>(AcceptedUpdate{std::move(payloads)});
  }
  for (const char* kind : {"exchange", "evaluation"}) {
    SKERRY_ASSIGN(const auto row, services.store.latest_metric(run_id, kind));
    if (row) host->latest_metrics_.merge(as_map(row->metrics));
  }
  SKERRY_ASSIGN(host->discarded_, services.store.discarded_by_reason(run_id));
  return host;
}

// The best version so far and what it measured, from the rows that say so, and what is smoothed over exchanges.
Result<void> RunHost::restore_figures(const std::vector<VersionRecord>& versions) {
  std::set<std::uint64_t> kept;  // of the first fragment
  for (const VersionRecord& version : versions)
    for (std::uint32_t fragment = 0; version.kept && fragment < plan_.shapes.size(); ++fragment) {
      if (plan_.shapes[fragment].name != version.fragment) continue;
      if (fragment == 0) kept.insert(version.version);
      if (!stays(version)) kept_[fragment] = version.version;
    }
  SKERRY_ASSIGN(const auto rows, services_.store.metrics(record_.run_id));
  for (const MetricRecord& row : rows) {
    const auto metrics = as_map(row.metrics);
    if (row.kind == "exchange") restore_noise(row.fragment, metrics);
    const auto judged = metrics.find(judged_metric());
    if (row.kind != "evaluation" || !row.node.empty() || judged == metrics.end() || !kept.contains(row.version)) continue;
    if (better(judged->second)) best_ = judged->second;
  }
  return {};
}

bool RunHost::better(double judged) const {
  if (!best_) return true;
  const bool higher = !plan_.spec.stop.metric.empty() && plan_.spec.stop.comparison == StopSpec::Comparison::kAtLeast;
  return higher ? judged > *best_ : judged < *best_;
}

bool RunHost::stays(const VersionRecord& version) const {
  const std::uint64_t every = plan_.spec.evaluation.keep_every;
  const bool began = !plan_.spec.start.run.empty() && round_of(plan_, version.exchange) <= plan_.spec.start.round;
  return began || (every > 0 && round_of(plan_, version.exchange) % every == 0);
}

const std::string& RunHost::judged_metric() const {
  static const std::string kLoss = "loss";
  return plan_.spec.stop.metric.empty() ? kLoss : plan_.spec.stop.metric;
}

v1::RunAnnouncement RunHost::announcement() const {
  v1::RunAnnouncement message;
  message.set_run_id(record_.run_id);
  message.set_name(record_.name);
  message.set_spec_hash(plan_.spec.hash);
  message.set_spec_json(plan_.spec.canonical_json);
  if (auto tokenizer = tokenizer_blob(plan_.spec, services_.cargo)) *message.mutable_tokenizer() = *std::move(tokenizer);
  return message;
}

void RunHost::handle(Event event) {
  events_.push_back(std::move(event));
  if (handling_) return;
  handling_ = true;
  while (!events_.empty()) {
    const Event next = std::move(events_.front());
    events_.pop_front();
    for (const Command& command : machine_.handle(next, now())) std::visit([this](const auto& known) { carry_out(known); }, command);
  }
  handling_ = false;
  services_.commit.before("run " + record_.run_id, [this](Batch& batch) { flush(batch); }, /*urgent=*/false);
  services_.changed(record_.run_id);
}

void RunHost::flush(Batch& batch) {
  batch.machine_rows(record_.run_id, machine_.take_changes(now()));
  const RunStatus view = machine_.status();
  if (view.status != record_.status || view.status_reason != record_.status_reason) {
    record_.status = view.status;
    record_.status_reason = view.status_reason;
    if (machine_.finished() && record_.ended_ms == 0) record_.ended_ms = unix_now();
    batch.set_run_status(record_.run_id, record_.status, record_.status_reason, record_.ended_ms);
    services_.changed(record_.run_id);  // those who watch for the end must see it
  }
  if (!to_prune_.empty()) {
    // Only now: an evaluation that closed with the same event may have asked to keep its version.
    const auto needed = machine_.needed_versions();
    for (const std::uint32_t fragment : std::exchange(to_prune_, {}))
      batch.prune_versions(record_.run_id, plan_.shapes[fragment].name, kVersionsStored, needed[fragment]);
  }
  const std::uint64_t monotonic = services_.clock.monotonic_ms();
  if (monotonic - traffic_stored_ms_ >= kTrafficStoreMs || machine_.finished()) {
    traffic_stored_ms_ = monotonic;
    for (const auto& [node, bytes] : std::exchange(traffic_, {}))
      batch.add_traffic(record_.run_id, node, bytes.first, bytes.second);
  }
}

void RunHost::progressed(const std::string& node, const v1::Progress& progress) {
  progress_[node] = {progress.step(), progress.of(), progress.loss()};
  services_.changed(record_.run_id);
}

void RunHost::refused(const std::string& node, const std::string& reason) {
  if (reason.empty()) refusals_.erase(node);
  else refusals_[node] = reason;
  services_.changed(record_.run_id);
}

// ---- time, versions, traffic ----

void RunHost::carry_out(const WakeAt& command) {
  wake_at_ = command.at;
  wake();
}

// Sees to it that the core looks no later than at wake_at_. A look that is already planned before then is enough: deadlines
// move with every exchange, and a timer for each would pile up.
void RunHost::wake() {
  if (!wakes_.empty() && *wakes_.begin() <= *wake_at_) return;
  const Instant at = std::max<Instant>(*wake_at_, 0);
  wakes_.insert(at);
  services_.core.at(static_cast<std::uint64_t>(at), [this, at] {
    wakes_.erase(at);
    if (!wake_at_) return;
    if (*wake_at_ > now()) return wake();
    wake_at_.reset();
    handle(Tick{});
  });
}

const VersionRecord* RunHost::version(std::uint32_t fragment, std::uint64_t number) {
  auto& known = versions_[fragment];
  if (const auto found = known.find(number); found != known.end()) return &found->second;
  auto stored = services_.store.version(record_.run_id, plan_.shapes[fragment].name, number);
  if (!stored.ok() || !*stored) return nullptr;
  const VersionRecord* loaded = &(known[number] = std::move(**stored));
  services_.released(*this);
  return loaded;
}

void RunHost::remember(VersionRecord record) {
  const auto shape = std::find_if(plan_.shapes.begin(), plan_.shapes.end(), [&](const FragmentShape& s) { return s.name == record.fragment; });
  if (shape == plan_.shapes.end()) return;
  auto& known = versions_[static_cast<std::size_t>(shape - plan_.shapes.begin())];
  known[record.version] = std::move(record);
  while (known.size() > kVersionsRemembered) known.erase(known.begin());
}

void RunHost::carried(const std::string& node, std::uint64_t bytes_up, std::uint64_t bytes_down) {
  record_.bytes_up += bytes_up;
  record_.bytes_down += bytes_down;
  auto& [up, down] = traffic_[node];
  up += bytes_up;
  down += bytes_down;
}

std::vector<std::string> RunHost::readable_cargo() const {
  std::vector<std::string> ids;
  if (plan_.spec.data.tokenizer != "bytes") ids.push_back(plan_.spec.data.tokenizer);
  for (const auto& fragment : versions_)
    for (const auto& [number, record] : fragment) {
      if (!record.whole.content_id.empty()) ids.push_back(record.whole.content_id);
      if (!record.step.content_id.empty()) ids.push_back(record.step.content_id);
    }
  return ids;
}

}  // namespace skerry::server
