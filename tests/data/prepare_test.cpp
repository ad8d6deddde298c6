// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <set>

#include "base/file.h"
#include "data/batch.h"
#include "data/data_support.h"

namespace fettle::data {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::Pair;

std::string numbered_lines(int count) {
  std::string lines;
  for (int i = 0; i < count; ++i) lines += fmt::format("{{\"text\": \"story number {}\"}}\n", i);
  return lines;
}

std::set<std::string> texts_of(const TokenDataset& dataset) {
  std::set<std::string> texts;
  for (int64_t i = 0; i < dataset.size(); ++i) texts.insert(small_tokenizer().decode(dataset.input_ids(i), true));
  return texts;
}

std::vector<std::vector<int32_t>> all_ids(const TokenDataset& dataset) {
  std::vector<std::vector<int32_t>> ids;
  for (int64_t i = 0; i < dataset.size(); ++i) ids.push_back(example_of(dataset, i).input_ids);
  return ids;
}

fs::path only_cache_file(const config::DataConfig& config) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(config.dataset_cache_directory)) {
    if (entry.path().extension() != ".lock") files.push_back(entry.path());
  }
  EXPECT_EQ(files.size(), 1U);
  return files.at(0);
}

class PrepareTest : public testing::Test {
 protected:
  TemporaryFolder folder_;
  config::DataConfig config_ = config_for(folder_.write("train.jsonl", numbered_lines(40)), folder_);

  PreparedData prepared() { return prepare(config_, small_tokenizer(), true); }
};

TEST_F(PrepareTest, CountsWhatBecameOfTheRecords) {
  config_.train_file = {folder_.write("mixed.jsonl",
                                      "{\"text\": \"one\"}\n{\"text\": \"\"}\n{\"text\": \"one\"}\n{\"text\": "
                                      "null}\n{\"text\": \"a long story about a cat\"}\n")};
  config_.max_seq_length = 12;
  const TokenDataset train = prepared().train;
  const Preparation& counts = train.preparation();
  EXPECT_EQ(counts.records, 5);
  EXPECT_EQ(counts.documents, 3);
  EXPECT_EQ(counts.dropped, 2);
  EXPECT_THAT(counts.dropped_why, ElementsAre(Pair("empty", 2)));
  EXPECT_EQ(counts.duplicates, 1);
  EXPECT_EQ(counts.truncated, 1);
  EXPECT_EQ(counts.ended, 2);  // the long one lost its EOS
  EXPECT_EQ(counts.longest, 12);
  EXPECT_EQ(counts.tokens, train.length(0) + train.length(1) + train.length(2));
  EXPECT_EQ(counts.target_tokens, counts.tokens - 3);
  EXPECT_GT(counts.packing_efficiency, 0);
  EXPECT_EQ(train.record(0), 0);
  EXPECT_EQ(train.record(1), 2);
  EXPECT_EQ(train.record(2), 4);
}

TEST_F(PrepareTest, SkippedRecordsAreCountedByReason) {
  config_.train_file = {
      folder_.write("bad.jsonl", "{\"text\": \"a\"}\n{]\n{\"text\": 3}\n[]\n{\"text\": 4}\n{\"text\": \"b\"}\n")};
  config_.on_bad_record = "skip";
  const TokenDataset train = prepared().train;
  EXPECT_EQ(train.size(), 2);
  EXPECT_EQ(train.record(1), 5);
  EXPECT_THAT(train.preparation().dropped_why, ElementsAre(Pair("column 'text' is a number, not text", 2),
                                                           Pair("malformed JSON", 1), Pair("not an object", 1)));
}

TEST_F(PrepareTest, SkipCoversTheFirstRecords) {
  config_.train_file = {folder_.write("bad.jsonl", "{]\n{\"txet\": \"a\"}\n{\"instruction\": 1}\n{\"text\": \"b\"}\n")};
  config_.on_bad_record = "skip";
  const TokenDataset train = prepared().train;
  EXPECT_EQ(train.size(), 1);
  EXPECT_EQ(train.record(0), 3);
  EXPECT_THAT(train.preparation().dropped_why,
              ElementsAre(Pair("column 'text' is missing", 2), Pair("malformed JSON", 1)));
}

TEST_F(PrepareTest, CountsAsCutOffOnlyWhatIsKept) {
  const std::string ids = "[1,5,6,7,8,9,10,11,12,13]";
  config_.train_file = {folder_.write(
      "ids.jsonl", "{\"input_ids\":" + ids + ",\"labels\":[-100,5,6,7,8,9,10,11,12,13]}\n" + "{\"input_ids\":" + ids +
                       ",\"labels\":[-100,-100,-100,-100,-100,-100,-100,11,12,13]}\n" +
                       "{\"input_ids\":[1,5],\"labels\":[-100,5]}\n")};
  config_.max_seq_length = 6;
  const Preparation cut = prepared().train.preparation();
  EXPECT_EQ(cut.documents, 2);
  EXPECT_EQ(cut.truncated, 1);
  EXPECT_EQ(cut.dropped_pieces, 0);
  EXPECT_THAT(cut.dropped_why, ElementsAre(Pair("no target tokens within max_seq_length", 1)));
  config_.packing_strategy = "bfd_split";
  for (int time = 0; time < 2; ++time) {  // the second from the cache
    const Preparation split = prepared().train.preparation();
    EXPECT_EQ(split.documents, 4);
    EXPECT_EQ(split.truncated, 0);
    EXPECT_EQ(split.dropped_pieces, 1);
    EXPECT_EQ(split.dropped, 0);
  }
}

TEST_F(PrepareTest, NamesTheTemplateOnlyWhereOneApplies) {
  const auto logged = [this](const std::string& record) {
    config_.train_file = {folder_.write("one.jsonl", record + "\n")};
    testing::internal::CaptureStderr();
    prepared();
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(logged(R"({"instruction": "a", "output": "b"})"), HasSubstr("as alpaca, template alpaca"));
  EXPECT_THAT(logged(R"({"text": "a"})"), AllOf(HasSubstr("as text"), Not(HasSubstr("template"))));
  EXPECT_THAT(logged(R"({"input_ids": [1, 5]})"), AllOf(HasSubstr("as tokenized"), Not(HasSubstr("template"))));
  const std::string pair = R"({"prompt": "a", "completion": "b"})";
  EXPECT_THAT(logged(pair), AllOf(HasSubstr("as prompt_completion"), Not(HasSubstr("template"))));
  config_.prompt_template = "llama2";
  EXPECT_THAT(logged(pair), HasSubstr("as prompt_completion, template llama2"));
}

TEST_F(PrepareTest, SplitsLongDocumentsOnRequest) {
  config_.train_file = {folder_.write("long.txt", "once upon a time there was a little cat who lived in a big house")};
  config_.max_seq_length = 10;
  const TokenDataset cut = prepared().train;
  EXPECT_EQ(cut.size(), 1);
  config_.packing_strategy = "bfd_split";
  const TokenDataset split = prepared().train;
  EXPECT_GT(split.size(), 2);
  EXPECT_EQ(split.preparation().truncated, 0);
  std::vector<int32_t> joined;
  for (int64_t i = 0; i < split.size(); ++i) {
    const auto ids = split.input_ids(i);
    EXPECT_EQ(split.record(i), 0);
    EXPECT_TRUE(i + 1 == split.size() || ids.size() == 10);
    joined.insert(joined.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(joined.back(), small_tokenizer().eos_id());
  EXPECT_EQ(small_tokenizer().decode(joined, true), "once upon a time there was a little cat who lived in a big house");
}

TEST_F(PrepareTest, SplitIsAPartitionFixedByItsSeed) {
  config_.validation_split_percentage = 0.25;
  const PreparedData first = prepared();
  ASSERT_TRUE(first.validation);
  EXPECT_EQ(first.train.size(), 30);
  EXPECT_EQ(first.validation->size(), 10);
  auto all = texts_of(first.train);
  const auto held_out = texts_of(*first.validation);
  all.insert(held_out.begin(), held_out.end());
  EXPECT_EQ(all.size(), 40U);
  EXPECT_EQ(texts_of(*prepared().validation), held_out);

  config_.validation_split_percentage = 25;  // percent
  EXPECT_EQ(texts_of(*prepared().validation), held_out);
  config_.dataset_seed = 43;
  EXPECT_NE(texts_of(*prepared().validation), held_out);
}

TEST_F(PrepareTest, SplitNeverLeavesASideEmpty) {
  for (const double share : {0.0001, 0.9999}) {
    config_.validation_split_percentage = share;
    const PreparedData data = prepared();
    EXPECT_EQ(share < 0.5 ? data.validation->size() : data.train.size(), 1);
  }
}

TEST_F(PrepareTest, SampleLimitsComeAfterTheSplit) {
  config_.validation_split_percentage = 0.5;
  config_.max_train_samples = 3;
  config_.max_eval_samples = 2;
  const PreparedData data = prepared();
  EXPECT_EQ(data.train.size(), 3);
  EXPECT_EQ(data.validation->size(), 2);
}

TEST_F(PrepareTest, ValidationFileWinsOverThePercentage) {
  config_.validation_split_percentage = 0.5;
  config_.validation_file = {folder_.write("held_out.txt", "one\ntwo\n")};
  const PreparedData data = prepared();
  EXPECT_EQ(data.train.size(), 40);
  EXPECT_EQ(data.validation->size(), 2);
}

TEST_F(PrepareTest, FolderWithSplits) {
  folder_.write("set/data/train-00001-of-00002.jsonl", "{\"text\": \"second\"}\n");
  folder_.write("set/data/train-00000-of-00002.jsonl", "{\"text\": \"first\"}\n");
  folder_.write("set/data/test.CSV", "text\nheld out\n");
  folder_.write("set/data/README.md", "no data");
  config_.train_file.clear();
  config_.dataset_name = (folder_.path() / "set").string();
  const PreparedData data = prepared();
  EXPECT_EQ(small_tokenizer().decode(data.train.input_ids(0), true), "first");
  EXPECT_EQ(data.train.size(), 2);
  EXPECT_EQ(data.validation->size(), 1);
}

TEST_F(PrepareTest, PartsOfSplits) {
  folder_.write("set/train.txt", "zero\none\ntwo\nthree\nfour\nfive\n");
  folder_.write("set/test.txt", "a\nb\nc\n");
  folder_.write("set/extra.txt", "x\n");
  config_.train_file.clear();
  config_.dataset_name = (folder_.path() / "set").string();
  config_.dataset_split = "train[1:5]";
  config_.dataset_test_split = "test[:2]";
  PreparedData data = prepared();
  ASSERT_EQ(data.train.size(), 4);
  EXPECT_EQ(small_tokenizer().decode(data.train.input_ids(0), true), "one");
  EXPECT_EQ(data.validation->size(), 2);
  config_.dataset_split = "train[50%:]";
  config_.max_train_samples = 2;
  data = prepared();
  ASSERT_EQ(data.train.size(), 2);
  EXPECT_EQ(small_tokenizer().decode(data.train.input_ids(1), true), "four");
  config_.dataset_split = "extra";
  EXPECT_EQ(prepared().train.size(), 1);
  config_.dataset_split = "train[6:]";
  EXPECT_THROW(prepared(), Error);
  config_.dataset_split = "absent";
  config_.dataset_test_split = "absent";
  EXPECT_THROW(prepared(), Error);
}

TEST_F(PrepareTest, SplitsThatTheUserNames) {
  folder_.write("set/train-00000-of-00001.txt", "zero\none\ntwo\nthree\nfour\n");
  folder_.write("set/validation.txt", "a\n");
  config_.train_file.clear();
  config_.dataset_name = (folder_.path() / "set").string();
  config_.dataset_split = "train[:80%]";
  config_.dataset_test_split = "train[80%:]";  // the rest of the same split
  const PreparedData data = prepared();
  EXPECT_EQ(data.train.size(), 4);
  ASSERT_TRUE(data.validation);
  EXPECT_EQ(small_tokenizer().decode(data.validation->input_ids(0), true), "four");
  const auto expect_missing = [this](const std::string& option, const std::string& name) {
    try {
      prepared();
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kNoInput);
      EXPECT_NE(std::string(error.what()).find("has no split '" + name + "'"), std::string::npos) << error.what();
      EXPECT_EQ(error.hint(), "give one of these as " + option + ": train, validation");
    }
  };
  config_.dataset_test_split = "vaildation";
  expect_missing("dataset_test_split", "vaildation");
  config_.dataset_test_split.clear();
  config_.dataset_split = "trian";
  expect_missing("dataset_split", "trian");
  EXPECT_EQ(prepare(config_, small_tokenizer(), false).validation->size(), 1);  // nothing to train on is needed
}

TEST_F(PrepareTest, HoldsOutOfThePartThatIsUsed) {
  folder_.write("set/train.txt", "zero\none\ntwo\nthree\nfour\nfive\n");
  config_.train_file.clear();
  config_.dataset_name = (folder_.path() / "set").string();
  config_.dataset_split = "train[:4]";
  config_.validation_split_percentage = 0.25;
  const PreparedData data = prepared();
  EXPECT_EQ(data.train.size(), 3);
  ASSERT_EQ(data.validation->size(), 1);
  for (const char* unused : {"four", "five"}) {
    EXPECT_NE(small_tokenizer().decode(data.validation->input_ids(0), true), unused);
  }
}

TEST_F(PrepareTest, EvaluationNeedsNoTrainingData) {
  config_.validation_file = config_.train_file;
  config_.train_file.clear();
  const PreparedData data = prepare(config_, small_tokenizer(), false);
  EXPECT_EQ(data.train.size(), 0);
  EXPECT_EQ(data.validation->size(), 40);
  EXPECT_THROW(prepare(config_, small_tokenizer(), true), Error);
  config_.validation_file.clear();
  config_.train_file = {"any.jsonl"};
  EXPECT_THROW(prepare(config_, small_tokenizer(), false), Error);
}

TEST_F(PrepareTest, WorkersDoNotChangeTheResult) {
  config_.train_file = {repository("tests/data/datasets/mlx_wikisql_train.jsonl").string()};
  config_.overwrite_cache = true;
  config_.preprocessing_num_workers = 1;
  const auto alone = all_ids(prepared().train);
  config_.preprocessing_num_workers = 5;
  EXPECT_EQ(all_ids(prepared().train), alone);
  EXPECT_EQ(alone.size(), 1000U);
}

TEST_F(PrepareTest, PacksRealDataTightly) {
  config_.train_file = {repository("examples/data/medical_meadow_wikidoc_patient_2000.json").string()};
  config_.max_seq_length = 2048;
  config_.max_train_samples = 600;
  EXPECT_GE(prepared().train.preparation().packing_efficiency, 0.95);
}

TEST_F(PrepareTest, CacheHoldsTheSameDocuments) {
  const PreparedData built = prepared();
  const fs::path cache = only_cache_file(config_);
  const auto written = fs::last_write_time(cache);
  const PreparedData cached = prepared();
  EXPECT_EQ(fs::last_write_time(cache), written);
  EXPECT_EQ(all_ids(cached.train), all_ids(built.train));
  EXPECT_EQ(cached.train.fingerprint(), built.train.fingerprint());
  EXPECT_EQ(cached.train.preparation().records, 40);
  EXPECT_EQ(cached.train.preparation().target_tokens, built.train.target_tokens());
}

TEST_F(PrepareTest, DamagedCacheIsMadeAnew) {
  const auto ids = all_ids(prepared().train);
  const fs::path cache = only_cache_file(config_);
  const std::string whole = read_file(cache);
  std::vector<std::string> damaged = {"", "short", whole.substr(0, whole.size() - 1), whole + "x", whole.substr(0, 64)};
  for (size_t position = 0; position < whole.size(); position += 97) {
    damaged.push_back(whole);
    damaged.back()[position] = static_cast<char>(damaged.back()[position] ^ 0x10);
  }
  for (const std::string& content : damaged) {
    write_file(cache, content);
    EXPECT_EQ(all_ids(prepared().train), ids);
    EXPECT_EQ(read_file(cache), whole);
  }
}

TEST_F(PrepareTest, UnwritableCacheKeepsTheDataInMemory) {
  config_.dataset_cache_directory = folder_.write("a_file", "not a folder");
  EXPECT_EQ(prepared().train.size(), 40);
}

TEST_F(PrepareTest, DatesDoNotShareACacheWhereTheTemplateShowsThem) {
  config_.train_file = {folder_.write("qa.jsonl", "{\"instruction\": \"a\", \"output\": \"b\"}\n")};
  const auto fingerprints_differ = [&] {
    config_.template_date = "2024-02-28";
    const std::string before = prepared().train.fingerprint();
    config_.template_date = "2024-02-29";
    return prepared().train.fingerprint() != before;
  };
  EXPECT_FALSE(fingerprints_differ());
  config_.prompt_template =
      folder_.write("dated.jinja", "{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}");
  EXPECT_TRUE(fingerprints_differ());
}

TEST_F(PrepareTest, FingerprintFollowsWhatDecidesTheTokens) {
  const std::string base = prepared().train.fingerprint();
  const auto changed = [&](const std::function<void(config::DataConfig&)>& change) {
    const config::DataConfig kept = config_;
    change(config_);
    const std::string fingerprint = prepared().train.fingerprint();
    config_ = kept;
    return fingerprint;
  };
  EXPECT_NE(changed([](auto& c) { c.max_seq_length = 7; }), base);
  EXPECT_NE(changed([](auto& c) { c.max_train_samples = 7; }), base);
  EXPECT_NE(changed([](auto& c) { c.validation_split_percentage = 7; }), base);
  EXPECT_NE(changed([](auto& c) { c.prompt_template = "none"; }), base);
  EXPECT_NE(changed([&](auto& c) { c.train_file = {folder_.write("other.jsonl", numbered_lines(41))}; }), base);
  EXPECT_EQ(changed([&](auto& c) { c.train_file = {folder_.write("copy.jsonl", numbered_lines(40))}; }), base);
  EXPECT_EQ(changed([](auto& c) { c.preprocessing_num_workers = 1; }), base);
  EXPECT_EQ(changed([](auto& c) { c.packing = false; }), base);
}

}  // namespace
}  // namespace fettle::data
