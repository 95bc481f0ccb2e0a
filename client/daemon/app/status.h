// What a holder sees of a daemon: as JSON, and as lines for people.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "client/daemon/machine/client_machine.h"

namespace skerry::client {

nlohmann::json status_json(const MachineStatus& status);

/// Takes what the daemon answers to {"command":"status"}.
std::string status_text(const nlohmann::json& status);

}  // namespace skerry::client
