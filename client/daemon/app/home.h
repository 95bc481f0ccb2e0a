// Where things lie in a client's home, and the log.
#pragma once

#include <string>
#include <string_view>

#include "client/daemon/machine/client_machine.h"
#include "client/daemon/policy/policy.h"

namespace skerry::client {

struct Home {
  std::string path;

  std::string policy() const { return path + "/policy.toml"; }
  std::string catalogue() const { return path + "/catalogue.json"; }
  std::string socket() const { return path + "/control.sock"; }
  std::string outbox() const { return path + "/outbox"; }
  std::string runs() const { return path + "/runs"; }
  std::string run(std::string_view run_id) const { return runs() + "/" + std::string(run_id); }
  std::string state(std::string_view run_id) const { return run(run_id) + "/state"; }
  /// What the encoding of its updates lost (error feedback); not the trainer's.
  std::string residuals(std::string_view run_id) const { return run(run_id) + "/residuals"; }
  /// The run's SentencePiece model, where it has one.
  std::string tokenizer(std::string_view run_id) const { return run(run_id) + "/tokenizer.model"; }
  std::string trainer_log(std::string_view run_id) const { return run(run_id) + "/trainer.log"; }

  /// Where models and the trainer's files of a run lie: in the home, or in memory if policy says so.
  std::string place(std::string_view run_id, Policy::WorkPlace where) const;
  std::string work(std::string_view run_id, Policy::WorkPlace where) const { return place(run_id, where) + "/work"; }
  std::string cache(std::string_view run_id, Policy::WorkPlace where) const { return place(run_id, where) + "/cache"; }
  /// The personal tensors as the run's latest train task left them.
  std::string personal(std::string_view run_id, Policy::WorkPlace where) const {
    return place(run_id, where) + "/personal.safetensors";
  }
};

/// Whether a name that came from outside may be a file's name: 1 to 128 of letters, digits, '.', '-', '_', not beginning
/// with a dot.
bool safe_name(std::string_view name);

/// Bytes of all files below a directory; 0 where it is not there.
std::uint64_t directory_bytes(const std::string& path);

/// Logs to stderr: lines for people, or JSON objects. Call once.
void start_log(bool as_json);
void log(Note::Level level, std::string_view text);

}  // namespace skerry::client
