// SPDX-License-Identifier: Apache-2.0
#include "dist/group.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>

#include "dist/ranks.h"
#include "dist/store.h"

namespace fettle::dist {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int kUnavailable = static_cast<int>(ExitCode::kUnavailable);
constexpr int kConfig = static_cast<int>(ExitCode::kConfig);
constexpr int kData = static_cast<int>(ExitCode::kData);

std::string numbers(const at::Tensor& tensor) {
  std::string text;
  const at::Tensor flat = tensor.to(at::kDouble).flatten();
  for (int64_t i = 0; i < flat.numel(); ++i) text += fmt::format(" {}", flat[i].item<double>());
  return text;
}

// ---- what the processes do

const RankFunction kCollectives("collectives", [](Group& group) {
  const auto own = static_cast<double>(group.rank() + 1);
  const int64_t last = group.size() - 1;
  const at::Tensor sum = at::full({3}, own, at::kFloat);
  group.all_reduce(sum).wait();
  say("all_reduce" + numbers(sum));
  const at::Tensor reduced = at::full({2}, own, at::kFloat);
  group.reduce(reduced, last).wait();
  if (group.rank() == last) say("reduce" + numbers(reduced));
  const at::Tensor sent = at::full({2}, group.rank() == last ? 7.0 : 0.0, at::kBFloat16);
  group.broadcast(sent, last).wait();
  say("broadcast" + numbers(sent));
  const at::Tensor message = at::arange(4, at::kLong).add(group.rank());  // each to the next, the first one starts
  if (group.rank() > 0) group.receive(message, group.rank() - 1);
  if (group.rank() < last) group.send(message, group.rank() + 1);
  say("message" + numbers(message));
  std::vector<at::Tensor> tensors;
  std::vector<Pending> pending;
  for (int64_t i = 0; i < 8; ++i) {
    tensors.push_back(at::full({100'000}, own * static_cast<double>(i), at::kFloat));
    pending.push_back(group.all_reduce(tensors.back()));
  }
  for (size_t i = 8; i-- > 0;) pending[i].wait();
  for (const at::Tensor& tensor : tensors) say("overlapped" + numbers(tensor[99'999]));
  group.barrier();
  group.require_same("configuration", "learning_rate: 1e-4");
  say("same");
});

const RankFunction kDiffering("differing", [](Group& group) {
  const std::string common(1000, '.');
  group.require_same("dataset", "");
  group.require_same("configuration", common + (group.rank() == 1 ? "lora_r: 16" : "lora_r: 8") + common);
});

/// Sums until something happens.
void sum_forever(Group& group) {
  const at::Tensor tensor = at::ones({1 << 18}, at::kFloat);
  for (int64_t step = 0;; ++step) {
    group.all_reduce(tensor).wait();
    if (step == 3) say("running");
  }
}
const RankFunction kForever("sum_forever", sum_forever);

const RankFunction kFailing("rank_1_fails", [](Group& group) {
  group.barrier();
  if (group.rank() == 1) throw Error(ExitCode::kData, "records.jsonl line 7: no field 'output'", "correct it");
  sum_forever(group);
});

const RankFunction kHostFailing("rank_0_fails", [](Group& group) {
  group.barrier();
  if (group.is_main()) throw Error(ExitCode::kData, "records.jsonl line 7: no field 'output'", "correct it");
  sum_forever(group);
});

const RankFunction kEarly("rank_1_ends_early", [](Group& group) {
  group.barrier();
  if (group.rank() != 1) sum_forever(group);
});

/// Rank 0 ends while the others still work alone for a while.
const RankFunction kLate("others_end_late", [](Group& group) {
  group.barrier();
  if (!group.is_main()) std::this_thread::sleep_for(std::chrono::seconds(3));
});

const RankFunction kMeet("meet", [](Group& group) {
  group.barrier();
  say("met");
});

/// Stands for the agent of torchrun, which has the store.
const RankFunction kStore("serve_store", [](const RankSetup& setup) {
  const auto store = Store::serve(setup.launch());
  say("serving");
  std::this_thread::sleep_for(std::chrono::minutes(2));
});

// ---- collectives

class Collectives : public ::testing::TestWithParam<int64_t> {};

TEST_P(Collectives, HaveTheirValues) {
  const int64_t size = GetParam();
  const int64_t total = size * (size + 1) / 2;
  Ranks run({.function = "collectives", .world_size = size});
  const std::vector<Outcome> outcomes = run.end();
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    const Outcome& outcome = outcomes[rank];
    EXPECT_EQ(outcome.code, 0) << outcome.report << outcome.err;
    EXPECT_EQ(outcome.err, "");
    std::string expected = fmt::format("all_reduce {0} {0} {0}\n", total);
    if (rank + 1 == outcomes.size()) expected += fmt::format("reduce {0} {0}\n", total);
    expected += "broadcast 7 7\nmessage 0 1 2 3\n";
    for (int64_t i = 0; i < 8; ++i) expected += fmt::format("overlapped {}\n", total * i);
    EXPECT_EQ(outcome.report, expected + "same\n");
  }
}
INSTANTIATE_TEST_SUITE_P(Sizes, Collectives, ::testing::Values(1, 2, 4));

TEST(Group, NamesTheRankThatDiffersOnAllRanks) {
  Ranks run({.function = "differing", .world_size = 3});
  for (const Outcome& outcome : run.end()) {
    EXPECT_EQ(outcome.code, kConfig) << outcome.report << outcome.err;
    EXPECT_THAT(outcome.error(), AllOf(StartsWith("configuration of rank 1 differs from rank 0's: '…"),
                                       HasSubstr("lora_r: 16..."), HasSubstr("lora_r: 8...")));
    EXPECT_LT(outcome.error().size(), 400U);
  }
}

TEST(Group, Rank0StaysUntilTheOthersHaveLeft) {
  Ranks run({.function = "others_end_late", .world_size = 3, .peer_timeout = 2});
  for (const Outcome& outcome : run.end()) EXPECT_EQ(outcome.code, 0) << outcome.report << outcome.err;
}

// ---- a rank that goes

/// All but the rank `gone` end by kUnavailable and say `cause`.
void expect_cause(const std::vector<Outcome>& outcomes, size_t gone, const ::testing::Matcher<std::string>& cause) {
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    if (rank == gone) continue;
    EXPECT_EQ(outcomes[rank].code, kUnavailable) << outcomes[rank].report << outcomes[rank].err;
    EXPECT_THAT(outcomes[rank].error(), cause) << outcomes[rank].err;
    EXPECT_EQ(outcomes[rank].err, "");
  }
}

std::string process_text(size_t rank, Ranks& run) {
  return fmt::format("pid {})", run[rank].process());
}

class Killed : public ::testing::TestWithParam<size_t> {};

TEST_P(Killed, IsNamedByAllOthers) {
  const size_t gone = GetParam();
  Ranks run({.function = "sum_forever", .world_size = 4, .beat = GroupOptions().beat.count()});
  run.wait_for("running");
  run[gone].send(SIGKILL);
  expect_cause(run.end(), gone,
               AllOf(StartsWith(fmt::format("rank {} (host ", gone)), HasSubstr(process_text(gone, run)),
                     HasSubstr("is gone (killed or crashed)")));
}

TEST_P(Killed, OfTwoIsNamed) {
  const size_t gone = GetParam() % 2;
  Ranks run({.function = "sum_forever", .world_size = 2});
  run.wait_for("running");
  run[gone].send(SIGKILL);
  expect_cause(run.end(), gone, HasSubstr(process_text(gone, run) + " is gone (killed or crashed)"));
}
INSTANTIATE_TEST_SUITE_P(Ranks, Killed, ::testing::Values(0, 3));

class Stopped : public ::testing::TestWithParam<size_t> {};

TEST_P(Stopped, IsNamedByAllOthers) {
  const size_t gone = GetParam();
  Ranks run({.function = "sum_forever", .world_size = 3, .peer_timeout = 2});
  run.wait_for("running");
  run[gone].send(SIGSTOP);
  std::vector<Outcome> outcomes;
  for (size_t rank = 0; rank < 3; ++rank) outcomes.push_back(rank == gone ? Outcome() : run[rank].end());
  expect_cause(outcomes, gone, HasSubstr(process_text(gone, run) + " has not answered for "));
}
INSTANTIATE_TEST_SUITE_P(Ranks, Stopped, ::testing::Values(0, 1));

TEST(Group, RepeatsWhatAFailingRankAnnounces) {
  for (const size_t failing : {0U, 1U}) {
    Ranks run({.function = fmt::format("rank_{}_fails", failing), .world_size = 3});
    const std::vector<Outcome> outcomes = run.end();
    EXPECT_EQ(outcomes[failing].code, kData);
    expect_cause(outcomes, failing,
                 AllOf(StartsWith(fmt::format("rank {} (host ", failing)),
                       HasSubstr(" stopped: records.jsonl line 7: no field 'output'")));
  }
}

TEST(Group, NamesTheRankThatEndedBeforeTheOthers) {
  Ranks run({.function = "rank_1_ends_early", .world_size = 3});
  const std::vector<Outcome> outcomes = run.end();
  EXPECT_EQ(outcomes[1].code, 0) << outcomes[1].report;
  expect_cause(outcomes, 1, AllOf(HasSubstr("rank 1 (host "), HasSubstr("has ended before the others")));
}

TEST(Group, NamesTheLaunchersStoreThatGoes) {
  const uint16_t port = free_port();
  RankProcess server({.function = "serve_store", .port = port, .hosts_store = false});
  server.wait_for("serving");
  Ranks run({.function = "sum_forever", .world_size = 2, .port = port, .hosts_store = false});
  run.wait_for("running");
  server.send(SIGKILL);
  expect_cause(run.end(), 2, StartsWith(fmt::format("the launcher's store at 127.0.0.1:{} is gone", port)));
}

// ---- a launcher's store, which outlives the attempts

TEST(LaunchersStore, ServesTheNextAttemptHoweverTheLastOneEnded) {
  const uint16_t port = free_port();
  RankProcess server({.function = "serve_store", .port = port, .hosts_store = false});
  server.wait_for("serving");
  const auto attempt = [&](const std::string& function, int64_t world_size) {
    return RankSetup{.function = function, .world_size = world_size, .port = port, .hosts_store = false};
  };
  const auto expect_to_meet = [&](int64_t world_size) {
    Ranks run(attempt("meet", world_size));
    for (const Outcome& outcome : run.end()) EXPECT_EQ(outcome.code, 0) << outcome.report << outcome.err;
  };
  expect_to_meet(2);
  expect_to_meet(3);  // after one that ended well
  {
    Ranks killed(attempt("sum_forever", 2));
    killed.wait_for("running");
  }
  expect_to_meet(3);
  Ranks failed(attempt("rank_1_fails", 2));
  failed.end();
  expect_to_meet(2);
}

// ---- the rendezvous

TEST(Rendezvous, WaitsForRank0) {
  const uint16_t port = free_port();
  RankProcess second({.function = "meet", .rank = 1, .world_size = 2, .port = port});
  second.wait_for("waiting for rank 0 at 127.0.0.1");
  RankProcess first({.function = "meet", .rank = 0, .world_size = 2, .port = port});
  EXPECT_EQ(first.end().code, 0);
  const Outcome outcome = second.end();
  EXPECT_EQ(outcome.code, 0) << outcome.report;
  EXPECT_THAT(outcome.err, HasSubstr(": connection refused"));
}

TEST(Rendezvous, SaysWhyRank0IsNotReached) {
  const uint16_t port = free_port();
  RankProcess refused({.function = "meet", .rank = 1, .world_size = 2, .port = port, .timeout = 2});
  RankProcess unknown(
      {.function = "meet", .rank = 1, .world_size = 2, .port = port, .address = "master.invalid", .timeout = 2});
  const Outcome outcome = refused.end();
  EXPECT_EQ(outcome.code, kUnavailable);
  EXPECT_EQ(outcome.error(),
            fmt::format("rank 1 did not reach rank 0 at 127.0.0.1:{} within 2 s: connection refused", port));
  const Outcome nameless = unknown.end();
  EXPECT_EQ(nameless.code, kUnavailable);
  EXPECT_THAT(nameless.error(), AllOf(StartsWith("rank 1 did not reach rank 0 at master.invalid"),
                                      AnyOf(HasSubstr(": the name does not resolve yet ("),
                                            HasSubstr(": the name server does not answer"))));
}

TEST(Rendezvous, RefusesWhatIsNoStore) {
  const FreePort silent;
  silent.listen();
  RankProcess process({.function = "meet", .rank = 1, .world_size = 2, .port = silent.port(), .timeout = 3});
  const Outcome outcome = process.end();
  EXPECT_EQ(outcome.code, kUnavailable);
  EXPECT_THAT(outcome.error(), AllOf(StartsWith("rank 1 did not reach rank 0"), HasSubstr("what listens there")));
}

TEST(Rendezvous, Rank0SaysThatItsPortIsTaken) {
  const FreePort taken;
  taken.listen();
  RankProcess process({.function = "meet", .rank = 0, .world_size = 2, .port = taken.port()});
  const Outcome outcome = process.end();
  EXPECT_EQ(outcome.code, kUnavailable);
  EXPECT_THAT(outcome.error(), AllOf(HasSubstr("another process"), HasSubstr(fmt::format("port {}", taken.port()))));
}

TEST(Rendezvous, NamesTheRanksThatDoNotCome) {
  const uint16_t port = free_port();
  RankProcess first({.function = "meet", .rank = 0, .world_size = 4, .port = port, .timeout = 3});
  RankProcess third({.function = "meet", .rank = 2, .world_size = 4, .port = port, .timeout = 3});
  for (RankProcess* process : {&first, &third}) {
    const Outcome outcome = process->end();
    EXPECT_EQ(outcome.code, kUnavailable);
    EXPECT_THAT(outcome.error(), HasSubstr("ranks 1, 3 of 4 did not come within 3 s"));
  }
}

TEST(Rendezvous, EndsWithRank0) {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    const uint16_t port = free_port();
    RankProcess first({.function = "meet", .rank = 0, .world_size = 3, .port = port, .peer_timeout = 2});
    RankProcess second({.function = "meet", .rank = 1, .world_size = 3, .port = port, .peer_timeout = 2});
    second.wait_for("waiting for rank 2 of 3");
    first.send(signal);
    const Outcome outcome = second.end();
    EXPECT_EQ(outcome.code, kUnavailable);
    EXPECT_THAT(outcome.error(), StartsWith(fmt::format("rank 0 at 127.0.0.1:{} {}", port,
                                                        signal == SIGKILL ? "is gone" : "has not answered for 2 s")));
  }
}

TEST(Rendezvous, NamesAnInterfaceThatIsNotThere) {
  ::setenv("GLOO_SOCKET_IFNAME", "eth17", 1);
  Ranks run({.function = "meet", .world_size = 2});
  ::unsetenv("GLOO_SOCKET_IFNAME");
  for (const Outcome& outcome : run.end()) {
    EXPECT_TRUE(outcome.code == kConfig || outcome.code == kUnavailable) << outcome.code;
    EXPECT_THAT(outcome.error(), HasSubstr("GLOO_SOCKET_IFNAME: this machine has no interface 'eth17'"));
  }
}

TEST(Rendezvous, RefusesAnotherWorldSizeOnAllRanks) {
  const uint16_t port = free_port();
  RankProcess first({.function = "meet", .rank = 0, .world_size = 2, .port = port});
  RankProcess second({.function = "meet", .rank = 1, .world_size = 3, .port = port});
  const Outcome outcomes[] = {first.end(), second.end()};
  for (const Outcome& outcome : outcomes) {
    EXPECT_THAT(outcome.error(), AnyOf(AllOf(HasSubstr("with world size 2"), HasSubstr("with 3")),
                                       AllOf(HasSubstr("with world size 3"), HasSubstr("with 2"))))
        << outcome.err;
    EXPECT_EQ(outcome.code, kConfig);
  }
}

TEST(Rendezvous, RefusesTwoProcessesOfOneRank) {
  const uint16_t port = free_port();
  RankProcess first({.function = "meet", .rank = 0, .world_size = 3, .port = port});
  RankProcess second({.function = "meet", .rank = 1, .world_size = 3, .port = port});
  RankProcess third({.function = "meet", .rank = 1, .world_size = 3, .port = port});
  const Outcome outcomes[] = {first.end(), second.end(), third.end()};
  for (const Outcome& outcome : outcomes) {
    EXPECT_THAT(outcome.error(), HasSubstr("two processes were started as rank 1: on host ")) << outcome.err;
    EXPECT_EQ(outcome.code, kConfig);
  }
}

TEST(Rendezvous, LetsARestartedRankTakeItsPlaceUntilAllHaveCome) {
  const uint16_t port = free_port();
  RankProcess first({.function = "meet", .rank = 0, .world_size = 3, .port = port});
  RankProcess lost({.function = "meet", .rank = 1, .world_size = 3, .port = port});
  lost.wait_for("waiting for rank 2 of 3");
  lost.send(SIGKILL);
  lost.end();
  RankProcess second({.function = "meet", .rank = 1, .world_size = 3, .port = port});
  second.wait_for("takes the place of rank 1 (host ");
  RankProcess third({.function = "meet", .rank = 2, .world_size = 3, .port = port});
  for (RankProcess* process : {&first, &second, &third}) {
    const Outcome outcome = process->end();
    EXPECT_EQ(outcome.code, 0) << outcome.report << outcome.err;
  }
}

TEST(Rendezvous, DoesNotLetAProcessIntoARunThatHasBegun) {
  const uint16_t port = free_port();
  Ranks run({.function = "sum_forever", .world_size = 2, .port = port});
  run.wait_for("running");
  RankProcess stray({.function = "meet", .rank = 1, .world_size = 2, .port = port});
  const Outcome outcome = stray.end();
  EXPECT_EQ(outcome.code, kConfig);
  EXPECT_THAT(outcome.error(), HasSubstr("two processes were started as rank 1"));
  run[1].send(SIGKILL);  // what ends the run, not the stray process
  expect_cause(run.end(), 1, HasSubstr(process_text(1, run) + " is gone"));
}

}  // namespace
}  // namespace fettle::dist
