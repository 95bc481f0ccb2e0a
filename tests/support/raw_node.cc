#include "tests/support/raw_node.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "client/daemon/session/session.h"
#include "common/crypto/content_id.h"

namespace skerry::test {
namespace {

constexpr std::string_view kSignaturePrefix{"skerry update v1\0", 17};

template <typename T>
T must(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(to_string(result.error()));
  return std::move(result).value();
}

}  // namespace

struct RawNode::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool welcomed = false;
  std::uint64_t examples = 0;
  std::optional<Error> ended;
  std::deque<v1::Task> tasks;
  std::deque<v1::Receipt> receipts;
  std::unique_ptr<client::Session> session;
  client::SessionRemains remains;  // of an ended session, for the test's thread to let go

  void received(v1::ToNode message) {
    std::lock_guard lock(mutex);
    if (message.has_welcome()) welcomed = true;
    if (message.has_run()) {
      v1::FromNode answer;
      v1::RunAnswer& run = *answer.mutable_run_answer();
      run.set_run_id(message.run().run_id());
      run.set_spec_hash(message.run().spec_hash());
      run.set_accepted(true);
      run.set_data_set("table");
      (*run.mutable_examples())["train"] = examples;
      if (session) session->send(std::move(answer));
    }
    if (message.has_task() && message.task().kind() == v1::TASK_TRAIN) tasks.push_back(std::move(*message.mutable_task()));
    if (message.has_receipt()) receipts.push_back(std::move(*message.mutable_receipt()));
    changed.notify_all();
  }

  template <typename Condition>
  void wait(const std::string& what, std::int64_t timeout_ms, Condition condition) {
    std::unique_lock lock(mutex);
    bool met = false;
    changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return (met = condition()) || ended; });
    if (met) return;
    throw std::runtime_error("the raw node waited in vain for " + what + (ended ? "; its session ended: " + to_string(*ended) : ""));
  }
};

RawNode::RawNode(const std::string& home)
    : profile_(must(load_profile(home))), key_(must(PrivateKey::load(profile_.key_path()))), state_(std::make_shared<State>()) {}

RawNode::~RawNode() { disconnect(); }

void RawNode::connect(std::uint64_t examples) {
  disconnect();
  state_->examples = examples;
  auto session = client::Session::open(must(client::session_options(profile_, "")),
                                       {.received = [state = state_](v1::ToNode message) { state->received(std::move(message)); },
                                        .ended =
                                            [state = state_](Error error, client::SessionRemains remains) {
                                              std::lock_guard lock(state->mutex);
                                              state->remains = std::move(remains);
                                              state->ended = std::move(error);
                                              state->changed.notify_all();
                                            }});
  {
    std::lock_guard lock(state_->mutex);
    state_->session = std::move(session);
  }
  v1::FromNode message;
  v1::Hello& hello = *message.mutable_hello();
  hello.set_protocol_version(1);
  hello.set_software("a raw node of a test");
  hello.set_threads(1);
  send(std::move(message));
  state_->wait("the Welcome", 10'000, [this] { return state_->welcomed; });
}

void RawNode::send(v1::FromNode message) { state_->session->send(std::move(message)); }

void RawNode::disconnect() {
  if (!state_->session) return;
  state_->session->close(200);
  {
    std::unique_lock lock(state_->mutex);
    state_->changed.wait_for(lock, std::chrono::seconds(10), [this] { return state_->ended.has_value(); });
  }
  state_->session.reset();
  state_->remains.reset();
  state_ = std::make_shared<State>();
}

std::optional<Error> RawNode::ended() const {
  std::lock_guard lock(state_->mutex);
  return state_->ended;
}

v1::Task RawNode::next_task(std::int64_t timeout_ms) {
  state_->wait("a task", timeout_ms, [this] { return !state_->tasks.empty(); });
  std::lock_guard lock(state_->mutex);
  v1::Task task = std::move(state_->tasks.front());
  state_->tasks.pop_front();
  return task;
}

v1::Receipt RawNode::receipt(const std::string& task, std::int64_t timeout_ms) {
  v1::Receipt found;
  state_->wait("a receipt of task " + task, timeout_ms, [&] {
    for (auto entry = state_->receipts.begin(); entry != state_->receipts.end(); ++entry) {
      if (entry->task_id() != task) continue;
      found = std::move(*entry);
      state_->receipts.erase(entry);
      return true;
    }
    return false;
  });
  return found;
}

v1::UpdateBody RawNode::honest_body(const v1::Task& task, std::uint64_t elements, float value) const {
  v1::UpdateBody body;
  body.set_task_id(task.task_id());
  body.set_run_id(task.run_id());
  body.set_spec_hash(task.spec_hash());
  body.set_node(profile_.name);
  body.set_kind(task.kind());
  body.set_exchange(task.exchange());
  body.set_examples(100);
  body.set_steps(1);
  v1::FragmentUpdate& fragment = *body.add_fragments();
  fragment.set_fragment(task.write(0));
  for (const v1::FragmentVersion& read : task.read())
    if (read.fragment() == task.write(0)) fragment.set_base_version(read.version());
  fragment.set_encoding("f32");
  const std::string data = f32_bytes(std::vector<float>(elements, value));
  fragment.mutable_data()->set_content_id(content_id(data));
  fragment.mutable_data()->set_size(data.size());
  fragment.mutable_data()->set_inline_data(data);
  return body;
}

v1::SignedUpdate RawNode::sign(const v1::UpdateBody& body) const {
  v1::SignedUpdate update;
  update.set_body(body.SerializeAsString());
  update.set_signature(must(key_.sign(std::string(kSignaturePrefix) + update.body())));
  return update;
}

void RawNode::offer(const v1::UpdateBody& body) {
  v1::FromNode message;
  *message.mutable_update() = sign(body);
  send(std::move(message));
}

HttpResponse RawNode::http(const std::string& method, const std::string& path, const std::string& body,
                           const std::vector<std::pair<std::string, std::string>>& headers) const {
  HttpOptions options;
  options.ca_pem = profile_.ca_pem;
  options.certificate_path = profile_.certificate_path();
  options.key_path = profile_.key_path();
  HttpRequest request;
  request.method = method;
  request.url = "https://" + profile_.address + path;
  request.body = body;
  request.headers = headers;
  return must(HttpClient(options).send(request));
}

std::string f32_bytes(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

}  // namespace skerry::test
