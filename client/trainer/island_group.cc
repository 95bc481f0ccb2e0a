#include "client/trainer/island_group.h"

#include <chrono>
#include <exception>
#include <optional>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdlib>
#endif

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

#ifdef USE_C10D_NCCL
/// Sums between GPUs; the vector is in host memory before and after.
class GpuSum {
 public:
  GpuSum(const c10::intrusive_ptr<c10d::Store>& store, const Meeting& meeting) {
    if (!at::hasCUDA()) return;
    // Under its old and its new name: a sum whose processes are gone must end with the timeout.
    ::setenv("NCCL_BLOCKING_WAIT", "1", 0);
    ::setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0);
    const auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(meeting.timeout_ms);
    group_ = c10::make_intrusive<c10d::ProcessGroupNCCL>(c10::make_intrusive<c10d::PrefixStore>("nccl", store), meeting.rank, meeting.size, options);
  }

  explicit operator bool() const { return static_cast<bool>(group_); }

  void operator()(at::Tensor values) const {
    std::vector<at::Tensor> tensors = {values.to(at::kCUDA)};
    group_->allreduce(tensors)->wait();
    values.copy_(tensors[0]);
  }

 private:
  c10::intrusive_ptr<c10d::ProcessGroupNCCL> group_;
};
#else
struct GpuSum {
  GpuSum(const c10::intrusive_ptr<c10d::Store>&, const Meeting&) {}
  explicit operator bool() const { return false; }
  void operator()(const at::Tensor&) const {}
};
#endif

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
      gpu_sum_.emplace(store_, meeting_);
    });
  }

  Result<void> sum(std::span<float> values) override {
    return guarded("the island's gradients do not add up", [&] {
      if (*gpu_sum_) return (*gpu_sum_)(tensor_of(values));
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
  std::optional<GpuSum> gpu_sum_;
};

}  // namespace

Result<std::unique_ptr<IslandGroup>> IslandGroup::meet(const Meeting& meeting) {
  auto group = std::make_unique<GlooGroup>(meeting);
  SKERRY_TRY(group->find_store());
  return std::unique_ptr<IslandGroup>(std::move(group));
}

}  // namespace skerry::trainer
