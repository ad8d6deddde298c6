// SPDX-License-Identifier: Apache-2.0
#include "base/file.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <cerrno>
#include <functional>

#include "support/temporary_folder.h"

namespace fettle {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

void expect_error(const std::function<void()>& body, ExitCode code, const std::string& what, const std::string& hint) {
  try {
    body();
    ADD_FAILURE() << "no Error: " << what;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(what));
    EXPECT_THAT(error.hint(), HasSubstr(hint));
  }
}

TEST(ReadFile, RefusesWhatIsNoFileAtOnce) {
  const TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  for (const fs::path& path : {folder / "pipe", folder.path(), fs::path("/dev/zero")}) {
    expect_error([&] { read_file(path); }, ExitCode::kNoInput, path.string() + " is not a regular file", "a file");
  }
}

TEST(ReadFile, SaysWhatIsWrongWithAPath) {
  const TemporaryFolder folder;
  fs::create_symlink("circle", folder / "circle");
  folder.write("file", "");
  expect_error([&] { read_file(folder / "circle"); }, ExitCode::kNoInput, "circle", "symbolic links");
  expect_error([&] { read_file(folder / std::string(300, 'x')); }, ExitCode::kNoInput, "name too long", "255 bytes");
  expect_error([&] { read_file(folder / "file/x"); }, ExitCode::kNoInput, "file/x", "not a folder");
  expect_error([&] { read_file(folder / "absent"); }, ExitCode::kNoInput, "absent", "check the path");
}

TEST(SystemError, HasTheCodeOfItsReason) {
  EXPECT_EQ(system_error("x", EACCES).code(), ExitCode::kPermission);
  EXPECT_EQ(system_error("x", ENOSPC).code(), ExitCode::kIo);
  EXPECT_EQ(system_error("x", ENOMEM).code(), ExitCode::kOutOfMemory);
  EXPECT_EQ(system_error("x", EIO).code(), ExitCode::kIo);
  EXPECT_STREQ(system_error("cannot do it", EIO).what(), "cannot do it: Input/output error");
}

TEST(MakeDirectories, NamesWhatIsInTheWay) {
  const TemporaryFolder folder;
  const std::string file = folder.write("file", "");
  fs::create_symlink("absent", folder / "link");
  expect_error([&] { make_directories(folder / "file/a/b"); }, ExitCode::kNoInput, file + " is not a folder", "folder");
  expect_error([&] { make_directories(file); }, ExitCode::kNoInput, file + " is not a folder", "folder");
  expect_error([&] { make_directories(folder / "link"); }, ExitCode::kNoInput, "link is a link to nothing", "folder");
  make_directories(folder / "a/b");
  EXPECT_TRUE(fs::is_directory(folder / "a/b"));
}

}  // namespace
}  // namespace fettle
