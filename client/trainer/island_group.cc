#include "client/trainer/island_group.h"

#include <chrono>
#include <exception>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace skerry::trainer {
namespace {

/// Runs `body`; what c10d throws becomes UNAVAILABLE.
template <typename Body>
Result<void> guarded(const char* doing, const Body& body) {
  try {
    body();
    return {};
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return unavailable(std::string(doing) + ": " + text.substr(0, text.find('\n')));
  }
}

class GlooGroup final : public IslandGroup {
 public:
  explicit GlooGroup(const Meeting& meeting) : meeting_(meeting), timeout_(meeting.timeout_ms) {}

  Result<void> find_store() {
    return guarded("the island does not meet", [&] {
      if (!meeting_.file.empty()) {
        store_ = c10::make_intrusive<c10d::FileStore>(meeting_.file, meeting_.size);
      } else {
        c10d::TCPStoreOptions options;
        options.port = meeting_.port;
        options.isServer = meeting_.rank == 0;
        options.numWorkers = static_cast<std::size_t>(meeting_.size);
        options.waitWorkers = false;
        options.timeout = timeout_;
        const auto store = c10::make_intrusive<c10d::TCPStore>(meeting_.host, options);
        meeting_.port = store->getPort();
        store_ = store;
      }
      store_->setTimeout(timeout_);
    });
  }

  std::uint16_t port() const override { return meeting_.port; }

  Result<void> form() override {
    return guarded("the island does not connect", [&] {
      const auto options = c10d::ProcessGroupGloo::Options::create(timeout_);
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(meeting_.own_host));
      options->threads = 1;
      group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store_, meeting_.rank, meeting_.size, options);
    });
  }

  Result<void> sum(std::span<float> values) override {
    return guarded("the island's gradients do not add up", [&] {
      std::vector<at::Tensor> tensors = {tensor_of(values)};
      c10d::AllreduceOptions options;
      options.timeout = timeout_;
      group_->allreduce(tensors, options)->wait();
    });
  }

  Result<void> copy(std::span<float> values) override {
    return guarded("the island's tensors do not arrive", [&] {
      std::vector<at::Tensor> tensors = {tensor_of(values)};
      c10d::BroadcastOptions options;
      options.timeout = timeout_;
      group_->broadcast(tensors, options)->wait();
    });
  }

 private:
  static at::Tensor tensor_of(std::span<float> values) {
    return at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kFloat);
  }

  Meeting meeting_;
  std::chrono::milliseconds timeout_;
  c10::intrusive_ptr<c10d::Store> store_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};

}  // namespace

Result<std::unique_ptr<IslandGroup>> IslandGroup::meet(const Meeting& meeting) {
  auto group = std::make_unique<GlooGroup>(meeting);
  SKERRY_TRY(group->find_store());
  return std::unique_ptr<IslandGroup>(std::move(group));
}

}  // namespace skerry::trainer
