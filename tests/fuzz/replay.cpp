// SPDX-License-Identifier: Apache-2.0
/// Runs a fuzz target without libFuzzer: every file of a corpus folder, and mutations of each, the same on every run.
///   fuzz_<target> CORPUS MUTATIONS
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "fuzz/target.h"

namespace {

namespace fs = std::filesystem;

/// Not std::uniform_int_distribution, whose numbers differ between standard libraries.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  size_t below(size_t limit) { return limit == 0 ? 0 : engine_() % limit; }

 private:
  std::mt19937_64 engine_;
};

/// Bytes at `at` become an integer that lengths and counts are likely to mishandle.
void overwrite_integer(std::string& text, size_t at, Random& random) {
  constexpr std::array<uint64_t, 8> kValues = {
      0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF};
  const uint64_t value = kValues[random.below(kValues.size())];
  const size_t width = size_t{1} << random.below(4);
  std::memcpy(text.data() + at, &value, std::min(width, text.size() - at));
}

void mutate_once(std::string& text, Random& random) {
  const size_t at = random.below(text.size());
  const size_t length = 1 + random.below(std::min<size_t>(64, text.size() - at + 1));
  switch (random.below(7)) {
    case 0:
      if (!text.empty()) text[at] = static_cast<char>(text[at] ^ (1 << random.below(8)));
      break;
    case 1:
      if (!text.empty()) text[at] = static_cast<char>(random.below(256));
      break;
    case 2:
      text.erase(at, length);
      break;
    case 3:
      text.insert(at, text.substr(random.below(text.size()), length));
      break;
    case 4:
      text.resize(at);
      break;
    case 5:
      text.insert(at, 1, "{}[]\",:\\-0129eE.\n\t "[random.below(19)]);
      break;
    default:
      if (!text.empty()) overwrite_integer(text, at, random);
  }
}

void run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

std::string last_input;

/// An uncaught exception: keep what caused it.
[[noreturn]] void report_and_abort() {
  const fs::path path = fs::temp_directory_path() / "fettle-fuzz-failure";
  fettle::write_file(path, last_input);
  std::fprintf(stderr, "the input that failed is kept in %s\n", path.c_str());
  std::abort();
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) {
    std::fprintf(stderr, "usage: %s CORPUS MUTATIONS\n", words[0]);
    return 64;
  }
  std::set_terminate(report_and_abort);
  std::vector<fs::path> seeds;
  for (const auto& entry : fs::directory_iterator(words[1])) seeds.push_back(entry.path());
  std::sort(seeds.begin(), seeds.end());
  const int mutations = std::atoi(words[2]);
  int runs = 0;
  for (const fs::path& path : seeds) {
    const std::string seed = fettle::read_file(path);
    Random random(seed.size());
    for (int i = 0; i <= mutations; ++i, ++runs) {
      last_input = seed;
      for (size_t changes = i == 0 ? 0 : 1 + random.below(5); changes > 0; --changes) mutate_once(last_input, random);
      run(last_input);
    }
  }
  std::printf("%zu seeds, %d inputs\n", seeds.size(), runs);
  return seeds.empty() ? 1 : 0;  // a corpus that got lost must not pass
}
