#include "tests/bench/fleet/member.h"

#include <utility>
#include <variant>

#include <nlohmann/json.hpp>

#include "common/codec/encoding.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"

namespace skerry::bench {
namespace {

using client::EventLoop;

constexpr std::string_view kUpdateDomain{"skerry update v1\0", 17};
constexpr std::uint64_t kInlineLimit = 64 * 1024;
constexpr std::uint64_t kExamples = 1000;  // of member 0; every further one has one more, so that weights differ
constexpr std::uint64_t kHoldout = 100;

client::ClientMachineOptions machine_options(std::uint32_t index) {
  client::ClientMachineOptions options;
  options.software = "skerry-bench fleet";
  options.seed = index + 1;
  options.max_trainers = 1024;
  return options;
}

client::TrainerResult result_of(const v1::Task& task, std::uint32_t index) {
  client::TrainerResult result;
  const bool training = task.kind() == v1::TASK_TRAIN;
  result.steps = training ? std::max<std::uint64_t>(task.steps(), 1) : 0;
  result.examples = training ? kExamples + index : kHoldout;
  result.seconds = 1e-3;
  const double loss = 1.0 + 1.0 / static_cast<double>(task.round() + 1) + 1e-6 * index;
  result.metrics[training ? "train_loss" : "loss"] = loss;
  return result;
}

}  // namespace

Result<std::unique_ptr<Member>> Member::create(FleetShared& shared, Profile profile, std::uint32_t index) {
  SKERRY_ASSIGN(PrivateKey key, PrivateKey::load(profile.key_path()));
  SKERRY_ASSIGN(client::SessionOptions options, client::session_options(profile, ""));
  return std::unique_ptr<Member>(new Member(shared, std::move(profile), std::move(key), std::move(options), index));
}

Member::Member(FleetShared& shared, Profile profile, PrivateKey key, client::SessionOptions options, std::uint32_t index)
    : shared_(shared),
      profile_(std::move(profile)),
      key_(std::move(key)),
      session_options_(std::move(options)),
      index_(index),
      machine_(machine_options(index)) {}

Member::~Member() {
  *alive_ = false;
  cancelled_ = true;
  for (const std::string& path : files_) (void)remove_file(path).ok();
}

void Member::handle(client::Event event) {
  events_.push_back(std::move(event));
  if (handling_) return;
  handling_ = true;
  while (!events_.empty()) {
    const client::Event next = std::move(events_.front());
    events_.pop_front();
    for (client::Command& command : machine_.handle(next, EventLoop::now_ms()))
      std::visit([this](auto& known) { carry_out(known); }, command);
  }
  handling_ = false;
}

// ---- the session ----

void Member::carry_out(client::ConnectAfter& command) {
  shared_.loop.cancel(dial_timer_);
  if (command.delay_ms == 0) return dial();
  dial_timer_ = shared_.loop.after(command.delay_ms, [this] { dial(); });
}

void Member::dial() {
  const std::uint64_t serial = ++session_serial_;
  const auto mine = [this, serial, alive = alive_, &shared = shared_](auto action) {
    shared.loop.post([this, serial, alive, action = std::move(action)]() mutable {
      if (*alive && serial == session_serial_) action();
    });
  };
  ++shared_.streams;
  session_ = client::Session::open(session_options_,
                                   {[this, mine](v1::ToNode message) {
                                      mine([this, message = std::move(message)]() mutable { received(std::move(message)); });
                                    },
                                    [this, mine, &shared = shared_](Error error, client::SessionRemains remains) {
                                      // The remains go on the loop's thread, which the fleet keeps until the last stream ended.
                                      shared.loop.post([remains = std::move(remains), &shared] { --shared.streams; });
                                      mine([this, error = std::move(error)] {
                                        session_.reset();
                                        if (std::exchange(connected_, false)) shared_.log.disconnected(profile_.name, error);
                                        else shared_.log.failed(profile_.name, "no session: " + to_string(error));
                                        handle(client::Disconnected{error});
                                      });
                                    }});
  handle(client::Connected{});
}

void Member::received(v1::ToNode message) {
  switch (message.message_case()) {
    case v1::ToNode::kWelcome:
      connected_ = true;
      shared_.log.connected();
      break;
    case v1::ToNode::kTask: shared_.log.task(message.task()); break;
    case v1::ToNode::kReceipt:
      if (const auto run = task_runs_.find(message.receipt().task_id()); run != task_runs_.end())
        shared_.log.receipt(run->second, message.receipt());
      break;
    case v1::ToNode::kRunEnded: shared_.log.run_ended(message.run_ended()); break;
    default: break;
  }
  const bool first_welcome = message.has_welcome() && !greeted_;
  greeted_ = greeted_ || first_welcome;
  handle(client::Received{std::move(message)});
  if (first_welcome && shared_.greeted) shared_.greeted();
}

void Member::carry_out(client::CloseSession&) {
  ++session_serial_;
  connected_ = false;
  if (session_) session_->close();
  session_.reset();
}

void Member::carry_out(client::Send& command) {
  if (command.message.has_failure()) shared_.log.failed(profile_.name, "task failed: " + command.message.failure().message());
  if (session_) session_->send(std::move(command.message));
}

// ---- runs and tasks ----

void Member::carry_out(client::JudgeRun& command) {
  v1::RunAnswer answer;
  answer.set_run_id(command.run.run_id());
  answer.set_spec_hash(command.run.spec_hash());
  auto& known = shared_.runs[command.run.spec_hash()];
  if (known == nullptr) {
    auto spec = parse_resolved_spec(command.run.spec_json());
    auto run = std::make_shared<KnownRun>();
    if (spec.ok()) run->spec = std::move(spec).value();
    auto layout = spec.ok() ? build_layout(nlohmann::json::parse(run->spec.model_json, nullptr, false)) : Result<ModelLayout>(spec.error());
    auto up = find_encoding(run->spec.exchange.up);
    if (layout.ok() && up.ok()) {
      run->layout = std::move(layout).value();
      run->up = *up;
      known = std::move(run);
    } else {
      answer.add_reasons(to_string(layout.ok() ? up.error() : layout.error()));
    }
  }
  answer.set_accepted(known != nullptr);
  if (known != nullptr) {
    answer.set_data_set("synthetic");
    (*answer.mutable_examples())[known->spec.data.train_split] = kExamples + index_;
    (*answer.mutable_examples())[known->spec.evaluation.split] = kHoldout;
  }
  handle(client::RunJudged{std::move(answer)});
}

void Member::carry_out(client::StartTrainer& command) { handle(client::TrainerReady{command.run_id}); }

void Member::carry_out(client::StopTrainer& command) {
  handle(client::TrainerExited{command.run_id, {Code::kCancelled, command.reason}});
}

void Member::carry_out(client::TrainerRequest& command) {
  if (shared_.train_ms == 0) return trained(command.task);
  training_[command.task.task_id()] = shared_.loop.after(shared_.train_ms, [this, task = command.task] {
    training_.erase(task.task_id());
    trained(task);
  });
}

void Member::trained(const v1::Task& task) {
  handle(client::TrainerDone{task.run_id(), task.task_id(), result_of(task, index_)});
}

void Member::carry_out(client::CancelTask& command) {
  if (auto timer = training_.extract(command.task_id); !timer.empty()) shared_.loop.cancel(timer.mapped());
  handle(client::TrainerCancelled{command.run_id, command.task_id});
}

void Member::carry_out(client::DropRun&) {}

// ---- bytes ----

void Member::carry_out(client::Fetch& command) {
  bool all_here = true;
  for (const auto& version : command.task.read())
    all_here = all_here && !(version.step().size() > 0 && version.whole().inline_data().empty() ? version.step() : version.whole()).inline_data().empty();
  const auto run = [this, task = command.task]() -> client::Event {
    auto fetched = fetch(task);
    if (fetched.ok()) return client::FetchDone{task.task_id()};
    return client::FetchFailed{task.task_id(), fetched.error()};
  };
  if (all_here) handle(run());
  else later(run);
}

// As the daemon does: the step where there is one, else the whole, verified against its id.
Result<void> Member::fetch(const v1::Task& task) {
  for (const auto& version : task.read()) {
    const bool step = version.step().size() > 0 && version.whole().inline_data().empty();
    const v1::Blob& blob = step ? version.step() : version.whole();
    if (!blob.inline_data().empty()) {
      if (content_id(blob.inline_data()) != blob.content_id())
        return data_loss("the bytes of fragment " + version.fragment() + " are not those of " + blob.content_id());
      continue;
    }
    if (blob.size() == 0)
      return not_found("version " + std::to_string(version.version()) + " of fragment " + version.fragment() + " came without bytes");
    const std::string path = file_of(task.task_id(), version.fragment() + ".base");
    SKERRY_TRY(cargo().download(blob.content_id(), blob.size(), path));
    SKERRY_TRY(remove_file(path));
    shared_.loop.post([this, bytes = blob.size(), alive = alive_] {
      if (*alive) shared_.log.carried(0, bytes);
    });
  }
  return {};
}

void Member::carry_out(client::StoreUpdate& command) {
  const auto known = run_of(command.task.spec_hash());
  const auto job = [this, known, task = command.task, result = command.result]() -> client::Event {
    auto made = make_update(task, result, *known);
    if (made.ok()) return client::OutboxStored{std::move(made).value()};
    return client::StoreFailed{task.task_id(), made.error()};
  };
  task_runs_[command.task.task_id()] = command.task.run_id();
  std::uint64_t elements = 0;
  for (const std::string& name : command.task.write())
    if (const auto* fragment = known->layout.find_fragment(name)) elements += fragment->elements;
  if (known->up->encoded_bytes(elements) <= kInlineLimit) handle(job());
  else later(job);
}

Result<client::StoredUpdate> Member::make_update(const v1::Task& task, const client::TrainerResult& result, const KnownRun& run) {
  client::StoredUpdate stored;
  stored.task = task;
  v1::UpdateBody body;
  body.set_task_id(task.task_id());
  body.set_run_id(task.run_id());
  body.set_spec_hash(task.spec_hash());
  body.set_node(profile_.name);
  body.set_kind(task.kind());
  body.set_exchange(task.exchange());
  if (task.kind() == v1::TASK_TRAIN) {
    for (const std::string& name : task.write()) {
      const FragmentLayout* fragment = run.layout.find_fragment(name);
      if (fragment == nullptr) return invalid_argument("the model has no fragment " + name);
      std::uint64_t base = 0;
      for (const auto& read : task.read())
        if (read.fragment() == name) base = read.version();
      SKERRY_ASSIGN(*body.add_fragments(),
                    shared_.updates.make(*fragment, *run.up, base, SyntheticUpdates::key_of(profile_.name, task.task_id(), name),
                                         kInlineLimit, file_of(task.task_id(), name), stored.uploads));
    }
  }
  body.set_examples(result.examples);
  body.set_steps(result.steps);
  body.set_seconds(result.seconds);
  for (const auto& [name, value] : result.metrics) {
    v1::Metric& metric = *body.add_metrics();
    metric.set_name(name);
    metric.set_value(value);
  }
  std::string signed_text(kUpdateDomain);
  *stored.message.mutable_body() = body.SerializeAsString();
  signed_text += stored.message.body();
  SKERRY_ASSIGN(*stored.message.mutable_signature(), key_.sign(signed_text));
  return stored;
}

void Member::carry_out(client::Upload& command) {
  later([this, update = command.update]() -> client::Event {
    v1::UpdateBody body;
    if (!body.ParseFromString(update.message.body())) return client::UploadFailed{update.task.task_id(), internal_error("an update of our own is damaged")};
    for (const auto& fragment : body.fragments()) {
      if (!fragment.data().inline_data().empty()) continue;
      auto sent = cargo().upload(file_of(update.task.task_id(), fragment.fragment()), fragment.data().content_id(), fragment.data().size(), update.task.ticket());
      if (!sent.ok()) return client::UploadFailed{update.task.task_id(), sent.error()};
    }
    return client::UploadDone{update.task.task_id()};
  });
}

void Member::carry_out(client::Abandon&) {
  if (job_running_) cancelled_ = true;
}

void Member::carry_out(client::ForgetUpdate& command) {
  task_runs_.erase(command.task_id);
  const std::string prefix = file_of(command.task_id, "");
  for (auto file = files_.lower_bound(prefix); file != files_.end() && file->starts_with(prefix); file = files_.erase(file))
    (void)remove_file(*file).ok();
}

void Member::later(std::function<client::Event()> job) {
  jobs_.push_back(std::move(job));
  next_job();
}

void Member::next_job() {
  if (job_running_ || jobs_.empty()) return;
  job_running_ = true;
  cancelled_ = false;
  auto job = std::move(jobs_.front());
  jobs_.pop_front();
  shared_.workers.run([this, job = std::move(job), alive = alive_] {
    auto answer = std::make_shared<client::Event>(job());
    shared_.loop.post([this, answer, alive] {
      if (!*alive) return;
      job_running_ = false;
      if (const auto* stored = std::get_if<client::OutboxStored>(answer.get())) {
        v1::UpdateBody body;
        (void)body.ParseFromString(stored->update.message.body());
        for (const auto& fragment : body.fragments()) {
          shared_.log.carried(fragment.data().size(), 0);
          if (fragment.data().inline_data().empty()) files_.insert(file_of(body.task_id(), fragment.fragment()));
        }
      }
      handle(std::move(*answer));
      next_job();
    });
  });
}

client::CargoClient& Member::cargo() {
  if (!cargo_) cargo_ = std::make_unique<client::CargoClient>(profile_, "", &cancelled_);
  return *cargo_;
}

// ---- the rest ----

void Member::carry_out(client::WakeAt& command) {
  shared_.loop.cancel(wake_timer_);
  const std::uint64_t now = EventLoop::now_ms();
  wake_timer_ = shared_.loop.after(command.at > now ? command.at - now : 0, [this] { handle(client::Tick{}); });
}

void Member::carry_out(client::Note& command) {
  if (command.level != client::Note::Level::kInfo) shared_.log.note(profile_.name, command.text);
}

void Member::carry_out(client::Exit&) { gone_ = true; }

std::string Member::file_of(const std::string& task_id, const std::string& what) const {
  return join_path(shared_.directory, profile_.name + "." + task_id + "." + what);
}

std::shared_ptr<const KnownRun> Member::run_of(const std::string& spec_hash) const {
  const auto found = shared_.runs.find(spec_hash);
  return found == shared_.runs.end() ? nullptr : found->second;
}

}  // namespace skerry::bench
