#include "client/daemon/app/commands.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include <nlohmann/json.hpp>

#include "client/daemon/app/control.h"
#include "client/daemon/app/daemon.h"
#include "client/daemon/app/status.h"
#include "client/daemon/data/catalogue.h"
#include "client/daemon/egress/client_database.h"
#include "client/daemon/policy/policy.h"
#include "client/daemon/supervise/sandbox.h"
#include "client/daemon/update/fragment_cache.h"
#include "common/crypto/sha256.h"
#include "common/crypto/x509.h"
#include "common/identity/enrol.h"
#include "common/os/clock.h"
#include "common/os/files.h"
#include "common/os/process.h"
#include "common/tensor/safetensors.h"

namespace skerry::client {
namespace {

using nlohmann::json;

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

std::int64_t unix_ms() { return SystemClock().unix_ms(); }

std::string absolute(const std::string& path) {
  if (path.empty()) return path;
  std::error_code error;
  const auto found = std::filesystem::absolute(path, error).lexically_normal();
  return error ? path : found.string();
}

/// Sends a command to the running daemon and prints its answer; nothing where none runs.
std::optional<int> command_to_daemon(const Home& home, const json& request) {
  const auto answer = ask_daemon(home.socket(), request);
  if (!answer.ok()) return std::nullopt;
  print(answer->value("message", "") + "\n");
  return answer->value("ok", false) ? kExitOk : kExitFailure;
}

Result<void> remember_word(const Home& home, const char* key, const std::string& value) {
  if (!has_profile(home.path)) return not_found("there is no node in " + home.path + "; join a federation first: `skerry-client join TOKEN`");
  SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(home.path));
  SKERRY_TRY(database.begin());
  SKERRY_TRY(database.set_value(key, value));
  return database.commit();
}

Result<json> resting_status(const Home& home) {
  SKERRY_ASSIGN(const Profile profile, load_profile(home.path));
  json status = {{"running", false},
                 {"node", profile.name},
                 {"federation", profile.federation},
                 {"coordinator_address", profile.address},
                 {"certificate_expires", format_utc(profile.expires_ms)},
                 {"session", "none"}};
  const auto policy = load_policy(home.policy());
  status["policy"] = policy.ok() ? "readable" : policy.error().message;
  if (!path_exists(home.path + "/client.db")) return status;
  SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(home.path, true));
  SKERRY_ASSIGN(const std::string paused, database.value("paused"));
  status["paused"] = !paused.empty();
  SKERRY_ASSIGN(const auto outbox, database.load_outbox());
  status["outbox"] = json::array();
  for (const auto& update : outbox)
    status["outbox"].push_back({{"task", update.task.task_id()}, {"run", update.task.run_id()}, {"phase", "waiting"}});
  SKERRY_ASSIGN(const auto runs, database.known_runs());
  status["runs"] = json::array();
  for (const auto& run : runs)
    status["runs"].push_back({{"run", run.run_id}, {"name", run.name}, {"answer", run.accepted ? "accepted" : "refused"}, {"data_set", run.data_set}});
  return status;
}

std::string digits(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

Result<Catalogue> catalogue_of(const Home& home) {
  SKERRY_TRY(make_directories(home.path));
  return Catalogue::load(home.catalogue());
}

std::string counts_text(const DataSet& set) {
  std::string out;
  for (const auto& [split, count] : set.examples())
    out += (out.empty() ? "" : ", ") + split + " " + std::to_string(count) + (set.kind == "tokens" ? " tokens" : set.is_text() ? " bytes" : "");
  return out;
}

json data_set_json(const DataSet& set) {
  return {{"name", set.name},       {"kind", set.kind},       {"path", set.path},
          {"indices", set.indices}, {"holdout", set.holdout}, {"schema", json::parse(set.schema_json)},
          {"examples", set.examples()}};
}

}  // namespace

int report(const Error& error) {
  std::fprintf(stderr, "skerry-client: %s\n", error.message.c_str());
  switch (error.code) {
    case Code::kPermissionDenied:
    case Code::kUnauthenticated: return kExitRefused;
    case Code::kUnavailable:
    case Code::kDeadlineExceeded: return kExitNotReached;
    default: return kExitFailure;
  }
}

std::string table_text(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> width;
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (width.size() <= i) width.push_back(0);
      width[i] = std::max(width[i], row[i].size());
    }
  std::string out;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      out += row[i];
      if (i + 1 < row.size()) out.append(width[i] - row[i].size() + 2, ' ');
    }
    out += '\n';
  }
  return out;
}

// ---- membership ----

int join_command(const Home& home, const std::string& token, const std::string& proxy) {
  std::size_t request_bytes = 0;
  std::string request_hash;
  EnrolOptions options;
  options.proxy = proxy;
  options.send = [&](const HttpOptions& http, const HttpRequest& request) -> Result<HttpResponse> {
    if (request.method == "POST") {
      request_bytes = request.body.size();
      request_hash = sha256_hex(request.body);
    }
    return HttpClient(http).send(request);
  };
  const auto profile = join(token, home.path, options);
  if (!profile.ok()) return report(profile.error());
  const auto prepare = [&]() -> Result<std::string> {
    SKERRY_ASSIGN(const std::string fingerprint, root_fingerprint(profile->ca_pem));
    if (!path_exists(home.policy())) SKERRY_TRY(write_file_atomic(home.policy(), policy_template(fingerprint), 0600));
    SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(home.path));
    SKERRY_TRY(database.begin());
    EgressRow row;
    row.time_ms = unix_ms();
    row.kind = "signing-request";
    row.bytes = request_bytes;
    row.sha256 = request_hash;
    SKERRY_TRY(database.append(std::move(row)));
    if (!proxy.empty()) SKERRY_TRY(database.set_value("proxy", proxy));
    SKERRY_TRY(database.commit());
    return fingerprint;
  };
  const auto fingerprint = prepare();
  if (!fingerprint.ok()) return report(fingerprint.error());
  print("joined federation " + profile->federation + " as node " + profile->name + "; coordinator " + profile->address + "\n" +
        "root certificate " + *fingerprint + "\n\n" +
        "Nothing is allowed yet. Say what is, then start the daemon:\n"
        "  skerry-client data add NAME --kind text --path DIRECTORY     # describe your data\n"
        "  edit " + home.policy() + "\n"
        "  skerry-client run\n");
  return kExitOk;
}

int status_command(const Home& home, bool as_json) {
  auto status = ask_daemon(home.socket(), {{"command", "status"}});
  if (!status.ok()) status = resting_status(home);
  if (!status.ok()) return report(status.error());
  print(as_json ? status->dump(2) + "\n" : status_text(*status));
  return kExitOk;
}

int pause_command(const Home& home, bool now) {
  if (const auto code = command_to_daemon(home, {{"command", "pause"}, {"now", now}})) return *code;
  if (auto done = remember_word(home, "paused", "1"); !done.ok()) return report(done.error());
  print("no daemon is running; the next one starts paused\n");
  return kExitOk;
}

int resume_command(const Home& home) {
  if (const auto code = command_to_daemon(home, {{"command", "resume"}})) return *code;
  if (auto done = remember_word(home, "paused", ""); !done.ok()) return report(done.error());
  print("no daemon is running; the next one takes work\n");
  return kExitOk;
}

int leave_command(const Home& home, const std::string& reason, const std::string& proxy, const std::string& program_directory) {
  if (const auto code = command_to_daemon(home, {{"command", "leave"}, {"reason", reason}}))
    return *code == kExitOk ? kExitOk : kExitNotReached;
  DaemonOptions options;
  options.home = home;
  options.proxy = proxy;
  options.program_directory = program_directory;
  options.leave = true;
  options.leave_reason = reason;
  auto daemon = Daemon::create(std::move(options));
  if (!daemon.ok()) return report(daemon.error());
  if ((*daemon)->run() != DaemonEnd::kLeft) return report(unavailable("the coordinator could not be told; it will see this node as offline"));
  print("left the federation\n");
  return kExitOk;
}

// ---- policy ----

int policy_show_command(const Home& home) {
  const auto policy = load_policy(home.policy());
  if (!policy.ok()) return report(policy.error());
  const auto listed = [](const std::vector<std::string>& texts) {
    std::string out;
    for (const auto& text : texts) out += (out.empty() ? "" : ", ") + text;
    return out.empty() ? std::string("nothing") : out;
  };
  std::vector<std::vector<std::string>> rows = {
      {"coordinators", listed(policy->coordinators)},
      {"hours", policy->hours.texts().empty() ? "always" : listed(policy->hours.texts())},
      {"allow.purposes", listed(policy->purposes)},
      {"allow.architectures", listed(policy->architectures)},
      {"allow.max_parameters", std::to_string(policy->max_parameters)},
      {"allow.metrics", listed(policy->metrics)},
      {"allow.encodings", listed(policy->encodings)},
      {"allow.error_messages", policy->error_messages == Policy::Telling::kFull   ? "full"
                               : policy->error_messages == Policy::Telling::kCode ? "code"
                                                                                  : "none"}};
  for (const auto& rule : policy->data) rows.push_back({"data " + rule.set, "for " + listed(rule.purposes)});
  const auto limit = [](std::uint64_t value, const char* unit) { return value == 0 ? std::string("not limited") : std::to_string(value) + unit; };
  rows.insert(rows.end(),
              {{"limits.threads", std::to_string(policy->threads)},
               {"limits.memory_mb", limit(policy->memory_mb, "")},
               {"limits.trainers", std::to_string(policy->trainers)},
               {"limits.task_seconds", limit(policy->task_seconds, "")},
               {"limits.disk_mb", std::to_string(policy->disk_mb)},
               {"limits.rounds_a_day", limit(policy->rounds_a_day, "")},
               {"privacy.minimum_examples", std::to_string(policy->minimum_examples)},
               {"privacy.maximum_update_norm", policy->maximum_update_norm > 0 ? digits(policy->maximum_update_norm) : "not clipped"},
               {"trainer.sandbox", policy->sandbox == Policy::Sandbox::kBubblewrap ? "bubblewrap" : "none"},
               {"trainer.work_dir", policy->work_dir == Policy::WorkPlace::kTmpfs ? "tmpfs" : "disk"},
               {"trainer.command", policy->trainer.empty() ? "skerry-trainer beside skerry-client" : listed(policy->trainer)}});
  print(table_text(rows));
  return kExitOk;
}

int policy_template_command(const Home& home) {
  std::string fingerprint;
  if (const auto profile = load_profile(home.path); profile.ok())
    if (const auto root = root_fingerprint(profile->ca_pem); root.ok()) fingerprint = *root;
  print(policy_template(fingerprint));
  return kExitOk;
}

// ---- data ----

int data_add_command(const Home& home, const std::string& name, const std::string& kind, const std::string& path, double holdout,
                     const std::string& schema, const std::string& indices) {
  const auto add = [&]() -> Result<DataSet> {
    SKERRY_ASSIGN(Catalogue catalogue, catalogue_of(home));
    SKERRY_ASSIGN(DataSet set, inspect_data_set({name, kind, absolute(path), holdout, schema, absolute(indices)}, unix_ms()));
    SKERRY_TRY(catalogue.add(set));
    SKERRY_TRY(catalogue.save());
    return set;
  };
  const auto set = add();
  if (!set.ok()) return report(set.error());
  print("added " + set->name + ": " + set->kind + ", " + counts_text(*set) + "\nschema " + set->schema_json + "\n");
  return kExitOk;
}

int data_check_command(const Home& home, const std::string& name, bool update) {
  auto catalogue = catalogue_of(home);
  if (!catalogue.ok()) return report(catalogue.error());
  if (!name.empty() && catalogue->find(name) == nullptr) return report(catalogue->remove(name).error());
  int code = kExitOk;
  for (const DataSet& set : std::vector<DataSet>(catalogue->sets())) {
    if (!name.empty() && set.name != name) continue;
    auto now = update ? inspect_data_set({set.name, set.kind, set.path, set.holdout, set.kind == "text" ? "" : set.schema_json, set.indices},
                                         unix_ms())
                      : check_data_set(set, unix_ms());
    if (!now.ok()) {
      code = report(now.error());
      continue;
    }
    print(set.name + ": in order, " + counts_text(*now) + "\n");
    catalogue->replace(*std::move(now));
  }
  if (update)
    if (auto saved = catalogue->save(); !saved.ok()) return report(saved.error());
  return code;
}

int data_list_command(const Home& home, bool as_json) {
  const auto catalogue = catalogue_of(home);
  if (!catalogue.ok()) return report(catalogue.error());
  if (as_json) {
    json sets = json::array();
    for (const auto& set : catalogue->sets()) sets.push_back(data_set_json(set));
    print(sets.dump(2) + "\n");
    return kExitOk;
  }
  if (catalogue->sets().empty()) {
    print("no data set; `skerry-client data add NAME --kind text|idx|csv --path PATH` adds one\n");
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows{{"NAME", "KIND", "EXAMPLES", "PATH", "SCHEMA"}};
  for (const auto& set : catalogue->sets()) {
    std::string schema = set.schema_json;
    if (schema.size() > 60) schema = schema.substr(0, 57) + "...";
    rows.push_back({set.name, set.kind, counts_text(set), set.path, schema});
  }
  print(table_text(rows));
  return kExitOk;
}

int data_remove_command(const Home& home, const std::string& name) {
  const auto remove = [&]() -> Result<void> {
    SKERRY_ASSIGN(Catalogue catalogue, catalogue_of(home));
    SKERRY_TRY(catalogue.remove(name));
    return catalogue.save();
  };
  if (auto done = remove(); !done.ok()) return report(done.error());
  print("removed " + name + " from the catalogue; the data itself is untouched\n");
  return kExitOk;
}

// ---- egress ----

int egress_list_command(const Home& home, const std::string& run, std::uint64_t last, bool as_json) {
  const auto list = [&]() -> Result<void> {
    SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(home.path, true));
    std::vector<EgressRow> kept;
    json all = json::array();
    std::vector<std::vector<std::string>> rows{{"ROW", "TIME", "KIND", "RUN", "EXCHANGE", "BYTES", "NORM", "SHA-256", "DETAIL"}};
    SKERRY_TRY(database.visit_ledger(run, [&](const EgressRow& row) {
      kept.push_back(row);
      if (last > 0 && kept.size() > last) kept.erase(kept.begin());
      return true;
    }));
    for (const auto& row : kept) {
      if (as_json) {
        all.push_back({{"row", row.seq},       {"time_ms", row.time_ms}, {"kind", row.kind},   {"run", row.run},
                       {"task", row.task},     {"exchange", row.exchange}, {"bytes", row.bytes}, {"sha256", row.sha256},
                       {"norm", row.norm},     {"detail", row.detail},   {"hash", row.hash}});
      } else {
        rows.push_back({std::to_string(row.seq), format_utc(row.time_ms), row.kind, row.run, row.exchange > 0 ? std::to_string(row.exchange) : "",
                        std::to_string(row.bytes), row.norm > 0 ? digits(row.norm) : "", row.sha256.substr(0, 16), row.detail});
      }
    }
    print(as_json ? all.dump(2, ' ', false, json::error_handler_t::replace) + "\n" : table_text(rows));
    return {};
  };
  if (auto done = list(); !done.ok()) return report(done.error());
  return kExitOk;
}

int egress_verify_command(const Home& home) {
  const auto verify = [&]() -> Result<LedgerReport> {
    SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(home.path, true));
    return database.verify_ledger();
  };
  const auto found = verify();
  if (!found.ok()) return report(found.error());
  if (!found->finding.empty()) {
    std::fprintf(stderr, "skerry-client: the egress ledger was changed: %s\n", found->finding.c_str());
    return kExitFailure;
  }
  print(std::to_string(found->rows) + " rows, unaltered; head " + found->head + "\n");
  return kExitOk;
}

// ---- model ----

int model_fetch_command(const Home& home, const std::string& run, const std::string& directory) {
  const auto fetch = [&]() -> Result<std::string> {
    SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(home.path, true));
    SKERRY_ASSIGN(const auto runs, database.known_runs());
    const ClientDatabase::KnownRun* chosen = nullptr;
    std::string known;
    for (const auto& candidate : runs) {
      known += "\n  " + candidate.run_id + "  " + candidate.name;
      if (candidate.run_id == run) {
        chosen = &candidate;
        break;
      }
      if (candidate.run_id.starts_with(run) || candidate.name == run) {
        if (chosen != nullptr) return invalid_argument("\"" + run + "\" names more than one run:" + known);
        chosen = &candidate;
      }
    }
    if (chosen == nullptr) return not_found("this node knows no run \"" + run + "\"" + (known.empty() ? "" : "; known:" + known));
    const json spec = json::parse(chosen->spec_json, nullptr, false);
    if (!spec.is_object() || !spec.contains("model")) return data_loss("the stored spec of run " + chosen->run_id + " is damaged");
    json model = spec["model"];
    model.erase("initial");
    SKERRY_ASSIGN(ModelLayout layout, build_layout(model));

    Policy::WorkPlace place = Policy::WorkPlace::kDisk;
    auto cache = FragmentCache::look(home.cache(chosen->run_id, place), layout);
    if (!cache.ok() || cache->newest(layout.fragments.front().name) == nullptr) {
      place = Policy::WorkPlace::kTmpfs;
      cache = FragmentCache::look(home.cache(chosen->run_id, place), layout);
    }
    if (!cache.ok()) return not_found("this node has received no model of run " + chosen->run_id + " yet");
    json versions = json::object();
    std::optional<FragmentFile> personal;  // this node's own tensors
    for (const auto& fragment : layout.fragments) {
      if (fragment.role == FragmentRole::kControl) continue;  // no part of the model
      if (fragment.role == FragmentRole::kPersonal) {
        auto own = FragmentFile::open(home.personal(chosen->run_id, place), layout, fragment.name);
        if (!own.ok()) return with_context(std::move(own).error(), "this node's personal tensors");
        personal.emplace(std::move(*own));
        continue;
      }
      const auto entry = cache->newest(fragment.name);
      if (entry == nullptr) return not_found("this node has received no version of fragment " + fragment.name + " yet");
      versions[fragment.name] = {{"version", entry->version}, {"content_id", entry->content_id}};
      SKERRY_TRY(cache->verify(fragment.name, entry->version));
    }
    SKERRY_TRY(make_directories(directory, 0755));
    std::vector<TensorSpec> tensors;
    for (const auto& tensor : layout.tensors) tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
    SKERRY_ASSIGN(ShardedWriter writer, ShardedWriter::create(directory, tensors, {{"run", chosen->run_id}}));
    std::vector<float> block;
    for (const auto& tensor : layout.tensors) {
      const auto& fragment = layout.fragments[tensor.fragment];
      const FragmentFile& file = fragment.role == FragmentRole::kPersonal ? *personal : *cache->newest(fragment.name)->file;
      for (std::uint64_t at = 0; at < tensor.elements; at += block.size()) {
        block.resize(static_cast<std::size_t>(std::min<std::uint64_t>(tensor.elements - at, 1 << 20)));
        SKERRY_TRY(file.read(tensor.offset + at, block));
        SKERRY_TRY(writer.append(std::as_bytes(std::span(block))));
      }
    }
    SKERRY_TRY(writer.finish());
    SKERRY_TRY(write_file_atomic(join_path(directory, "model.json"),
                                 json{{"run", chosen->run_id}, {"model", spec["model"]}, {"fragments", versions}}.dump(2) + "\n", 0644));
    return std::to_string(layout.parameters) + " parameters of run " + chosen->run_id + " are in " + directory;
  };
  const auto done = fetch();
  if (!done.ok()) return report(done.error());
  print(*done + "\n");
  return kExitOk;
}

// ---- check ----

int check_command(const Home& home, const std::string& proxy, const std::string& program_directory) {
  bool well = true;
  const auto say = [&well](const std::string& what, const Result<std::string>& found) {
    if (found.ok()) {
      print("ok    " + what + ": " + *found + "\n");
    } else {
      well = false;
      print("WRONG " + what + ": " + found.error().message + "\n");
    }
  };
  auto profile = load_profile(home.path);
  say("identity", profile.ok() ? Result<std::string>("node " + profile->name + ", certificate until " + format_utc(profile->expires_ms))
                               : Result<std::string>(profile.error()));
  const auto policy = load_policy(home.policy());
  say("policy", policy.ok() ? Result<std::string>(home.policy()) : Result<std::string>(policy.error()));
  if (policy.ok()) {
    SandboxPlan plan;
    plan.bubblewrap = policy->sandbox == Policy::Sandbox::kBubblewrap;
    plan.command = policy->trainer.empty() ? std::vector{program_directory + "/skerry-trainer"} : policy->trainer;
    plan.working_directory = "/";
    plan.policy_path = home.policy();
    const auto command = sandbox_command(plan);
    say("trainer", command.ok() ? Result<std::string>(plan.command.front()) : Result<std::string>(command.error()));
    if (plan.bubblewrap) {
      SandboxPlan probe = plan;
      probe.command = {"/usr/bin/true"};
      const auto tried = [&]() -> Result<std::string> {
        SpawnOptions options;
        SKERRY_ASSIGN(options.command, sandbox_command(probe));
        SKERRY_ASSIGN(Process process, Process::spawn(options));
        const auto status = process.wait(10'000);
        if (!status || !status->clean()) return failed_precondition(sandbox_advice(home.policy()));
        return std::string("bubblewrap works");
      };
      say("sandbox", tried());
    }
  }
  const auto catalogue = Catalogue::load(home.catalogue());
  if (!catalogue.ok()) say("data", catalogue.error());
  else if (catalogue->sets().empty()) say("data", not_found("no data set; `skerry-client data add` adds one"));
  else
    for (const auto& set : catalogue->sets()) {
      const auto now = check_data_set(set, unix_ms());
      say("data " + set.name, now.ok() ? Result<std::string>(counts_text(*now)) : Result<std::string>(now.error()));
    }
  if (profile.ok()) {
    EnrolOptions options;
    options.proxy = proxy;
    const auto identity = check_identity(*profile, options);
    say("coordinator", identity.ok() ? Result<std::string>(profile->address + " knows this node") : Result<std::string>(identity.error()));
  }
  if (const auto free = free_disk_bytes(home.path); free.ok())
    say("disk", *free > (1u << 30) ? Result<std::string>(std::to_string(*free / 1'000'000) + " MB free")
                                   : Result<std::string>(resource_exhausted("less than 1 GB is free at " + home.path)));
  return well ? kExitOk : kExitFailure;
}

}  // namespace skerry::client
