// What the helper gives up before it runs a stranger's code.
#pragma once

#include <string>

namespace skerry::plugin_host {

/// First step, before threads: no new privileges, no core dumps, nothing of us to trace, no file may grow; and on kernels with
/// Landlock no file can be opened but the system's libraries. Empty, or what could not be done.
std::string give_up_files();

/// Last step, for all threads: system calls but those that computing, throwing, allocating and loading a library need fail with
/// EPERM, among them sockets, new processes and threads, opening for writing, and signals to others. Empty, or what
/// could not be done.
std::string give_up_system_calls();

}  // namespace skerry::plugin_host
