// SPDX-License-Identifier: Apache-2.0
// What of the hub client needs no server; tests/interop/test_hub_download.py has the rest.
#include "hub/hub_client.h"

#include <gmock/gmock.h>

#include "base/hash.h"
#include "hub/http.h"
#include "hub/model_files.h"
#include "hub/partial_file.h"
#include "hub/support.h"
#include "hub/url_file.h"

namespace fettle::hub {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

Listing listing(const std::vector<std::string>& paths) {
  Listing files;
  for (const std::string& path : paths) files.push_back({path, 1, std::string(40, '0')});
  return files;
}

std::vector<std::string> selected(const std::vector<std::string>& paths, ModelPurpose purpose) {
  std::vector<std::string> names;
  for (const ListedFile& file : select_model_files(listing(paths), purpose, "s")) names.push_back(file.path);
  return names;
}

TEST(ModelFiles, AreConfigurationTokenizerAndSafetensors) {
  const std::vector<std::string> all = {".gitattributes",
                                        "README.md",
                                        "additional_chat_templates/tool_use.jinja",
                                        "chat_template.jinja",
                                        "config.json",
                                        "consolidated.safetensors",
                                        "model-00001-of-00001.safetensors",
                                        "model.safetensors.index.json",
                                        "onnx/model.onnx",
                                        "original/params.json",
                                        "pytorch_model.bin.index.json",
                                        "pytorch_model-00001.bin",
                                        "tokenizer.json",
                                        "tokenizer.model",
                                        "trainer_state.json"};
  EXPECT_THAT(selected(all, ModelPurpose::kModel),
              ElementsAre("additional_chat_templates/tool_use.jinja", "chat_template.jinja", "config.json",
                          "model-00001-of-00001.safetensors", "model.safetensors.index.json", "tokenizer.json",
                          "tokenizer.model"));
  EXPECT_THAT(selected(all, ModelPurpose::kTokenizer),
              ElementsAre("additional_chat_templates/tool_use.jinja", "chat_template.jinja", "config.json",
                          "tokenizer.json", "tokenizer.model"));
  EXPECT_THAT(selected(all, ModelPurpose::kConfig), ElementsAre("config.json"));
  EXPECT_THAT(selected({"config.json", "model.safetensors", "model.safetensors.index.json", "other.safetensors"},
                       ModelPurpose::kModel),
              ElementsAre("config.json", "model.safetensors"));
  EXPECT_THAT(selected({"adapter_config.json", "adapter_model.safetensors", "README.md"}, ModelPurpose::kAdapter),
              ElementsAre("adapter_config.json", "adapter_model.safetensors"));
}

TEST(HubNames, StayInsideTheCache) {
  for (const char* path : {"a", "a/b.json", "a b", "..a", "a..b/c"}) EXPECT_TRUE(is_safe_path(path)) << path;
  for (const char* path : {"", "/a", "a/", "..", "../a", "a/../b", "./a", "a//b", "a\nb", "a\\b"}) {
    EXPECT_FALSE(is_safe_path(path)) << path;
  }
  EXPECT_TRUE(is_commit(std::string(40, 'a')));
  EXPECT_FALSE(is_commit(std::string(40, 'g')));
  EXPECT_FALSE(is_commit("main"));
}

TEST(Urls, AreTakenApart) {
  EXPECT_EQ(origin_of("https://Host.example/a?b"), "https://host.example:443");
  EXPECT_EQ(origin_of("http://user:secret@h:81/"), "http://h:81");
  EXPECT_EQ(origin_of("ftp://h/"), "");
  EXPECT_EQ(origin_of("no url"), "");
  EXPECT_EQ(shown_url("https://user:secret@h/a%20b?signature=secret#secret"), "https://h/a%20b");
  EXPECT_EQ(url_encode("refs/pr/1"), "refs%2Fpr%2F1");
  EXPECT_EQ(url_encode("a b/ü#?.json", true), "a%20b/%C3%BC%23%3F.json");
  for (const char* text : {"https://h/x", "s3://b/x"}) EXPECT_TRUE(is_url(text)) << text;
  for (const char* text : {"/a/b", "a.json", "://x", "a b://c"}) EXPECT_FALSE(is_url(text)) << text;
  expect_error([] { fetch_url("s3://b/x.json", "", "train_file"); }, ExitCode::kUsage, "give a presigned https URL");
}

TEST(Hashes, OfGit) {
  Sha1 hash;  // git hash-object of "hello\n"
  hash.update("blob 6");
  hash.update(std::string_view("\0hello\n", 7));
  EXPECT_EQ(hash.finish(), "ce013625030ba8dba906f756967f9e9ca394464a");
}

class PartialFileTest : public testing::Test {
 protected:
  TemporaryFolder folder_;
  fs::path target_ = folder_.path() / "blob";
};

TEST_F(PartialFileTest, RemembersWhatHasArrived) {
  constexpr int64_t kSize = (int64_t{5} << 20) / 2;  // three pieces
  std::string content(kSize, 'x');
  for (size_t i = 0; i < content.size(); i += 1000) content[i] = static_cast<char>('a' + i / 1000 % 26);
  {
    PartialFile file(target_, kSize);
    ASSERT_EQ(file.pieces(), 3U);
    const auto [first, end] = file.piece(1);
    file.write(1, std::string_view(content).substr(static_cast<size_t>(first), 100'000));
    file.write(1, std::string_view(content).substr(static_cast<size_t>(first) + 100'000, 5));
  }
  PartialFile file(target_, kSize);
  EXPECT_EQ(file.done(1), 100'005);
  EXPECT_EQ(file.done_bytes(), 100'005);
  EXPECT_EQ(PartialFile::missing_bytes(target_, kSize) < kSize, true);
  for (size_t i = 0; i < file.pieces(); ++i) {
    const auto [first, end] = file.piece(i);
    const auto begin = static_cast<size_t>(first + file.done(i));
    file.write(i, std::string_view(content).substr(begin, static_cast<size_t>(end) - begin));
  }
  EXPECT_TRUE(file.has_digest(sha256(content)));
  EXPECT_FALSE(file.has_digest(sha256("other")));
  EXPECT_TRUE(file.has_digest("an etag without meaning"));
  file.commit();
  EXPECT_EQ(read_file(target_), content);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), {}), 1);
}

TEST_F(PartialFileTest, BeginsAgainWhereTheNotesDoNotFit) {
  { PartialFile(target_, 3000).write(0, "abc"); }
  EXPECT_EQ(PartialFile(target_, 3001).done_bytes(), 0);  // another size
  { PartialFile(target_, 3001).write(0, "abc"); }
  const fs::path ranges = folder_ / "blob.fettle.ranges";
  std::string notes = read_file(ranges);
  for (const char* damage : {"cut", "too much", "negative"}) {
    std::string bad = notes;
    if (std::string_view(damage) == "cut") bad.resize(70);
    if (std::string_view(damage) == "too much") bad.replace(64, 8, little_endian<int64_t>(5000));
    if (std::string_view(damage) == "negative") bad.replace(64, 8, little_endian<int64_t>(-1));
    write_file(ranges, bad);
    EXPECT_EQ(PartialFile(target_, 3001).done_bytes(), 0) << damage;
  }
  write_file(ranges, notes);
  fs::remove(folder_ / "blob.fettle.incomplete");
  EXPECT_EQ(PartialFile(target_, 3001).done_bytes(), 0);
}

TEST_F(PartialFileTest, HoldsNothing) {
  PartialFile file(target_, 0);
  EXPECT_EQ(file.pieces(), 1U);
  EXPECT_TRUE(file.has_digest("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"));  // git's empty file
  file.commit();
  EXPECT_EQ(fs::file_size(target_), 0U);
}

}  // namespace
}  // namespace fettle::hub
