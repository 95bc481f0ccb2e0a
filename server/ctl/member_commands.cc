#include <cstdio>
#include <memory>

#include "common/identity/enrol.h"
#include "server/ctl/commands.h"
#include "server/ctl/console.h"

namespace skerry::ctl {
namespace {

Result<void> invite(const Context& context, const std::string& role, const std::string& name, double hours) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  v1::InviteMemberRequest request;
  request.set_role(role);
  request.set_name(name);
  request.set_valid_seconds(static_cast<std::uint64_t>(hours * 3600));
  SKERRY_ASSIGN(const v1::InviteMemberReply reply, connection.invite(request));
  if (context.json) {
    std::printf("%s", to_json(reply).c_str());
    return {};
  }
  // Only the token on stdout, so that it can be piped; the explanation beside it.
  std::printf("%s\n", reply.token().c_str());
  std::fprintf(stderr, "\nA token for %s '%s', good once, until %s UTC. Hand it over on a trusted way; then:\n  %s\n",
               role.c_str(), name.c_str(), human_time(reply.expires_ms()).c_str(),
               role == "node" ? "skerry-client join TOKEN" : "skerry join TOKEN");
  return {};
}

Result<void> revoke(const Context& context, const std::string& role, const std::string& name,
                    const std::string& reason) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  v1::RevokeMemberRequest request;
  request.set_role(role);
  request.set_name(name);
  request.set_reason(reason);
  SKERRY_ASSIGN(const v1::RevokeMemberReply reply, connection.revoke(request));
  if (context.json)
    std::printf("%s", to_json(reply).c_str());
  else
    std::printf("%s '%s' is revoked: %u certificates, %u live connections ended\n", role.c_str(), name.c_str(),
                reply.certificates(), reply.sessions());
  return {};
}

Result<void> list(const Context& context, const std::string& role) {
  SKERRY_ASSIGN(Connection connection, context.connect());
  SKERRY_ASSIGN(v1::ListMembersReply reply, connection.list_members(role));
  if (role == "operator") {  // viewers are operators who only read
    SKERRY_ASSIGN(const v1::ListMembersReply viewers, connection.list_members("viewer"));
    reply.mutable_members()->MergeFrom(viewers.members());
  }
  if (context.json) {
    std::printf("%s", to_json(reply).c_str());
    return {};
  }
  Table table({"NAME", "ROLE", "STATE", "LAST SEEN (UTC)", "CERTIFICATE UNTIL (UTC)", "DATA SETS", "SOFTWARE"});
  for (const v1::Member& member : reply.members()) {
    std::string sets;
    for (const v1::DataSetSummary& set : member.data_sets())
      sets += (sets.empty() ? "" : ", ") + printable(set.name()) + " (" + printable(set.kind()) + ")";
    table.add({member.name(), member.role(), member.state(), human_time(member.last_seen_ms()),
               human_time(member.certificate_expires_ms()), sets.empty() ? "-" : sets,
               member.software().empty() ? "-" : printable(member.software())});
  }
  std::printf("%s", table.text().c_str());
  return {};
}

void add_family(CLI::App& app, Context& context, const std::string& role, const std::string& help) {
  CLI::App* family = app.add_subcommand(role, help)->require_subcommand(1);
  struct Arguments {
    std::string name, reason;
    double hours = 24;
    bool viewer = false;
  };
  auto arguments = std::make_shared<Arguments>();
  const auto role_of = [role, arguments] { return arguments->viewer ? std::string("viewer") : role; };
  CLI::App* invite_command = family->add_subcommand("invite", "Print a one-time token to join with");
  invite_command->add_option("NAME", arguments->name, "[a-z0-9-], at most 63 characters")->required();
  invite_command->add_option("--hours", arguments->hours, "How long the token is good")
      ->check(CLI::Range(0.01, 720.0))
      ->capture_default_str();
  invite_command->callback([&context, arguments, role_of] {
    context.chosen = [&context, arguments, role_of] {
      return invite(context, role_of(), arguments->name, arguments->hours);
    };
  });
  CLI::App* revoke_command =
      family->add_subcommand("revoke", "Take a member's certificates back, at once and for good");
  revoke_command->add_option("NAME", arguments->name, "Whose")->required();
  revoke_command->add_option("--reason", arguments->reason, "The member is told")->required();
  revoke_command->callback([&context, arguments, role_of] {
    context.chosen = [&context, arguments, role_of] {
      return revoke(context, role_of(), arguments->name, arguments->reason);
    };
  });
  if (role == "operator")
    for (CLI::App* command : {invite_command, revoke_command})
      command->add_flag("--viewer", arguments->viewer, "A viewer, who may only read");
  family->add_subcommand("list", "All of them, with state, data sets and certificates")->callback([&context, role] {
    context.chosen = [&context, role] { return list(context, role); };
  });
}

}  // namespace

void add_member_commands(CLI::App& app, Context& context) {
  add_family(app, context, "node", "Data holders' daemons");
  add_family(app, context, "operator", "People who run the coordinator");
  auto token = std::make_shared<std::string>();
  CLI::App* join_command = app.add_subcommand("join", "Become an operator or viewer with a token; writes the profile");
  join_command->add_option("TOKEN", *token, "From `skerry operator invite`")->required();
  join_command->callback([&context, token] {
    context.chosen = [&context, token]() -> Result<void> {
      SKERRY_ASSIGN(const Profile profile, join(*token, context.profile));
      std::printf("You are %s '%s' of federation '%s'; the profile is in %s\n",
                  std::string(role_name(profile.role)).c_str(), profile.name.c_str(), profile.federation.c_str(),
                  context.profile.c_str());
      return {};
    };
  });
  app.add_subcommand("status", "The coordinator: version, nodes, runs, disk, traffic")->callback([&context] {
    context.chosen = [&context]() -> Result<void> {
      SKERRY_ASSIGN(Connection connection, context.connect());
      SKERRY_ASSIGN(const v1::CoordinatorStatus status, connection.status());
      if (context.json) {
        std::printf("%s", to_json(status).c_str());
        return {};
      }
      std::printf(
          "%s at %s, version %s\n  up            %s\n  nodes         %u connected\n  runs          %u active\n  disk "
          "free     %s\n  traffic       %s up, %s down\n"
          "  epoch         %s\n  certificate   %s left\n",
          printable(status.name()).c_str(), connection.profile().address.c_str(), printable(status.version()).c_str(),
          human_seconds(static_cast<double>(status.uptime_seconds())).c_str(), status.nodes_connected(),
          status.runs_active(), human_bytes(status.disk_free_bytes()).c_str(), human_bytes(status.bytes_up()).c_str(),
          human_bytes(status.bytes_down()).c_str(), status.epoch().c_str(),
          human_seconds(static_cast<double>(status.certificate_seconds_left())).c_str());
      return {};
    };
  });
}

}  // namespace skerry::ctl
