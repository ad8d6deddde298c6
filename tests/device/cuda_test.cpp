// SPDX-License-Identifier: Apache-2.0
/// What the user is told where the libraries of a GPU are missing. That they load and compute: tests/ops/cuda.
#include "device/cuda.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "base/error.h"

namespace fettle::device {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Cuda : public ::testing::Test {
 protected:
  Cuda() { std::filesystem::create_directories(folder_); }
  ~Cuda() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] std::string file(const char* name, const std::string& content) const {
    std::ofstream(folder_ / name) << content;
    return folder_ / name;
  }
  [[nodiscard]] CudaFolders here() const { return {folder_, {folder_}}; }

  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("fettle_cuda_test." + std::to_string(::getpid()));
};

std::string message(const CudaFolders& folders) {
  try {
    load_cuda(folders);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_FALSE(error.hint().empty());
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "loaded";
}

TEST_F(Cuda, SaysThatTorchIsWithoutCuda) {
  EXPECT_THAT(message(here()), AllOf(HasSubstr("no libtorch_cuda.so beside libtorch_cpu.so"), HasSubstr(folder_)));
}

TEST_F(Cuda, SaysThatTheBuildIsWithoutKernels) {
  const std::string library = file("libtorch_cuda.so", "");
  EXPECT_THAT(message(here()), AllOf(HasSubstr("no libfettle_cuda.so"), HasSubstr(folder_)));
}

TEST_F(Cuda, SaysWhyTorchCannotBeLoaded) {
  const std::string kernels = file("libfettle_cuda.so", "");
  const std::string library = file("libtorch_cuda.so", std::string(4096, 'x'));
  EXPECT_THAT(message(here()), AllOf(HasSubstr(library + " cannot be loaded"), HasSubstr("invalid ELF header")));
}

TEST(CudaFolders, AreTorchsAndTheProgramsOwn) {
  const CudaFolders folders = cuda_folders();
  EXPECT_TRUE(std::filesystem::exists(folders.torch / "libtorch_cpu.so")) << folders.torch;
  ASSERT_EQ(folders.kernels.size(), 2u);
  EXPECT_TRUE(std::filesystem::exists(folders.kernels[0] / "test_device")) << folders.kernels[0];
}

}  // namespace
}  // namespace fettle::device
