// SPDX-License-Identifier: Apache-2.0
/// Layers whose weights are on one rank each: they come to the other ranks just before the layer computes, while the
/// layer before it does, and are dropped after it. A layer's recomputation in the backward asks for them again, so the
/// model has to keep only the layers' inputs (gradient checkpointing). After FSDP (Zhao et al. 2023, arXiv:2304.11277),
/// with whole tensors in place of slices.
#pragma once

#include <cstdint>
#include <vector>

#include "model/layer_sharing.h"
#include "model/parameter.h"

namespace fettle::model {

class GatheredLayers {
 public:
  /// `layers`: the weights of each layer, LoRA's not included. They outlive this.
  GatheredLayers(LayerSharing sharing, std::vector<std::vector<Parameter*>> layers);

  /// As long as one lives, the weights of a layer are here. What autograd has saved of them stays until it is freed.
  class Use {
   public:
    Use() = default;
    Use(GatheredLayers& layers, int64_t layer) : layers_(&layers), layer_(layer) {}
    ~Use() {
      if (layers_ != nullptr) layers_->release(layer_);
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    GatheredLayers* layers_ = nullptr;
    int64_t layer_ = 0;
  };

  /// Before the first layer of a forward. `backward_follows`: the last layer, with which that begins, stays here.
  void begin_forward(bool backward_follows) { keeps_last_ = backward_follows; }
  /// In a forward the next layer's weights start to come meanwhile, in the backward, which is where gradients are
  /// enabled, the one's before it. All ranks use the layers in the same order.
  [[nodiscard]] Use use(int64_t layer);

 private:
  struct Layer {
    std::vector<Parameter*> weights;
    std::vector<at::Tensor> arriving = {};
    std::vector<LayerSharing::Wait> waits = {};
    bool is_started = false;
    bool is_here = false;
  };
  void start(int64_t layer);
  void release(int64_t layer);

  LayerSharing sharing_;
  std::vector<Layer> layers_;
  bool keeps_last_ = false;
};

}  // namespace fettle::model
