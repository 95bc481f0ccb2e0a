// `skerry-server backup|restore|verify`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "common/base/result.h"

namespace CLI {
class App;
}

namespace skerry::server {

/// What to do with the home once the command line has been read; empty if none of these commands was given.
using BackupAction = std::function<Result<void>(const std::string& home, std::int64_t now_ms)>;

/// Adds the commands; parsing sets `chosen`, which must outlive `app`'s parsing. `home` is where --home goes.
void add_backup_commands(CLI::App& app, std::string& home, BackupAction& chosen);

}  // namespace skerry::server
