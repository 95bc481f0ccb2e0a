// The coordinator of a simulation: the run machine, a store that survives crashes, sessions.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "server/run/run_machine.h"
#include "skerry/v1/fleet.pb.h"
#include "tests/simulation/simulation.h"

namespace skerry::simulation {

class SimClient;

class SimCoordinator {
 public:
  SimCoordinator(World& world, server::RunSetup setup);

  void attach(const std::string& node, SimClient* client) { clients_[node] = client; }
  void boot();
  void crash();
  bool up() const { return machine_ != nullptr; }
  void operator_says(server::Event event) { handle(std::move(event)); }

  /// A client's connection; the session it names replaces the node's earlier one.
  void connected(const std::string& node, std::uint64_t link);
  void disconnected(const std::string& node, std::uint64_t link);
  void received(const std::string& node, std::uint64_t link, const v1::FromNode& message);

  /// The run has ended and that is durable.
  bool ended() const { return outcome_.has_value(); }
  const std::string& outcome() const { return *outcome_; }
  /// What must hold at the end of every history.
  void check_end();
  std::uint64_t counted() const { return counted_; }
  std::uint64_t discarded() const { return discarded_; }
  std::string undecided() const;

 private:
  struct Decision {
    bool counted = false;
    std::string node;
    std::uint64_t version = 0;
    std::string reason;
  };
  struct Stored {
    std::string node;
    double examples = 0;
  };
  /// What one commit makes durable, and what is said after it.
  struct Batch {
    std::vector<std::function<void()>> durable;
    std::vector<std::function<void()>> after;
  };
  struct Session {
    std::uint64_t link = 0;
    std::string incarnation;
    bool joined = false;
    bool paused = false;
  };

  void handle(server::Event event);
  void commit();
  void on(const server::AssignTask& command);
  void on(const server::Deliver& command);
  void on(const server::CancelTask& command);
  void on(const server::Accept& command);
  void on(const server::CountReport& command);
  void on(const server::Discard& command);
  void on(const server::Refuse& command);
  void on(const server::AskStore& command);
  void on(const server::Reduce& command);
  void on(const server::Count& command);
  void on(const server::Void& command);
  void on(const server::EvaluationDone& command);
  void on(const server::Finish& command);
  void on(const server::WakeAt& command);

  void decide(const std::string& task, Decision decision);
  void receipt(const std::string& node, const std::string& task, v1::UpdateState state, std::uint64_t version,
               const std::string& reason);
  void send(const std::string& node, v1::ToNode message);
  void check_task(const server::AssignTask& command);
  void check_delivery(const server::Deliver& command);
  bool repeated(const std::string& task) { return !given_.insert(task).second; }
  server::Instant clock() const { return world_.now() - boot_offset_; }

  World& world_;
  server::RunSetup setup_;
  std::map<std::string, SimClient*> clients_;

  // Survives a crash.
  server::MachineRows rows_;
  std::map<std::string, Stored> accepted_;
  std::map<std::string, Decision> decided_;
  std::vector<std::vector<std::uint64_t>> released_;  ///< by fragment: the content of each version
  std::set<std::string> given_;                       ///< tasks that were given out once
  std::uint64_t voids_ = 0;
  std::map<std::string, std::uint64_t> last_turn_;  ///< by node: the exchange of its last accepted update
  std::map<std::uint64_t, std::map<server::FragmentIndex, std::uint64_t>> made_;  ///< by exchange that is over
  std::map<std::string, std::map<server::FragmentIndex, std::set<std::uint64_t>>> told_;  ///< by node: versions
  std::map<std::uint64_t, std::string> asked_;      ///< by exchange: the arguments of its reduction
  std::vector<std::set<std::uint64_t>> stored_;     ///< by fragment: versions that are not pruned
  std::optional<std::string> outcome_;
  std::uint64_t boots_ = 0;
  std::uint64_t counted_ = 0;
  std::uint64_t discarded_ = 0;

  // Lost by a crash.
  std::unique_ptr<server::RunMachine> machine_;
  std::int64_t boot_offset_ = 0;
  Batch batch_;
  bool commit_planned_ = false;
  std::map<std::string, Session> sessions_;
  std::map<std::string, server::UpdateStored> offers_;
  std::map<std::uint64_t, std::vector<std::uint64_t>> reductions_;  ///< by exchange: content of the new versions
  std::vector<std::vector<std::uint64_t>> contents_;                ///< released_, and what the next commit releases
  std::uint64_t wake_ = 0;
  std::vector<server::Event> waiting_;
  bool handling_ = false;
};

}  // namespace skerry::simulation
