// `skerry-server ca …`: what an operator does to the certificate authority while the coordinator is stopped.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "common/base/result.h"

namespace CLI {
class App;
}

namespace skerry::server {

/// What to do with the home once the command line has been read; empty if no `ca` command was given.
using CaAction = std::function<Result<void>(const std::string& home, std::int64_t now_ms)>;

/// Adds `ca show`, `ca hosts HOST…` and `ca rollover start|switch|finish` to the program; parsing sets `chosen`, which must
/// outlive `app`'s parsing. All but `show` lock the home: FAILED_PRECONDITION while the coordinator runs. Else the errors of
/// CertificateAuthority.
void add_ca_commands(CLI::App& app, CaAction& chosen);

}  // namespace skerry::server
