// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/stop_signal.h"
#include "base/termination_message.h"
#include "base/utf8.h"
#include "cli/commands.h"
#include "config/describe.h"
#include "config/value.h"
#include "device/device.h"

namespace fettle::cli {
namespace {

constexpr std::string_view kLostOutput = "cannot write to standard output";
constexpr std::string_view kOutputHint = "check where it goes";

struct Command {
  std::string_view name;
  std::string_view help;
  int (*run)(const Arguments&);
  std::string_view out_of_memory;  ///< what to do
};

constexpr Command kCommands[] = {
    {"train", "Fine-tune a model, evaluate it and save the result.", train, "give it more memory"},
    {"check", "Whether a training run can begin and end: options, files, masks, memory, disk.", check,
     "give it more memory"},
    {"eval", "Loss and perplexity of models on records, and their answers to multiple-choice tasks.", evaluate,
     "use a smaller per_device_eval_batch_size or max_seq_length"},
    {"generate", "Answer a prompt, or a file of prompts.", generate,
     "use a shorter prompt or a smaller max_new_tokens"},
    {"chat", "Talk with a model, on a terminal or line by line from a pipe.", chat, "use a smaller max_new_tokens"},
    {"benchmark", "How fast a model answers: latencies, tokens a second, memory.", benchmark,
     "use a smaller benchmark_batch_size, or fewer tokens"},
    {"quantize", "Make a model of 1 to 8 bits a weight: RTN, GPTQ, AWQ or TEQ.", quantize,
     "use a smaller calibration_length or fewer calibration_samples"},
    {"preprocess", "Show and write the exact records, tokens and masks that training uses.", preprocess,
     "use a smaller preprocessing_num_workers, or shorter records"},
    {"merge", "Add adapters into their base: one ordinary model.", merge,
     "set verify_saved_model=false: the comparison holds the model in float32"},
    {"verify", "Whether a folder's files are what was written: DIR, or --write DIR.", verify, ""},
    {"download", "Fetch the model, tokenizer, adapter and records that a configuration names.", download,
     "give it more memory"},
    {"export", "Write the model, or a LoRA adapter of it, as a GGUF file for llama.cpp.", export_file,
     "give it more memory"},
    {"config", "Print the options: --schema, --defaults or --markdown.", config::config_command, ""},
};

std::string help() {
  std::string text = "Fettle fine-tunes large language models.\n\nfettle <command> [config.yaml] --option=value …\n\n";
  for (const Command& command : kCommands) text += fmt::format("  {:<12}{}\n", command.name, command.help);
  return text + "\nfettle <command> --help   the options of a command\nfettle --version\n";
}

[[noreturn]] void fail_unknown(const std::string& name) {
  std::vector<std::string_view> names;
  for (const Command& command : kCommands) names.push_back(command.name);
  const std::string_view nearest = config::nearest(name, names);
  throw Error(ExitCode::kUsage, fmt::format("there is no command '{}'", name),
              nearest.empty() ? "see fettle --help" : fmt::format("did you mean '{}'?", nearest));
}

int dispatch(const Arguments& arguments) {
  if (arguments.empty()) throw Error(ExitCode::kUsage, "no command given", "see fettle --help");
  const std::string& name = arguments.front();
  if (name == "help" && arguments.size() > 1) return dispatch({arguments[1], "--help"});
  if (name == "--help" || name == "-h" || name == "help") {
    fmt::print("{}", help());
    return 0;
  }
  if (name == "--version") {
    fmt::print("fettle {} (libtorch {})\n", FETTLE_VERSION, TORCH_VERSION);
    return 0;
  }
  for (const Command& command : kCommands) {
    if (command.name == name) return command.run({arguments.begin() + 1, arguments.end()});
  }
  fail_unknown(name);
}

/// What to do about an error that does not say it.
std::string_view default_hint(ExitCode code) {
  switch (code) {
    case ExitCode::kUsage:
    case ExitCode::kConfig:
      return "see fettle <command> --help for the options";
    case ExitCode::kData:
      return "correct or replace what is named there";
    case ExitCode::kNoInput:
      return "check the path";
    default:
      return "";
  }
}

/// Prints the one line of an error, whatever names are in it.
int report(ExitCode code, std::string_view what, std::string_view hint) {
  constexpr size_t kLongest = 450;
  if (hint.empty()) hint = default_hint(code);
  const char* kind = code == ExitCode::kPreempted ? "" : "error: ";
  const std::string name = log::name().empty() ? "" : log::name() + ": ";
  const std::string line = fmt::format("{}{}{}{}{}\n", name, kind, shorten(one_line(what), kLongest),
                                       hint.empty() ? "" : "; ", shorten(one_line(hint), kLongest));
  write_termination_message(line);
  std::fputs(line.c_str(), stderr);  // fmt::print would throw where stderr is full
  return static_cast<int>(code);
}

int report(const Error& error) {
  return report(error.code(), error.what(), error.hint());
}

int report_out_of_memory(const Arguments& arguments) {
  const auto* command = std::ranges::find(kCommands, arguments.empty() ? "" : arguments.front(), &Command::name);
  return report(ExitCode::kOutOfMemory, "out of memory", command == std::end(kCommands) ? "" : command->out_of_memory);
}

std::string first_line(std::string_view text) {
  return std::string(text.substr(0, text.find('\n')));
}

int report_internal(std::string_view what) {
  return report(ExitCode::kInternal, "internal error: " + first_line(what),
                "this is a bug in Fettle: please report it");
}

/// A file that the program opens must not get the number of a closed standard stream: the log would be written into
/// it. What stands in for the stream refuses to be read or written, except for the log, which is lost.
void occupy_standard_streams() {
  constexpr int kModes[] = {O_WRONLY, O_RDONLY, O_WRONLY};
  for (int stream = 0; stream < 3; ++stream) {
    if (::fcntl(stream, F_GETFD) < 0) ::open("/dev/null", kModes[stream]);  // the lowest free number: this one
  }
}

int run_command(const Arguments& arguments) {
  try {
    return dispatch(arguments);
  } catch (const Error& error) {
    return report(error);
  } catch (const std::filesystem::filesystem_error& error) {
    return report(system_error("cannot use " + error.path1().string(), error.code().value()));
  } catch (const std::system_error& error) {  // of fmt's printing, or of starting a thread
    if (std::ferror(stdout) != 0) return report(ExitCode::kIo, kLostOutput, kOutputHint);
    return report(system_error("a system call failed", error.code().value()));
  } catch (const c10::Error& error) {
    if (device::is_out_of_memory(error)) return report_out_of_memory(arguments);
    if (!device::is_device_failure(error)) return report_internal(error.what_without_backtrace());
    return report(
        ExitCode::kUnavailable, first_line(error.what_without_backtrace()),
        "see the accelerator's health (nvidia-smi or hl-smi, dmesg); the same command continues from the last "
        "checkpoint");
  } catch (const std::exception& error) {
    return device::is_out_of_memory(error) ? report_out_of_memory(arguments) : report_internal(error.what());
  }
}

}  // namespace

int run(const Arguments& arguments) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit becomes an error of the write, which says what and where
  occupy_standard_streams();
  handle_stop_signals();
  const int code = run_command(arguments);
  if (code != 0 || (std::fflush(stdout) == 0 && std::ferror(stdout) == 0)) return code;
  return report(ExitCode::kIo, kLostOutput, kOutputHint);
}

}  // namespace fettle::cli
