#include "server/plugin/plugin.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/encoding_text.h"
#include "common/crypto/sha256.h"
#include "common/os/files.h"
#include "server/plugin/answers.h"
#include "server/plugin/helper.h"

namespace skerry::server {

using namespace plugin_wire;
using strategies::Block;
using strategies::Cohort;
using strategies::Part;
using strategies::PartInfo;
using strategies::Table;

namespace {

constexpr std::uint64_t kMaxObjectBytes = std::uint64_t{256} << 20;
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
constexpr unsigned kMaxSlots = 64;
constexpr std::size_t kMostStarts = 8;  // of helpers in …
constexpr std::chrono::seconds kStartsWindow{60};
constexpr const char* kHashParameter = "plugin";

// A shared object's bytes where nobody can change them any more, and their hash.
struct SealedObject {
  FileDescriptor fd;
  std::string sha256;
};

Result<SealedObject> read_object(const std::string& path) {
  // A link could be turned to another file after somebody looked at this one.
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file && errno == ELOOP) return invalid_argument("plug-in " + path + " is a symbolic link: name the file itself");
  if (!file) return file_error(errno, "open", "plug-in " + path);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) return file_error(errno, "look at", "plug-in " + path);
  if (!S_ISREG(status.st_mode)) return invalid_argument("plug-in " + path + " is no regular file");
  SealedObject object;
  object.fd = FileDescriptor(::memfd_create("skerry-plugin", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!object.fd) return file_error(errno, "make", "a memory file for plug-in " + path);
  std::vector<std::byte> piece(kPieceBytes);
  Sha256 hash;
  std::uint64_t total = 0;
  for (;;) {
    const ssize_t got = ::read(file.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return file_error(errno, "read", "plug-in " + path);
    if (got == 0) break;
    total += static_cast<std::uint64_t>(got);
    if (total > kMaxObjectBytes) return invalid_argument("plug-in " + path + " is larger than " + std::to_string(kMaxObjectBytes >> 20) + " MiB");
    const std::span<const std::byte> bytes(piece.data(), static_cast<std::size_t>(got));
    hash.update(bytes);
    for (std::size_t written = 0; written < bytes.size();) {
      const ssize_t put = ::write(object.fd.get(), bytes.data() + written, bytes.size() - written);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return file_error(errno, "keep in memory", "plug-in " + path);
      written += static_cast<std::size_t>(put);
    }
  }
  if (::fcntl(object.fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return file_error(errno, "seal", "the bytes of plug-in " + path);
  object.sha256 = to_hex(hash.finish());
  return object;
}

// skerry-plugin-host is installed beside skerry-server.
std::string program_beside_us() {
  std::array<char, 4096> path{};
  const ssize_t size = ::readlink("/proc/self/exe", path.data(), path.size() - 1);
  return parent_directory(size > 0 ? std::string(path.data(), static_cast<std::size_t>(size)) : ".") + "/skerry-plugin-host";
}

std::string part_text(const Part& part) {
  nlohmann::json parameters = nlohmann::json::object();
  for (const auto& [name, value] : part.parameters)
    if (name != kHashParameter) parameters[name] = std::visit([](const auto& known) { return nlohmann::json(known); }, value);
  return nlohmann::json{{"name", part.name}, {"parameters", std::move(parameters)}}.dump();
}

std::string cohort_text(const Cohort& cohort) {
  nlohmann::json contributions = nlohmann::json::array();
  for (const strategies::Contribution& from : cohort.contributions)
    contributions.push_back({{"examples", from.examples}, {"tokens", from.tokens}, {"steps", from.steps},
                             {"factor", from.factor}, {"node", from.node}, {"metrics", from.metrics}});
  nlohmann::json tensors = nlohmann::json::array();
  for (const strategies::TensorRange& from : cohort.tensors)
    tensors.push_back({{"name", from.name}, {"first", from.first}, {"count", from.count}});
  return nlohmann::json{{"contributions", std::move(contributions)}, {"tensors", std::move(tensors)}, {"seed", cohort.seed}, {"step", cohort.step}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Copies what a helper wrote, so that it cannot change any more, and says whether every value is finite.
bool copy_finite(const float* from, std::size_t count, float* to) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, from + i, sizeof bits);
    std::memcpy(to + i, &bits, sizeof bits);
    bad |= static_cast<std::uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

class LoadedPlugin final : public Plugin, public std::enable_shared_from_this<LoadedPlugin> {
 public:
  LoadedPlugin(const PluginConfig& config, const PluginOptions& options, FileDescriptor object)
      : config_(config), object_(std::move(object)) {
    const unsigned threads = options.threads != 0 ? options.threads : std::thread::hardware_concurrency();
    plan_.name = config.path;
    plan_.program = options.host_program.empty() ? program_beside_us() : options.host_program;
    plan_.object_fd = object_.get();
    plan_.slots = std::clamp(threads, 1u, kMaxSlots);
    plan_.memory_mb = config.memory_mb;
    plan_.deadline_ms = config.deadline_ms;
    plan_.environment = options.environment;
  }

  const PluginConfig& config() const override { return config_; }
  const PluginDescription& description() const override { return description_; }
  Result<strategies::Rule> make(const Part& part) override;

  Result<void> describe() {
    SKERRY_ASSIGN(const std::shared_ptr<Helper> helper, this->helper());
    Helper::Slot slot(*helper);
    SKERRY_ASSIGN(const Reply reply, slot.call({.call = Call::kDescribe}, "its description"));
    auto described = parse_description(slot.text_of(reply));
    if (!described.ok()) return with_context(described.error(), "plug-in " + config_.path);
    description_ = std::move(described).value();
    return {};
  }

 private:
  class Pass;  // one that a helper holds for us

  Result<std::shared_ptr<Helper>> helper();
  Result<strategies::Pass> next(const std::string& rule, const std::string& part, const MadeRule& made, const Cohort& cohort,
                                std::span<const Table> tables);

  const PluginConfig config_;
  const FileDescriptor object_;
  HelperPlan plan_;
  PluginDescription description_;

  std::mutex mutex_;
  std::shared_ptr<Helper> helper_;
  std::deque<std::chrono::steady_clock::time_point> starts_;
};

// Each helper serves until it fails; a plug-in whose helpers keep failing gets a rest.
Result<std::shared_ptr<Helper>> LoadedPlugin::helper() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (helper_ && helper_->alive()) return helper_;
  const auto now = std::chrono::steady_clock::now();
  while (!starts_.empty() && now - starts_.front() > kStartsWindow) starts_.pop_front();
  if (starts_.size() >= kMostStarts)
    return resource_exhausted("plug-in " + plan_.name + " ended " + std::to_string(kMostStarts) +
                              " helpers within a minute and rests for as long; mend it, or take its runs out");
  starts_.push_back(now);
  SKERRY_ASSIGN(helper_, Helper::start(plan_));
  return helper_;
}

class LoadedPlugin::Pass {
 public:
  Pass(std::shared_ptr<Helper> helper, std::string rule, std::uint64_t id) : helper_(std::move(helper)), rule_(std::move(rule)), id_(id) {}
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  ~Pass() {
    if (!helper_->alive()) return;
    Helper::Slot slot(*helper_);
    (void)slot.call({.call = Call::kFree, .pass = id_}, "free_pass").ok();
  }

  // The engine's blocks fit as they are unless there are very many updates in few elements.
  static std::size_t elements_at_once(const Block& block) {
    const std::uint64_t rows = rows_of(block.updates.size(), block.state.size());
    return static_cast<std::size_t>(kFloatBytes / sizeof(float) / rows / 16 * 16);
  }

  void add(const Block& block, Table& sum) const {
    for_each_piece(block, Call::kAdd, [&](Helper::Slot& slot, Request& request, std::size_t, std::size_t) {
      request.cells = sum.values.size();
      std::copy(sum.values.begin(), sum.values.end(), slot.sums());
      call(slot, request, "add");
      std::memcpy(sum.values.data(), slot.sums(), sum.values.size() * sizeof(double));
      for (std::size_t i = 0; i < sum.values.size(); ++i)
        if (!std::isfinite(sum.values[i])) distrust("cell " + std::to_string(i) + " of its table is not finite", "add");
    });
  }

  void reduce(const Block& block, std::span<float> out, std::span<float* const> state) const {
    for_each_piece(block, Call::kReduce, [&](Helper::Slot& slot, Request& request, std::size_t shift, std::size_t count) {
      call(slot, request, "reduce");
      const float* row = slot.floats() + (block.updates.size() + 1 + block.state.size()) * row_floats(count);
      bool finite = copy_finite(row, count, out.data() + shift);
      for (float* vector : state) finite = copy_finite(row += row_floats(count), count, vector + shift) && finite;
      if (!finite)
        distrust("a value of elements " + std::to_string(request.first) + " to " + std::to_string(request.first + count - 1) + " is not finite", "reduce");
    });
  }

 private:
  using Use = std::function<void(Helper::Slot& slot, Request& request, std::size_t shift, std::size_t count)>;

  // The block, or pieces of it that fit into a slot, laid out there.
  void for_each_piece(const Block& block, Call call, const Use& use) const {
    const std::size_t most = elements_at_once(block);
    if (most == 0 || block.fragment.size() > kTextBytes)
      throw std::runtime_error(rule_ + " is a plug-in's rule and cannot take " + std::to_string(block.updates.size()) + " updates");
    Helper::Slot slot(*helper_);
    for (std::size_t shift = 0; shift < block.count; shift += most) {
      const std::size_t count = std::min(most, block.count - shift);
      Request request;
      request.call = call;
      request.pass = id_;
      request.text_bytes = block.fragment.size();
      request.first = block.first + shift;
      request.count = count;
      request.tensor = block.tensor;
      request.updates = block.updates.size();
      request.states = block.state.size();
      std::copy(block.fragment.begin(), block.fragment.end(), slot.text());
      float* row = slot.floats();
      const auto put = [&](const float* values) {
        std::memcpy(row, values + shift, count * sizeof(float));
        row += row_floats(count);
      };
      for (const float* update : block.updates) put(update);
      put(block.base);
      for (const float* vector : block.state) put(vector);
      use(slot, request, shift, count);
    }
  }

  void call(Helper::Slot& slot, const Request& request, const char* what) const {
    const auto done = slot.call(request, what);
    if (!done.ok()) throw std::runtime_error(done.error().message);
  }

  [[noreturn]] void distrust(const std::string& why, const char* what) const {
    throw std::runtime_error(helper_->distrust(internal_error(why), (rule_ + ": " + what).c_str()).message);
  }

  const std::shared_ptr<Helper> helper_;
  const std::string rule_;
  const std::uint64_t id_;
};

Result<strategies::Rule> LoadedPlugin::make(const Part& part) {
  SKERRY_ASSIGN(const std::shared_ptr<Helper> helper, this->helper());
  const std::string text = part_text(part);
  Helper::Slot slot(*helper);
  std::copy(text.begin(), text.end(), slot.text());
  SKERRY_ASSIGN(const Reply reply, slot.call({.call = Call::kMake, .part_bytes = text.size()}, part.name.c_str()));
  const auto made = parse_made_rule(slot.text_of(reply));
  if (!made.ok()) return helper->distrust(made.error(), part.name.c_str());
  strategies::Rule rule;
  rule.name = part.name;
  rule.needs = made->needs;
  rule.state_vectors = made->state_vectors;
  rule.waits = true;
  rule.next = [self = shared_from_this(), name = part.name, text, made = *made](const Cohort& cohort, std::span<const Table> tables) {
    return self->next(name, text, made, cohort, tables);
  };
  return rule;
}

Result<strategies::Pass> LoadedPlugin::next(const std::string& rule, const std::string& part, const MadeRule& made, const Cohort& cohort,
                                            std::span<const Table> tables) {
  SKERRY_ASSIGN(const std::shared_ptr<Helper> helper, this->helper());
  const std::string cohort_json = cohort_text(cohort);
  Request request{.call = Call::kNext, .tables = static_cast<std::uint32_t>(tables.size()), .part_bytes = part.size(), .text_bytes = cohort_json.size()};
  std::uint64_t cells = 0;
  for (const Table& table : tables) cells += table.values.size();
  if (part.size() + cohort_json.size() + 16 * tables.size() > kTextBytes || cells > kSumBytes / sizeof(double))
    return invalid_argument(rule + " is a plug-in's rule and cannot take the tables or descriptions of " + std::to_string(cohort.size()) + " updates");
  std::shared_ptr<Pass> pass;  // shared by the copies of its functions; freed with no slot in hand
  Helper::Slot slot(*helper);
  char* text = std::copy(cohort_json.begin(), cohort_json.end(), std::copy(part.begin(), part.end(), slot.text()));
  double* sums = slot.sums();
  for (const Table& table : tables) {
    const std::uint64_t shape[2] = {table.rows, table.columns};
    std::memcpy(text, shape, sizeof shape);
    text += sizeof shape;
    sums = std::copy(table.values.begin(), table.values.end(), sums);
  }
  SKERRY_ASSIGN(const Reply reply, slot.call(request, rule.c_str()));
  pass = std::make_shared<Pass>(helper, rule, reply.pass);
  const std::vector<double> numbers(slot.sums(), slot.sums() + reply.numbers);
  auto answer = parse_pass(slot.text_of(reply), numbers, cohort.size() + made.state_vectors.size(), made.needs.tensors ? cohort.tensors.size() : 0);
  if (!answer.ok()) return helper->distrust(answer.error(), rule.c_str());
  if (const auto* shape = std::get_if<TableShape>(&*answer))
    return strategies::Pass(strategies::StatisticsPass{
        shape->rows, shape->columns, [pass](const Block& block, Table& sum) { pass->add(block, sum); }});
  if (auto* linear = std::get_if<strategies::LinearOutput>(&*answer)) return strategies::Pass(std::move(*linear));
  return strategies::Pass(strategies::ValueOutput{
      [pass](const Block& block, std::span<float> out, std::span<float* const> state) { pass->reduce(block, out, state); }});
}

}  // namespace

Result<std::shared_ptr<Plugin>> Plugin::load(const PluginConfig& config, const PluginOptions& options) {
  SKERRY_ASSIGN(SealedObject object, read_object(config.path));
  if (object.sha256 != config.sha256)
    return failed_precondition("plug-in " + config.path + " has the SHA-256 " + object.sha256 + ", server.toml says " + config.sha256 +
                               ": if the change is yours, `skerry-server plugin check " + config.path + "` prints the lines to put there");
  auto plugin = std::make_shared<LoadedPlugin>(config, options, std::move(object.fd));
  SKERRY_TRY(plugin->describe());
  return std::shared_ptr<Plugin>(std::move(plugin));
}

Result<PluginConfig> plugin_config(const std::string& path) {
  PluginConfig config;
  config.path = std::filesystem::absolute(path).lexically_normal().string();
  SKERRY_ASSIGN(const SealedObject object, read_object(config.path));
  config.sha256 = object.sha256;
  return config;
}

Result<strategies::RuleCatalogue> rules_with(const std::vector<std::shared_ptr<Plugin>>& plugins) {
  strategies::RuleCatalogue rules;
  for (const std::shared_ptr<Plugin>& plugin : plugins) {
    for (PartInfo info : plugin->description().rules) {
      info.parameters.push_back({.name = kHashParameter,
                                 .meaning = "SHA-256 of the plug-in " + plugin->description().name + " that computes it",
                                 .fallback = plugin->config().sha256,
                                 .choices = {plugin->config().sha256}});
      auto added = rules.add({std::move(info), [plugin](const Part& part) { return plugin->make(part); }});
      if (!added.ok()) return with_context(added.error(), "plug-in " + plugin->config().path);
    }
  }
  return rules;
}

Result<strategies::RuleCatalogue> rules_with(const std::vector<PluginConfig>& plugins, const PluginOptions& options) {
  std::vector<std::shared_ptr<Plugin>> loaded;
  for (const PluginConfig& config : plugins) {
    SKERRY_ASSIGN(std::shared_ptr<Plugin> plugin, Plugin::load(config, options));
    loaded.push_back(std::move(plugin));
  }
  return rules_with(loaded);
}

}  // namespace skerry::server
