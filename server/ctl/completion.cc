#include <functional>

#include "server/ctl/commands.h"

namespace skerry::ctl {

std::string bash_completion(const CLI::App& app) {
  // One case a command path: the words that may follow it.
  std::string cases;
  const std::function<void(const CLI::App&, const std::string&)> visit = [&](const CLI::App& command,
                                                                             const std::string& path) {
    std::string words;
    for (const CLI::App* sub : command.get_subcommands(nullptr)) words += sub->get_name() + " ";
    for (const CLI::Option* option : command.get_options())
      for (const std::string& name : option->get_lnames()) words += "--" + name + " ";
    cases += "    \"" + path + "\") words=\"" + words + "\" ;;\n";
    for (const CLI::App* sub : command.get_subcommands(nullptr)) visit(*sub, path + " " + sub->get_name());
  };
  visit(app, app.get_name());
  return "# bash completion for " + app.get_name() + ": source <(" + app.get_name() + " completion)\n_" +
         app.get_name() + R"(() {
  local path=")" +
         app.get_name() + R"(" word words=""
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in -*) ;; *) path="$path $word" ;; esac
  done
  case "$path" in
)" + cases +
         R"(    *) COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")); return ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _)" +
         app.get_name() + " " + app.get_name() + "\n";
}

}  // namespace skerry::ctl
