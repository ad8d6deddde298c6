// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <pthread.h>

#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "data/parallel.h"

namespace fettle::data {
namespace {

struct Squares {
  int64_t inputs = 100;
  int64_t fails_at = -1;      // work throws
  int64_t produce_ends = -1;  // produce throws
  std::vector<int64_t> consumed;

  void run(int64_t workers) {
    OrderedPipeline<int64_t, int64_t> pipeline;
    int64_t next = 0;
    pipeline.produce = [&]() -> std::optional<int64_t> {
      if (next == produce_ends) throw std::runtime_error("produce");
      return next < inputs ? std::optional(next++) : std::nullopt;
    };
    pipeline.work = [&](const int64_t& input) {
      if (input % 7 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));  // finish out of order
      if (input == fails_at) throw std::runtime_error("work");
      return input * input;
    };
    pipeline.consume = [&](int64_t output) { consumed.push_back(output); };
    pipeline.run(workers);
  }
};

std::vector<int64_t> squares_below(int64_t count) {
  std::vector<int64_t> squares;
  for (int64_t i = 0; i < count; ++i) squares.push_back(i * i);
  return squares;
}

TEST(OrderedPipelineTest, ResultsComeInOrder) {
  for (const int64_t workers : {1, 2, 5}) {
    Squares squares;
    squares.run(workers);
    EXPECT_EQ(squares.consumed, squares_below(100));
  }
}

TEST(OrderedPipelineTest, NothingToDo) {
  Squares squares{.inputs = 0, .fails_at = -1, .produce_ends = -1, .consumed = {}};
  squares.run(3);
  EXPECT_TRUE(squares.consumed.empty());
}

TEST(OrderedPipelineTest, WorksWhereNoThreadCanBeStarted) {
  pthread_attr_t usual;
  pthread_attr_t huge;
  ASSERT_EQ(pthread_getattr_default_np(&usual), 0);
  ASSERT_EQ(pthread_getattr_default_np(&huge), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&huge, size_t{1} << 50), 0);
  ASSERT_EQ(pthread_setattr_default_np(&huge), 0);
  EXPECT_THROW(std::jthread([] {}), std::system_error);
  Squares squares;
  squares.run(3);
  EXPECT_EQ(pthread_setattr_default_np(&usual), 0);
  EXPECT_EQ(squares.consumed, squares_below(100));
}

TEST(OrderedPipelineTest, TheFirstFailureInOrderWins) {
  for (const int64_t workers : {1, 2, 5}) {
    Squares squares{.inputs = 100, .fails_at = 21, .produce_ends = 25, .consumed = {}};
    EXPECT_THAT([&] { squares.run(workers); }, testing::ThrowsMessage<std::runtime_error>("work"));
    EXPECT_EQ(squares.consumed, squares_below(21));
  }
}

TEST(OrderedPipelineTest, AFailingProducerEndsAfterItsPredecessors) {
  Squares squares{.inputs = 100, .fails_at = -1, .produce_ends = 33, .consumed = {}};
  EXPECT_THAT([&] { squares.run(3); }, testing::ThrowsMessage<std::runtime_error>("produce"));
  EXPECT_EQ(squares.consumed, squares_below(33));
}

}  // namespace
}  // namespace fettle::data
