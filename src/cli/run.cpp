// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <csignal>
#include <cstdio>
#include <new>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/utf8.h"
#include "cli/commands.h"
#include "config/describe.h"
#include "config/value.h"

namespace fettle::cli {
namespace {

struct Command {
  std::string_view name;
  std::string_view help;
  int (*run)(const Arguments&);
};

constexpr Command kCommands[] = {
    {"train", "Fine-tune a model, evaluate it and save the result.", train},
    {"eval", "Loss and perplexity of a model, or a model and an adapter, on records.", evaluate},
    {"generate", "Answer a prompt.", generate},
    {"preprocess", "Show and write the exact records, tokens and masks that training uses.", preprocess},
    {"config", "Print the options: --schema, --defaults or --markdown.", config::config_command},
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

/// Prints the one line of an error, whatever names are in it.
int report(ExitCode code, std::string_view what, std::string_view hint) {
  fmt::print(stderr, "error: {}{}{}\n", one_line(what), hint.empty() ? "" : "; ", one_line(hint));
  return static_cast<int>(code);
}

int report_out_of_memory() {
  return report(ExitCode::kOutOfMemory, "out of memory",
                "use gradient_checkpointing=true, a smaller per_device_train_batch_size with more "
                "gradient_accumulation_steps, or a smaller max_seq_length");
}

std::string first_line(std::string_view text) {
  return std::string(text.substr(0, text.find('\n')));
}

int report_internal(std::string_view what) {
  return report(ExitCode::kInternal, "internal error: " + first_line(what),
                "this is a bug in Fettle: please report it");
}

}  // namespace

int run(const Arguments& arguments) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit becomes an error of the write, which says what and where
  try {
    return dispatch(arguments);
  } catch (const Error& error) {
    return report(error.code(), error.what(), error.hint());
  } catch (const std::bad_alloc&) {
    return report_out_of_memory();
  } catch (const c10::OutOfMemoryError&) {
    return report_out_of_memory();
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    return what.find("DefaultCPUAllocator") != std::string::npos ? report_out_of_memory() : report_internal(what);
  } catch (const std::exception& error) {
    return report_internal(error.what());
  }
}

}  // namespace fettle::cli
