// A data holder's machine in a simulation: the real client machine, a trainer that takes its time, a disk and a link.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "client/daemon/machine/client_machine.h"
#include "tests/simulation/sim_trainer.h"
#include "tests/simulation/simulation.h"

namespace skerry::simulation {

class SimCoordinator;

class SimClient {
 public:
  SimClient(World& world, SimCoordinator& coordinator, std::string name);

  void boot();
  /// The machine loses power: its disk stays.
  void crash();
  bool up() const { return machine_ != nullptr; }
  void holder_says(const client::Event& event) { handle(event); }

  // From the network.
  void deliver(std::uint64_t link, v1::ToNode message);
  void link_broken(std::uint64_t link);

  std::size_t outbox() const { return outbox_.size(); }

 private:
  void handle(const client::Event& event);
  /// Later, in this life of the daemon.
  void later(std::int64_t delay_ms, client::Event event);
  template <typename T>
  void on(const T&) {}  // what needs no answer here
  void on(const client::ConnectAfter& command);
  void on(const client::CloseSession& command);
  void on(const client::Send& command);
  void on(const client::JudgeRun& command);
  void on(const client::StartTrainer& command);
  void on(const client::StopTrainer& command);
  void on(const client::TrainerRequest& command);
  void on(const client::CancelTask& command);
  void on(const client::Fetch& command);
  void on(const client::FetchMerge& command);
  void on(const client::MergeFragment& command);
  void on(const client::StoreUpdate& command);
  void on(const client::ForgetUpdate& command);
  void on(const client::WakeAt& command);
  void connect();
  void break_link();

  World& world_;
  SimCoordinator& coordinator_;
  std::string name_;
  std::uint64_t examples_;
  std::int64_t step_ms_;

  std::map<std::string, client::StoredUpdate> outbox_;  ///< on disk
  std::string incarnation_;                             ///< on disk
  std::map<std::string, std::string> told_;             ///< what became of each update, as the holder was told

  std::unique_ptr<client::ClientMachine> machine_;
  std::map<std::string, std::uint64_t> bases_;  ///< per fragment: the version the trainer's Δ is measured from
  std::set<std::string> sent_;                  ///< fragments whose change since their last read was sent
  SimTrainer overlapped_;                       ///< of an overlapped run
  std::map<std::pair<std::uint64_t, std::string>, std::uint64_t> delivered_;  ///< by exchange and fragment: versions
  std::uint64_t life_ = 0;
  std::uint64_t link_ = 0;  ///< 0: none
  std::uint64_t attempt_ = 0;
  std::uint64_t wake_ = 0;
  std::uint64_t trainer_ = 0;  ///< counts trainers, so that an old one's words are not heard
  std::string running_;        ///< the trainer's task
  std::int64_t up_clear_ = 0;  ///< messages on a link do not overtake each other
  std::int64_t down_clear_ = 0;
};

}  // namespace skerry::simulation
