#include "server/plugin/host/serve.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <iterator>

#include <dlfcn.h>
#include <sys/socket.h>

namespace skerry::plugin_host {

using namespace server::plugin_wire;

namespace {

constexpr std::size_t kMaxTextBytes = 256 * 1024;  // of an answer
constexpr std::size_t kMaxRules = 1000;            // made from different parameters

std::string version_text(std::uint32_t major, std::uint32_t minor) { return std::to_string(major) + "." + std::to_string(minor); }

// Why this is no plug-in that this host can run; empty where it is one.
std::string check_table(const skerry_plugin* plugin) {
  const std::string ours = version_text(SKERRY_PLUGIN_MAJOR, SKERRY_PLUGIN_MINOR);
  if (plugin == nullptr) return "its skerry_plugin_entry returned nothing";
  if (plugin->size < offsetof(skerry_plugin, reserved))
    return "its skerry_plugin has " + std::to_string(plugin->size) + " bytes, version " + ours + " has " + std::to_string(sizeof(skerry_plugin));
  const std::string theirs = version_text(plugin->major, plugin->minor);
  if (plugin->major != SKERRY_PLUGIN_MAJOR)
    return "it was built for version " + theirs + " of the plug-in interface and this coordinator has " + ours + ": build it with this coordinator's SDK";
  if (plugin->minor > SKERRY_PLUGIN_MINOR)
    return "it was built for version " + theirs + " of the plug-in interface and this coordinator has " + ours + ": update the coordinator, or build it with an older SDK";
  if (plugin->size < sizeof(skerry_plugin))
    return "its skerry_plugin has " + std::to_string(plugin->size) + " bytes, version " + ours + " has " + std::to_string(sizeof(skerry_plugin));
  if (!plugin->describe || !plugin->make || !plugin->next || !plugin->add || !plugin->reduce || !plugin->free_pass || !plugin->free_rule)
    return "its skerry_plugin lacks a function";
  return {};
}

std::string_view text_at(std::byte* memory, std::uint64_t offset, std::uint64_t size) {
  return {reinterpret_cast<const char*>(memory) + offset, static_cast<std::size_t>(size)};
}

}  // namespace

std::string Host::load() {
  const std::string path = "/proc/self/fd/" + std::to_string(kObjectFd);
  void* object = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (object == nullptr) return std::string("it cannot be loaded: ") + ::dlerror();
  const auto entry = reinterpret_cast<skerry_plugin_entry_function>(::dlsym(object, "skerry_plugin_entry"));
  if (entry == nullptr) return "it exports no skerry_plugin_entry, so it is no plug-in (SKERRY_PLUGIN in strategies/sdk/plugin.hpp makes it)";
  const skerry_plugin* plugin = entry();
  std::string wrong = check_table(plugin);
  if (wrong.empty()) plugin_ = plugin;
  return wrong;
}

void Host::serve(int socket, std::byte* memory) {
  for (;;) {
    Request request;
    ssize_t got = 0;
    do {
      got = ::recv(socket, &request, sizeof request, 0);
    } while (got < 0 && errno == EINTR);
    if (got != static_cast<ssize_t>(sizeof request)) return;
    Answer said;
    const Reply reply = answer(request, memory, said);
    if (::send(socket, &reply, sizeof reply, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof reply)) return;
  }
}

Reply Host::answer(const Request& request, std::byte* memory, Answer& answer) {
  Reply reply;
  int outcome = SKERRY_FAILED;
  try {
    outcome = carry_out(request, memory, answer, reply.pass);
  } catch (const std::exception& error) {
    answer.text = error.what();
  } catch (...) {
    answer.text = "it threw something that is no std::exception";
  }
  if (answer.too_long) {
    outcome = SKERRY_FAILED;
    answer.text = "its answer is longer than " + std::to_string(kMaxTextBytes) + " bytes of text or " + std::to_string(kSumBytes / sizeof(double)) + " numbers";
  }
  const bool known = outcome == SKERRY_DONE || outcome == SKERRY_REFUSED;
  reply.outcome = known ? static_cast<Outcome>(outcome) : Outcome::kFailed;
  reply.text_bytes = answer.text.size();
  std::copy(answer.text.begin(), answer.text.end(), reinterpret_cast<char*>(memory));
  if (outcome == SKERRY_DONE && !answer.numbers.empty()) {
    reply.numbers = answer.numbers.size();
    std::copy(answer.numbers.begin(), answer.numbers.end(), reinterpret_cast<double*>(memory + kSumsAt));
  }
  return reply;
}

int Host::carry_out(const Request& request, std::byte* memory, Answer& answer, std::uint64_t& pass) {
  const skerry_answer sink = {
      sizeof(skerry_answer), &answer,
      [](void* context, const char* data, std::size_t size) {
        auto& said = *static_cast<Answer*>(context);
        said.too_long = said.too_long || size > kMaxTextBytes - said.text.size();
        if (!said.too_long) said.text.append(data, size);
      },
      [](void* context, const double* data, std::size_t count) {
        auto& said = *static_cast<Answer*>(context);
        said.too_long = said.too_long || count > kSumBytes / sizeof(double) - said.numbers.size();
        if (!said.too_long) said.numbers.insert(said.numbers.end(), data, data + count);
      }};
  if (request.call == Call::kLoad) {
    answer.text = load();
    return answer.text.empty() ? SKERRY_DONE : SKERRY_REFUSED;
  }
  if (plugin_ == nullptr) {
    answer.text = "nothing is loaded";
    return SKERRY_FAILED;
  }
  switch (request.call) {
    case Call::kDescribe: return plugin_->describe(&sink);
    case Call::kMake: {
      void* rule = nullptr;
      const std::string_view part = text_at(memory, 0, request.part_bytes);
      const int outcome = plugin_->make({part.data(), part.size()}, &rule, &sink);
      if (outcome == SKERRY_DONE) plugin_->free_rule(rule);
      return outcome;
    }
    case Call::kNext: return next(request, memory, sink, pass);
    case Call::kAdd:
    case Call::kReduce: return walk(request, memory, sink);
    case Call::kFree: plugin_->free_pass(pass_of(request.pass, /*forget=*/true)); return SKERRY_DONE;
    default: answer.text = "an unknown call"; return SKERRY_FAILED;
  }
}

// A rule that was made before from the same part, or a new one.
int Host::rule_of(std::string_view part, const skerry_answer& sink, void*& rule) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto found = rules_.find(part); found != rules_.end()) {
    rule = found->second;
    return SKERRY_DONE;
  }
  if (rules_.size() >= kMaxRules) throw std::length_error("its helper made " + std::to_string(kMaxRules) + " rules of different parameters");
  Answer unused;  // what it needs was asked before, by make
  skerry_answer quiet = sink;
  quiet.context = &unused;
  const int outcome = plugin_->make({part.data(), part.size()}, &rule, &quiet);
  if (outcome == SKERRY_DONE) rules_.emplace(part, rule);
  else static_cast<Answer*>(sink.context)->text = unused.text;
  return outcome;
}

int Host::next(const Request& request, std::byte* memory, const skerry_answer& sink, std::uint64_t& pass) {
  void* rule = nullptr;
  const std::string part(text_at(memory, 0, request.part_bytes));
  if (const int outcome = rule_of(part, sink, rule); outcome != SKERRY_DONE) return outcome;
  const std::string_view cohort = text_at(memory, request.part_bytes, request.text_bytes);
  std::vector<skerry_table> tables(request.tables);
  const double* sums = reinterpret_cast<const double*>(memory + kSumsAt);
  const char* shapes = reinterpret_cast<const char*>(memory) + request.part_bytes + request.text_bytes;
  for (skerry_table& table : tables) {
    table.size = sizeof(skerry_table);
    std::memcpy(&table.rows, shapes, sizeof table.rows);
    std::memcpy(&table.columns, shapes + sizeof table.rows, sizeof table.columns);
    shapes += sizeof table.rows + sizeof table.columns;
    table.values = sums;
    sums += table.rows * table.columns;
  }
  void* made = nullptr;
  const int outcome = plugin_->next(rule, {cohort.data(), cohort.size()}, tables.data(), tables.size(), &made, &sink);
  if (outcome != SKERRY_DONE) return outcome;
  const std::lock_guard<std::mutex> lock(mutex_);
  pass = next_pass_++;
  passes_.emplace(pass, made);
  return SKERRY_DONE;
}

// add and reduce: rows of the block one behind the other, then (reduce) the result and the state after.
int Host::walk(const Request& request, std::byte* memory, const skerry_answer& sink) {
  void* pass = pass_of(request.pass, /*forget=*/false);
  float* row = reinterpret_cast<float*>(memory + kFloatsAt);
  const std::uint64_t stride = row_floats(request.count);
  std::vector<const float*> inputs(request.updates + 1 + request.states);
  for (const float*& input : inputs) {
    input = row;
    row += stride;
  }
  skerry_block block{};
  block.size = sizeof(skerry_block);
  block.fragment = {reinterpret_cast<const char*>(memory), static_cast<std::size_t>(request.text_bytes)};
  block.first = request.first;
  block.count = request.count;
  block.tensor = request.tensor;
  block.update_count = request.updates;
  block.updates = inputs.data();
  block.base = inputs[request.updates];
  block.state_count = request.states;
  block.state = inputs.data() + request.updates + 1;
  if (request.call == Call::kAdd) return plugin_->add(pass, &block, reinterpret_cast<double*>(memory + kSumsAt), &sink);
  float* out = row;
  std::vector<float*> state(request.states);
  for (float*& vector : state) vector = row += stride;
  return plugin_->reduce(pass, &block, out, state.data(), &sink);
}

void* Host::pass_of(std::uint64_t id, bool forget) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = passes_.find(id);
  if (found == passes_.end()) throw std::out_of_range("there is no pass " + std::to_string(id));
  void* pass = found->second;
  if (forget) passes_.erase(found);
  return pass;
}

}  // namespace skerry::plugin_host
