// Error feedback: what the encoding of a run's updates lost goes into the next ones, and discarded updates go back.
//
// client.db says which residuals are in force, in the transaction that stores the update which left them or forgets the
// update that was given back; their files are durable before, and older ones go after the commit. So a crash at any point
// leaves the residuals and the outbox of one and the same moment.
#include "client/daemon/app/daemon_loop.h"

#include "common/codec/compression.h"
#include "common/model/layout.h"
#include "common/os/files.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <optional>
#include <utility>

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr const char* kResidualsKey = "residuals ";  // and a run's id, among the database's words: {fragment: content id}

/// The residuals, without those whose files are damaged or gone: what these held is lost, and said.
std::vector<std::string> drop_damaged(const std::string& directory, std::map<std::string, Residual>& residuals) {
  std::vector<std::string> lost;
  for (auto& [fragment, residual] : residuals) {
    const auto verified = verify_residual(directory, residual);
    if (verified.ok()) continue;
    lost.push_back(verified.error().message);
    residual = {};
  }
  return lost;
}

/// An update with the values of its fragments where they are: inline, or in files of the outbox.
Result<std::vector<Residual>> give_back_all(const RunFeedback& feedback, std::map<std::string, Residual> residuals,
                                            const StoredUpdate& update, const std::string& outbox) {
  v1::UpdateBody body;
  if (!body.ParseFromString(update.message.body())) return data_loss("the update cannot be read");
  std::vector<Residual> next;
  for (const v1::FragmentUpdate& sent : body.fragments()) {
    const FragmentLayout* fragment = feedback.layout.find_fragment(sent.fragment());
    SKERRY_ASSIGN(const WireEncoding wire, find_wire_encoding(sent.encoding()));
    if (fragment == nullptr) return data_loss("the update is of fragment " + sent.fragment() + ", which the run does not have");
    std::optional<MappedFile> file;
    std::span<const std::byte> payload = as_bytes_of(sent.data().inline_data());
    if (payload.empty()) {
      SKERRY_ASSIGN(MappedFile map, MappedFile::open(payload_path(outbox + "/" + update.task.task_id(), sent.data().content_id())));
      file.emplace(std::move(map));
      payload = file->bytes();
    }
    std::optional<MappedFile> inflated;
    if (wire.zstd) {
      const std::string path = feedback.directory + "/" + sent.fragment() + ".sent";
      SKERRY_TRY(decompress_to_file(payload, wire.encoding->encoded_bytes(fragment->elements), path));
      SKERRY_ASSIGN(MappedFile map, MappedFile::open(path));
      SKERRY_TRY(remove_file(path));  // the map keeps it
      inflated.emplace(std::move(map));
      payload = inflated->bytes();
    }
    SKERRY_ASSIGN(Residual residual, give_back(feedback.directory, sent.fragment(), residuals[sent.fragment()], *wire.encoding, payload,
                                               fragment->elements));
    if (file) SKERRY_TRY(file->check());
    next.push_back(std::move(residual));
  }
  return next;
}

}  // namespace

/// Null for a run without feedback, and for one that is not known any more.
Result<std::shared_ptr<RunFeedback>> DaemonLoop::feedback_of(const std::string& run_id) {
  const auto known = feedback_.find(run_id);
  if (known != feedback_.end()) return known->second;
  const auto area = area_of(run_id);
  std::optional<RunSpec> spec = area == nullptr ? std::nullopt : area->spec;
  if (!spec) {  // not announced yet in this life
    SKERRY_ASSIGN(const auto runs, database_.known_runs());
    const auto run = std::find_if(runs.begin(), runs.end(), [&](const auto& candidate) { return candidate.run_id == run_id; });
    if (run == runs.end()) return std::shared_ptr<RunFeedback>();
    SKERRY_ASSIGN(spec, parse_resolved_spec(run->spec_json));
  }
  if (spec->exchange.up_feedback == 0) return feedback_[run_id];
  auto feedback = std::make_shared<RunFeedback>();
  feedback->share = spec->exchange.up_feedback;
  feedback->directory = home_.residuals(run_id);
  SKERRY_ASSIGN(feedback->layout, build_layout(json::parse(spec->model_json)));
  SKERRY_ASSIGN(const std::string words, database_.value(kResidualsKey + run_id));
  const json ids = json::parse(words, nullptr, false);
  if (ids.is_object())
    for (const auto& id : ids.items())
      if (id.value().is_string()) feedback->residuals[id.key()] = {id.key(), id.value(), {}};
  // What an earlier life left behind between its files and its commit.
  if (const auto names = list_directory(feedback->directory); names.ok())
    for (const auto& found : *names)
      if (std::none_of(feedback->residuals.begin(), feedback->residuals.end(), [&](const auto& residual) {
            return found.name == residual.first + "." + residual.second.content_id;
          }))
        (void)remove_file(join_path(feedback->directory, found.name));
  return feedback_[run_id] = std::move(feedback);
}

/// Runs `work` on a worker with the run's residuals, after the works before it; `done` is called on the loop with what it gave
/// before the next begins.
void DaemonLoop::with_residuals(const std::shared_ptr<RunFeedback>& feedback, RunFeedback::Work work) {
  if (feedback->busy) {
    feedback->waiting.push_back(std::move(work));
    return;
  }
  feedback->busy = true;
  workers_.run([this, feedback, residuals = feedback->residuals, verified = feedback->verified, work = std::move(work)]() mutable {
    std::vector<std::string> lost;
    if (!verified) lost = drop_damaged(feedback->directory, residuals);
    auto done = work(std::move(residuals));
    loop_->post([this, feedback, lost = std::move(lost), done = std::move(done)] {
      for (const std::string& what : lost) log(Note::Level::kError, "what an update's encoding lost is not carried on: " + what);
      feedback->verified = true;
      feedback->busy = false;
      done();
      if (feedback->waiting.empty() || feedback->busy) return;
      auto next = std::move(feedback->waiting.front());
      feedback->waiting.pop_front();
      with_residuals(feedback, std::move(next));
    });
  });
}

/// Within a transaction: these are in force from now on.
Result<void> DaemonLoop::keep_residuals(const std::string& run_id, std::vector<Residual> residuals) {
  const auto known = feedback_.find(run_id);
  if (residuals.empty() || known == feedback_.end() || known->second == nullptr) return {};
  RunFeedback& feedback = *known->second;
  for (Residual& residual : residuals) {
    Residual& place = feedback.residuals[residual.fragment];
    if (!place.content_id.empty() && place.content_id != residual.content_id) {
      after_commit_.emplace_back([kept = known->second, old = place] {
        if (kept->residuals[old.fragment].content_id != old.content_id)
          (void)remove_file(residual_path(kept->directory, old.fragment, old.content_id));
      });
    }
    place = std::move(residual);
  }
  json ids = json::object();
  for (const auto& [fragment, residual] : feedback.residuals) ids[fragment] = residual.content_id;
  return database_.set_value(kResidualsKey + run_id, ids.dump());
}

/// The run is over: updates that are decided later are not given back.
Result<void> DaemonLoop::forget_residuals(const std::string& run_id) {
  SKERRY_TRY(database_.begin());
  return database_.set_value(kResidualsKey + run_id, "");
}

/// Whether the update is given back first, and forgotten then.
bool DaemonLoop::give_back_discarded(const ForgetUpdate& command) {
  if (command.kind != v1::TASK_TRAIN || command.state != v1::UPDATE_DISCARDED) return false;
  const auto found = feedback_of(command.run_id);
  if (!found.ok()) log(Note::Level::kError, "the discarded update " + command.task_id + " is not given back: " + to_string(found.error()));
  if (!found.ok() || *found == nullptr || (*found)->residuals.empty()) return false;  // none: the run is over
  auto outbox = database_.load_outbox();
  if (!outbox.ok()) return false;
  const auto row = std::find_if(outbox->begin(), outbox->end(), [&](const StoredUpdate& update) { return update.task.task_id() == command.task_id; });
  if (row == outbox->end()) return false;
  const auto feedback = *found;
  with_residuals(feedback, [this, feedback, command, update = std::move(*row)](std::map<std::string, Residual> residuals) {
    auto next = give_back_all(*feedback, std::move(residuals), update, home_.outbox());
    return [this, feedback, command, next = std::move(next)]() mutable {
      if (!feedback_.contains(command.run_id)) {  // the run ended meanwhile
        (void)remove_tree(feedback->directory);
        return forget(command);
      }
      if (!next.ok()) {
        log(Note::Level::kError, "the discarded update " + command.task_id + " is not given back: " + to_string(next.error()));
        return forget(command);
      }
      // In one transaction: a crash before it finds the update in the outbox and the residuals as they were.
      const auto write = [&]() -> Result<void> {
        SKERRY_TRY(database_.begin());
        SKERRY_TRY(keep_residuals(command.run_id, *std::move(next)));
        return database_.remove_update(command.task_id);
      };
      if (auto done = write(); !done.ok()) return fail_for_good(done.error());
      after_commit_.emplace_back([this, task_id = command.task_id] { remove_payloads(task_id); });
    };
  });
  return true;
}

}  // namespace skerry::client
