// SPDX-License-Identifier: Apache-2.0
// fettle chat by a pipe, and on a terminal.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <utility>

#include "cli/program.h"

namespace fettle::cli {
namespace {

using testing::HasSubstr;

Arguments chat_arguments(const Arguments& more = {}) {
  Arguments arguments = {"chat",
                         "--model_name_or_path=" + stories(),
                         "--prompt_template=llama2",
                         "--num_threads=1",
                         "--bf16=false",
                         "--max_new_tokens=12"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// What the program prints where `lines` are piped into it.
Result pipe_into(const std::string& lines, const Arguments& more = {}) {
  const TemporaryFolder folder;
  const std::string file = folder.write("lines", lines);
  return run_program(chat_arguments(more), RLIM_INFINITY,
                     [&file] { ::dup2(::open(file.c_str(), O_RDONLY), STDIN_FILENO); });
}

/// The one answer to `prompt`, as fettle generate gives it.
std::string generated(const std::string& prompt, const Arguments& more = {}) {
  Arguments arguments = chat_arguments({"--prompt=" + prompt});
  arguments.insert(arguments.end(), more.begin(), more.end());
  arguments[0] = "generate";
  const Result result = run_program(arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  return result.out;
}

TEST(ChatByPipe, AnswersEachLineWithWhatWasSaidBefore) {
  const Result one = pipe_into("The dog\n");
  ASSERT_EQ(one.code, 0) << one.err;
  EXPECT_EQ(one.out, generated("The dog"));
  const Result two = pipe_into("The dog\n\n  \nThe dog");
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_TRUE(two.out.starts_with(one.out)) << two.out;
  EXPECT_NE(two.out, one.out + one.out) << "the second answer does not know the first";
  EXPECT_EQ(pipe_into("The dog\nThe dog\n", {"--fused_ops=false"}).code, 0);
}

TEST(ChatByPipe, ResetsAndExits) {
  const std::string one = pipe_into("The dog\n").out;
  const Result result = pipe_into("/help\nThe dog\n/reset\nThe dog\n/exit\nThe dog\n");
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, one + one);
  EXPECT_THAT(result.err, HasSubstr("/reset begins"));
}

TEST(ChatByPipe, TellsOfACommandThatIsNotThere) {
  const Result result = pipe_into("/quit\n /quit\n");
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("there is no '/quit'"));
  EXPECT_EQ(result.out, generated(" /quit")) << "with a space it is said";
}

TEST(ChatByPipe, HasTheOptionsOfGenerate) {
  const Result system = pipe_into("The dog\n", {"--system_prompt=Once upon a time"});
  EXPECT_EQ(system.out, generated("The dog", {"--system_prompt=Once upon a time"}));
  EXPECT_NE(system.out, generated("The dog"));
  const Arguments sampling = {"--do_sample", "--temperature=3", "--seed=5"};
  const Result twice = pipe_into("The dog\n/reset\nThe dog\n", sampling);
  EXPECT_EQ(twice.out, pipe_into("The dog\n", sampling).out + pipe_into("The dog\n", sampling).out);
  const std::string whole = generated("The dog");
  const std::string middle = whole.substr(whole.size() / 2, 2);
  EXPECT_EQ(pipe_into("The dog\n", {"--stop_strings=" + middle}).out, whole.substr(0, whole.find(middle) + 2) + "\n");
}

TEST(ChatByPipe, NoLinesIsNoError) {
  const Result result = pipe_into("");
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.out, "");
}

TEST(ChatByPipe, RefusesWhatIsNotText) {
  const Result result = pipe_into("\xFF\n");
  EXPECT_EQ(result.code, code(ExitCode::kData));
  EXPECT_THAT(result.error(), HasSubstr("not UTF-8"));
}

/// The program with a terminal of its own.
class Terminal {
 public:
  explicit Terminal(const Arguments& arguments) {
    std::fflush(nullptr);
    child_ = ::forkpty(&master_, nullptr, nullptr, nullptr);
    if (child_ != 0) return;
    std::signal(SIGINT, SIG_DFL);
    ::setenv("XDG_CACHE_HOME", "/nonexistent", 1);
    const int exit_code = run(arguments);
    std::fflush(nullptr);
    ::_exit(exit_code);
  }
  ~Terminal() {
    if (child_ > 0) ::kill(child_, SIGKILL), ::waitpid(child_, nullptr, 0);
    ::close(master_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void type(const std::string& keys) const { EXPECT_EQ(::write(master_, keys.data(), keys.size()), std::ssize(keys)); }

  /// Reads until the screen, from where the last call left off, shows `text`.
  bool shows(const std::string& text) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    for (size_t found = 0; std::chrono::steady_clock::now() < end;) {
      found = screen_.find(text, seen_);
      if (found != std::string::npos) {
        seen_ = found + text.size();
        return true;
      }
      if (!read_more()) return false;
    }
    return false;
  }

  /// Reads until the screen shows so many bytes more.
  bool shows_more(size_t bytes) {
    while (screen_.size() < seen_ + bytes) {
      if (!read_more()) return false;
    }
    seen_ = screen_.size();
    return true;
  }

  /// The exit code, or 128 + the signal.
  int end() {
    while (read_more()) {
    }
    int status = 0;
    ::waitpid(std::exchange(child_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  [[nodiscard]] const std::string& screen() const { return screen_; }

 private:
  bool read_more() {
    pollfd ready = {master_, POLLIN, 0};
    char piece[4096];
    if (::poll(&ready, 1, 120'000) != 1) return false;
    const ssize_t size = ::read(master_, piece, sizeof(piece));
    if (size <= 0) return false;  // the program has closed the terminal
    screen_.append(piece, static_cast<size_t>(size));
    return true;
  }

  int master_ = -1;
  pid_t child_ = -1;
  std::string screen_;
  size_t seen_ = 0;
};

constexpr const char* kEndOfInput = "\x04";
constexpr const char* kControlC = "\x03";

TEST(ChatOnATerminal, AsksUntilTheInputEnds) {
  Terminal terminal(chat_arguments());
  ASSERT_TRUE(terminal.shows("> ")) << terminal.screen();
  terminal.type("The dog\n");
  ASSERT_TRUE(terminal.shows("The dog\r\n")) << terminal.screen();  // the echo
  std::string answer = generated("The dog");
  answer.pop_back();
  ASSERT_TRUE(terminal.shows(answer.substr(0, answer.find('\n')))) << terminal.screen();
  ASSERT_TRUE(terminal.shows("> ")) << terminal.screen();
  terminal.type(kEndOfInput);
  EXPECT_EQ(terminal.end(), 0) << terminal.screen();
}

/// A model that ends no story, for answers that go on until they are stopped.
std::string endless_model(const TemporaryFolder& folder) {
  const auto copy = folder / "endless";
  std::filesystem::copy(stories(), copy);
  write_file(copy / "generation_config.json", R"({"eos_token_id": 0})");
  std::string tokenizer = read_file(copy / "tokenizer_config.json");
  const std::string eos = R"("eos_token": "</s>")";
  tokenizer.replace(tokenizer.find(eos), eos.size(), R"("eos_token": "<unk>")");
  write_file(copy / "tokenizer_config.json", tokenizer);
  std::filesystem::remove(copy / "special_tokens_map.json");
  return copy;
}

TEST(ChatOnATerminal, ControlCStopsAnAnswerAndThenTheProgram) {
  const TemporaryFolder folder;
  Arguments arguments = chat_arguments({"--max_new_tokens=100000"});
  arguments[1] = "--model_name_or_path=" + endless_model(folder);
  Terminal terminal(arguments);
  ASSERT_TRUE(terminal.shows("> ")) << terminal.screen();
  for (const char* question : {"The dog\n", "The cat\n"}) {
    terminal.type(question);
    ASSERT_TRUE(terminal.shows("was made for\r\n")) << terminal.screen();
    ASSERT_TRUE(terminal.shows_more(20)) << terminal.screen();  // it answers
    terminal.type(kControlC);
    ASSERT_TRUE(terminal.shows("\r\n> ")) << terminal.screen();
  }
  terminal.type(kControlC);
  EXPECT_EQ(terminal.end(), 0) << terminal.screen();
}

TEST(ChatOnATerminal, AMistakeDoesNotEndIt) {
  Terminal terminal(chat_arguments());
  ASSERT_TRUE(terminal.shows("> ")) << terminal.screen();
  terminal.type("\xC3(\n");
  ASSERT_TRUE(terminal.shows("not UTF-8")) << terminal.screen();
  ASSERT_TRUE(terminal.shows("> ")) << terminal.screen();
  terminal.type("/exit\n");
  EXPECT_EQ(terminal.end(), 0) << terminal.screen();
}

}  // namespace
}  // namespace fettle::cli
