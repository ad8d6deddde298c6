// SPDX-License-Identifier: Apache-2.0
/// The commands of the program. Each takes the arguments after its name and returns the exit code; user errors are
/// thrown.
#pragma once

#include <string>
#include <vector>

namespace fettle::cli {

using Arguments = std::vector<std::string>;

int train(const Arguments& arguments);
int check(const Arguments& arguments);
int evaluate(const Arguments& arguments);
int generate(const Arguments& arguments);
int benchmark(const Arguments& arguments);
int chat(const Arguments& arguments);
int preprocess(const Arguments& arguments);
int quantize(const Arguments& arguments);
int merge(const Arguments& arguments);
int verify(const Arguments& arguments);
int download(const Arguments& arguments);
int export_file(const Arguments& arguments);

/// Picks and runs the command, catches what it throws, prints one line "error: what; what to do" on standard error, and
/// returns the exit code of base/error.h.
int run(const Arguments& arguments);

}  // namespace fettle::cli
