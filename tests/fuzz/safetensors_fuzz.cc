// Any bytes as a safetensors file: an error or a header whose every promise holds.
#include <cstdint>
#include <cstdlib>

#include "common/tensor/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto parsed = skerry::parse_safetensors_header(bytes, size);
  if (!parsed.ok()) {
    if (parsed.error().message.empty() || parsed.error().message.size() > 2000) std::abort();
    return 0;
  }
  std::uint64_t covered = 0;
  std::vector<skerry::TensorSpec> tensors;
  for (const skerry::TensorEntry& tensor : parsed->tensors) {
    if (tensor.offset != covered || tensor.bytes != tensor.elements * skerry::dtype_bytes(tensor.dtype)) std::abort();
    covered += tensor.bytes;
    tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  if (covered != parsed->data_bytes || parsed->data_begin + parsed->data_bytes != size) std::abort();

  // What was read can be written, and reads again as the same.
  const auto header = skerry::make_safetensors_header(tensors, parsed->metadata);
  if (!header.ok()) std::abort();
  const auto again = skerry::parse_safetensors_header(skerry::as_bytes_of(*header), header->size() + covered);
  if (!again.ok() || again->tensors.size() != parsed->tensors.size() || again->metadata != parsed->metadata)
    std::abort();
  return 0;
}
