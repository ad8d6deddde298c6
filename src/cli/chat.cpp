// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/utf8.h"
#include "cli/answer.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "data/prompt.h"
#include "data/record.h"
#include "device/device.h"
#include "model/generate.h"
#include "train/inputs.h"

namespace fettle::cli {
namespace {

volatile std::sig_atomic_t interrupted = 0;

/// The first Ctrl-C is noted; one more before that was seen to ends the program.
void note_interrupt(int signal) {
  if (interrupted != 0) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
    return;
  }
  interrupted = 1;
}

/// On a terminal Ctrl-C belongs to the conversation. SA_RESTART: it must not cut off what is being printed.
void catch_interrupts() {
  struct sigaction action {};
  ::sigaction(SIGINT, nullptr, &action);
  if (action.sa_handler == SIG_IGN) return;
  action = {};
  action.sa_handler = note_interrupt;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
}

/// Lines of standard input.
class InputLines {
 public:
  /// Nothing at the end of the input, or where Ctrl-C came.
  std::optional<std::string> next() {
    for (;;) {
      const size_t end = text_.find('\n');
      if (end != std::string::npos) {
        std::string line = text_.substr(0, end);
        text_.erase(0, end + 1);
        return line;
      }
      if (!read_more()) break;
    }
    if (interrupted != 0 || text_.empty()) return std::nullopt;
    return std::exchange(text_, {});
  }

 private:
  bool read_more() {
    constexpr size_t kLargest = 64'000'000;
    std::array<char, 65536> piece{};
    ssize_t size = 0;
    do {
      if (!wait_for_input()) return false;
      size = ::read(STDIN_FILENO, piece.data(), piece.size());
    } while (size < 0 && errno == EINTR);
    if (size < 0) throw system_error("cannot read standard input", errno);
    text_.append(piece.data(), static_cast<size_t>(size));
    if (text_.size() > kLargest) {
      throw Error(ExitCode::kData, "a line of standard input has more than 64 MB", "give a shorter text");
    }
    return size > 0;
  }

  /// False where Ctrl-C came. That is looked at ten times a second: a signal between a look and the wait, or one that
  /// another thread handles, does not end the wait.
  static bool wait_for_input() {
    constexpr int kMilliseconds = 100;
    pollfd input = {STDIN_FILENO, POLLIN, 0};
    while (interrupted == 0) {
      const int ready = ::poll(&input, 1, kMilliseconds);
      if (ready > 0 || (ready < 0 && errno != EINTR)) return true;
    }
    return false;
  }

  std::string text_;
};

/// The messages so far, and their keys and values.
class Conversation {
 public:
  Conversation(const config::Config& config, const train::ModelInputs& inputs, const model::Decoder& model)
      : config_(config),
        inputs_(inputs),
        builder_(config.data, inputs.tokenizer),
        model_(model),
        dialogue_(model),
        ends_(stop_tokens(inputs, config.generation)) {
    reset();
  }

  void reset() {
    messages_ = builder_.opening(config_.generation.system_prompt);
    turn_ = 0;
  }

  /// Prints the answer to `text` as it comes. Where it cannot be given, the conversation is as before.
  void say(const std::string& text) {
    const data::Record before = messages_;
    messages_.push_back({{"role", "user"}, {"content", text}});
    try {
      std::string answer = answer_now();
      messages_.push_back({{"role", "assistant"}, {"content", std::move(answer)}});
    } catch (...) {
      messages_ = before;
      throw;
    }
  }

 private:
  std::string answer_now() {
    std::vector<int32_t> prompt = builder_.chat_prompt(messages_);
    check_length(model_, prompt.size(), config_.generation.max_new_tokens);
    AnswerText text(inputs_.tokenizer, config_.generation.stop_strings);
    const auto on_token = [&text](int32_t token) {
      return print_now(text.add(token)) && !text.has_ended() && interrupted == 0;
    };
    dialogue_.generate({std::move(prompt), seed_of(config_.training.seed, turn_++), {ends_, on_token}},
                       config_.generation);
    log::debug("{} tokens of the conversation were in the cache", dialogue_.reused());
    print_now(text.finish() + '\n');
    return text.text();
  }

  const config::Config& config_;
  const train::ModelInputs& inputs_;
  data::PromptBuilder builder_;
  const model::Decoder& model_;
  model::Dialogue dialogue_;
  std::vector<int32_t> ends_;
  data::Record messages_;
  size_t turn_ = 0;
};

/// Does what the line asks for; false where that is to end. On a terminal a mistake does not.
bool follow(std::string_view line, Conversation& conversation, bool is_terminal) {
  while (!line.empty() && (line.back() == '\r' || line.back() == '\n')) line.remove_suffix(1);
  if (is_blank(line)) return true;
  if (line == "/exit") return false;
  if (line == "/reset") {
    conversation.reset();
    log::info("a new conversation");
  } else if (line == "/help") {
    log::info("/reset begins a new conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer; any other line is said");
  } else if (line.front() == '/') {
    log::warning("there is no {}; /help shows what there is; a space before it says it to the model", quote(line));
  } else {
    try {
      if (find_invalid_utf8(line) != std::string_view::npos) {
        throw Error(ExitCode::kData, "a line of standard input is not UTF-8", "write UTF-8");
      }
      conversation.say(std::string(line));
    } catch (const Error& error) {
      if (!is_terminal || error.code() != ExitCode::kData) throw;
      log::warning("{}", error.what());
    }
  }
  return std::ferror(stdout) == 0;
}

}  // namespace

int chat(const Arguments& arguments) {
  auto config = read_options(arguments, config::Command::kChat);
  if (!config) return 0;
  config->generation.raw_prompt = false;  // of a file for fettle generate
  const device::Device device = train::start_device(config->device);
  const train::ModelInputs inputs = train::load_inputs(config->model);
  data::require_chat_template(config->data, inputs.tokenizer);
  const model::Decoder model =
      train::load_model(inputs, config->model, {train::compute_type(config->training), device.torch_device});
  Conversation conversation(*config, inputs, model);
  const bool is_terminal = ::isatty(STDIN_FILENO) != 0;
  const bool shows_prompt = is_terminal && ::isatty(STDOUT_FILENO) != 0;
  if (is_terminal) {
    log::info("{}; /help shows the commands", device.description());
    catch_interrupts();
  }
  InputLines lines;
  for (;;) {
    interrupted = 0;  // what stopped the last answer; before the prompt invites the next
    if (shows_prompt) print_now("> ");
    const auto line = lines.next();
    if (!line) {
      if (shows_prompt) print_now("\n");
      return 0;
    }
    if (!follow(*line, conversation, is_terminal)) return 0;
  }
}

}  // namespace fettle::cli
