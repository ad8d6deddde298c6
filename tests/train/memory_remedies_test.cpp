// SPDX-License-Identifier: Apache-2.0
#include "train/memory_remedies.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fettle::train {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(MemoryRemedies, AreTheCheapestThatAreLeft) {
  config::Config config;
  EXPECT_THAT(memory_remedies(config), HasSubstr("per_device_train_batch_size=4 with gradient_accumulation_steps=2; "
                                                 "per_device_eval_batch_size=4; gradient_checkpointing=true"));
  config.training.per_device_train_batch_size = 1;
  config.training.do_eval = false;
  config.training.gradient_checkpointing = true;
  config.training.bf16 = false;
  EXPECT_THAT(memory_remedies(config), HasSubstr("first: bf16=true; load_in_4bit=true (less exact); max"));
  config.model.load_in_4bit = true;
  EXPECT_THAT(memory_remedies(config), HasSubstr("first: bf16=true; max_seq_length=512"));
  config.model.load_in_4bit = false;
  config.lora.use_peft = false;
  EXPECT_THAT(memory_remedies(config), HasSubstr("async_save=false; bf16=true; use_peft=true"));
  EXPECT_THAT(memory_remedies(config), Not(HasSubstr("batch_size")));
}

}  // namespace
}  // namespace fettle::train
