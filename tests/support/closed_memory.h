// SPDX-License-Identifier: Apache-2.0
/// What the stand-ins of devices share: memory that nobody but their own operations can touch, and the operators that
/// make tensors in it.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <ATen/ops/from_blob.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

namespace fettle::stand_in {

/// A device's memory: the addresses that tensors have are closed to everybody, and the same bytes lie open elsewhere.
class ClosedMemory {
 public:
  explicit ClosedMemory(size_t capacity) : capacity_(capacity) {
    const int file = ::memfd_create("stand-in", MFD_CLOEXEC);
    TORCH_CHECK(file >= 0 && ::ftruncate(file, static_cast<off_t>(capacity)) == 0, "stand-in: no memory file");
    const auto map = [file, capacity](int protection) {
      return static_cast<std::byte*>(::mmap(nullptr, capacity, protection, MAP_SHARED | MAP_NORESERVE, file, 0));
    };
    closed_ = map(PROT_NONE);
    open_ = map(PROT_READ | PROT_WRITE);
    TORCH_CHECK(closed_ != MAP_FAILED && open_ != MAP_FAILED, "stand-in: no memory");
    ::close(file);
  }
  ClosedMemory(const ClosedMemory&) = delete;
  ClosedMemory& operator=(const ClosedMemory&) = delete;

  /// Null when there is no room.
  void* allocate(size_t bytes) {
    constexpr size_t kGrain = 512;  // as CUDA's allocator
    const std::scoped_lock lock(mutex_);
    const size_t size = std::max(kGrain, (bytes + kGrain - 1) / kGrain * kGrain);
    const auto free = free_.lower_bound(size);
    std::byte* place = nullptr;
    if (free != free_.end()) {
      place = free->second;
      sizes_[place] = free->first;
      free_.erase(free);
    } else {
      if (used_ + size > capacity_) return nullptr;
      place = closed_ + used_;
      used_ += size;
      sizes_[place] = size;
    }
    current_ += sizes_[place];
    peak_ = std::max(peak_, current_);
    return place;
  }
  void release(void* pointer) {
    const std::scoped_lock lock(mutex_);
    const auto found = sizes_.find(static_cast<std::byte*>(pointer));
    current_ -= found->second;
    free_.emplace(found->second, found->first);
    sizes_.erase(found);
  }
  /// Where a byte of the device can be touched; any other address is what it is.
  [[nodiscard]] void* open(const void* pointer) const {
    auto* place = static_cast<std::byte*>(const_cast<void*>(pointer));
    return place >= closed_ && place < closed_ + capacity_ ? open_ + (place - closed_) : place;
  }
  /// The same bytes as a tensor of the CPU.
  [[nodiscard]] at::Tensor open(const at::Tensor& tensor) const {
    if (tensor.is_cpu()) return tensor;
    return at::from_blob(open(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(),
                         tensor.options().device(at::kCPU).requires_grad(false));
  }
  [[nodiscard]] size_t capacity() const { return capacity_; }
  [[nodiscard]] size_t current() const { return current_; }
  [[nodiscard]] size_t peak() const { return peak_; }
  /// How many blocks are in use.
  [[nodiscard]] size_t blocks() const {
    const std::scoped_lock lock(mutex_);
    return sizes_.size();
  }

 private:
  size_t capacity_;
  mutable std::mutex mutex_;
  std::byte* closed_ = nullptr;
  std::byte* open_ = nullptr;
  size_t used_ = 0;
  size_t current_ = 0;
  size_t peak_ = 0;
  std::map<std::byte*, size_t> sizes_;
  std::multimap<size_t, std::byte*> free_;
};

/// Memory of the host that a device can read while the host goes on.
class PinnedMemory final : public at::Allocator {
 public:
  /// Never destroyed: tensors may outlive it.
  static PinnedMemory& instance() {
    static auto* memory = new PinnedMemory;
    return *memory;
  }

  at::DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(std::max<size_t>(1, bytes));
    const std::scoped_lock lock(mutex_);
    blocks_[static_cast<std::byte*>(data)] = std::max<size_t>(1, bytes);
    return {data, data, &release, at::kCPU};
  }
  [[nodiscard]] at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  [[nodiscard]] bool holds(const void* data) const {
    const std::scoped_lock lock(mutex_);
    const auto* place = static_cast<const std::byte*>(data);
    const auto after = blocks_.upper_bound(const_cast<std::byte*>(place));
    return after != blocks_.begin() && place < std::prev(after)->first + std::prev(after)->second;
  }

 private:
  static void release(void* data) {
    const std::scoped_lock lock(instance().mutex_);
    instance().blocks_.erase(static_cast<std::byte*>(data));
    std::free(data);
  }

  mutable std::mutex mutex_;
  std::map<std::byte*, size_t> blocks_;
};

inline at::ScalarType scalar_type_of(const c10::IValue& type) {
  return type.isNone() ? at::kFloat : type.toScalarType();
}

/// aten::empty.memory_format, boxed because of its six arguments: size, type, layout, device, pinned, format.
inline void make_empty(torch::jit::Stack* stack, at::Allocator* allocator, c10::DispatchKey key) {
  const std::vector<c10::IValue> in = torch::jit::pop(*stack, 6);
  const std::optional<at::MemoryFormat> format = in[5].isNone() ? std::nullopt : std::optional(in[5].toMemoryFormat());
  torch::jit::push(*stack,
                   at::Tensor(at::detail::empty_generic(in[0].toIntVector(), allocator, c10::DispatchKeySet(key),
                                                        scalar_type_of(in[1]), format)));
}

/// aten::empty_strided, boxed likewise: size, stride, type, layout, device, pinned.
inline void make_empty_strided(torch::jit::Stack* stack, at::Allocator* allocator, c10::DispatchKey key) {
  const std::vector<c10::IValue> in = torch::jit::pop(*stack, 6);
  torch::jit::push(*stack,
                   at::Tensor(at::detail::empty_strided_generic(in[0].toIntVector(), in[1].toIntVector(), allocator,
                                                                c10::DispatchKeySet(key), scalar_type_of(in[2]))));
}

/// aten::resize_; what was there moves along.
inline const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, at::Allocator* allocator,
                                const ClosedMemory& memory) {
  const size_t elements = static_cast<size_t>(c10::multiply_integers(size)) + self.storage_offset();
  const size_t bytes = elements * self.element_size();
  c10::StorageImpl* storage = self.storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) {
    at::DataPtr data = allocator->allocate(bytes);
    if (storage->nbytes() > 0) std::memcpy(memory.open(data.get()), memory.open(storage->data()), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

}  // namespace fettle::stand_in
