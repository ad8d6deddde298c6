// SPDX-License-Identifier: Apache-2.0
/// Which text the assistant generates, over the templates of real tokenizers and real conversations.
#include "data/turns.h"

#include <gmock/gmock.h>

#include "base/file.h"
#include "data/data_support.h"
#include "data/format.h"
#include "data/reader.h"
#include "data/tool_text.h"

namespace fettle::data {
namespace {

/// The template alone: the tokenizer itself is big, and not needed.
text::ChatTemplate template_of(const std::string& name) {
  const auto folder = repository("tests/data/tokenizers/" + name);
  const auto settings = nlohmann::json::parse(read_file(folder / "tokenizer_config.json"));
  nlohmann::json special_tokens = nlohmann::json::object();
  for (const char* key : {"bos_token", "eos_token"}) {
    if (settings[key].is_string()) special_tokens[key] = settings[key];
  }
  return {settings["chat_template"], special_tokens};
}

std::vector<std::string> turns_of(const text::ChatTemplate& chat, const Record& messages,
                                  const Record& variables = Record::object()) {
  const auto full = chat.render(messages, false, variables);
  std::vector<std::string> turns;
  for (const text::Span& span : assistant_spans(chat, messages, variables, full)) {
    turns.push_back(full.text.substr(span.begin, span.end - span.begin));
  }
  return turns;
}

std::vector<Conversation> conversations_in(const std::string& path, const std::string& column) {
  const auto reader = open_records(repository("tests/data/datasets/" + path), {});
  std::vector<Conversation> conversations;
  for (RawRecord raw; reader->next(raw);) conversations.push_back(to_conversation(reader->parse(raw), column));
  return conversations;
}

std::vector<std::string> answers_of(const Record& messages) {
  std::vector<std::string> answers;
  for (const Record& message : messages) {
    if (message["role"] == "assistant") answers.push_back(message["content"]);
  }
  return answers;
}

std::string trimmed(std::string text) {
  text.erase(0, text.find_first_not_of(" \t\r\n"));
  text.erase(text.find_last_not_of(" \t\r\n") + 1);
  return text;
}

/// What each template writes around an answer: what it opens with beyond the generation prompt, and its end of turn.
struct Family {
  const char* tokenizer;
  const char* before;
  const char* after;
  bool trims;
};

class TurnsTest : public testing::TestWithParam<Family> {
 protected:
  /// Checks one conversation; the last turn of Qwen3 opens with an empty thought.
  void check(const text::ChatTemplate& chat, const Conversation& conversation) const {
    const Family& family = GetParam();
    const auto turns = turns_of(chat, conversation.messages, conversation.variables);
    const auto answers = answers_of(conversation.messages);
    ASSERT_EQ(turns.size(), answers.size());
    const bool qwen3 = std::string_view(family.tokenizer) == "qwen3";
    for (size_t i = 0; i < turns.size(); ++i) {
      const bool last = conversation.messages.back()["role"] == "assistant" && i + 1 == turns.size();
      const std::string thought = qwen3 && last ? "<think>\n\n</think>\n\n" : "";
      const std::string answer = family.trims ? trimmed(answers[i]) : answers[i];
      EXPECT_EQ(turns[i], thought + family.before + answer + family.after);
    }
  }
};

TEST_P(TurnsTest, RealConversations) {
  const auto chat = template_of(GetParam().tokenizer);
  for (const auto& conversation : conversations_in("oasst_en_chat_messages_60.jsonl", "messages")) {
    check(chat, conversation);
  }
  auto short_ones = conversations_in("fastchat_dummy_sharegpt_400.json", "conversations");
  short_ones.resize(100);
  for (const auto& conversation : short_ones) check(chat, conversation);
}

INSTANTIATE_TEST_SUITE_P(Templates, TurnsTest,
                         testing::Values(Family{"llama2", " ", " </s>", true}, Family{"mistral-v3", " ", "</s>", true},
                                         Family{"llama3-style-4k", "", "<|eot_id|>", true},
                                         Family{"smollm2", "", "<|im_end|>\n", false},
                                         Family{"qwen3", "", "<|im_end|>\n", false}),
                         [](const auto& info) {
                           std::string name = info.param.tokenizer;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(TurnsQwen3Test, ToolCallsBetweenTurns) {
  const auto chat = template_of("qwen3");
  ASSERT_TRUE(shows_tool_calls(chat));
  int64_t calls = 0;
  for (const auto& conversation : conversations_in("glaive_toolcall_sharegpt_200.json", "conversations")) {
    const auto turns = turns_of(chat, conversation.messages, conversation.variables);
    size_t next = 0;
    for (const Record& message : conversation.messages) {
      if (message["role"] != "assistant") continue;
      const std::string& turn = turns.at(next++);
      EXPECT_THAT(turn, testing::EndsWith("<|im_end|>\n"));
      EXPECT_EQ(turn.find("<|im_end|>"), turn.size() - 11);
      EXPECT_EQ(turn.find("tool_response"), std::string::npos);
      if (message.contains("tool_calls")) {
        ++calls;
        EXPECT_THAT(turn, testing::HasSubstr("<tool_call>\n{\"name\": \"" +
                                             message["tool_calls"][0]["function"]["name"].get<std::string>()));
      } else {
        EXPECT_THAT(turn, testing::HasSubstr(message["content"].get<std::string>()));
      }
    }
    EXPECT_EQ(next, turns.size());
  }
  EXPECT_GT(calls, 50);
}

TEST(TurnsQwen3Test, ThoughtsOfEarlierTurnsAreDropped) {
  const auto chat = template_of("qwen3");
  const Record messages = Record::parse(R"([
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"}])");
  EXPECT_THAT(turns_of(chat, messages), testing::ElementsAre("first<|im_end|>\n", "first<|im_end|>\n",
                                                             "<think>\nhm\n</think>\n\nfirst<|im_end|>\n"));
}

/// A user's <tool_response>: Qwen3 looks at both ends of it to find the last question.
TEST(TurnsQwen3Test, ContentsThatTheTemplateLooksAt) {
  const auto chat = template_of("qwen3");
  const Record messages = Record::parse(R"([
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nend"},
    {"role": "user", "content": "<tool_response>\nr\n</tool_response>"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nend"},
    {"role": "user", "content": "end"}, {"role": "assistant", "content": "a"}])");
  EXPECT_THAT(turns_of(chat, messages),
              testing::ElementsAre("end<|im_end|>\n", "end<|im_end|>\n", "<think>\n\n</think>\n\na<|im_end|>\n"));
}

TEST(TurnsTest, OnlyTheTurnsAskedFor) {
  const auto chat = template_of("qwen3");
  Record messages = Record::array();
  for (int i = 0; i < 6; ++i) {
    messages.push_back({{"role", "user"}, {"content", "question"}});
    messages.push_back({{"role", "assistant"}, {"content", "answer"}});
  }
  const auto full = chat.render(messages, false);
  const auto all = assistant_spans(chat, messages, Record::object(), full);
  ASSERT_EQ(all.size(), 6U);
  const auto last = assistant_spans(chat, messages, Record::object(), full, {.last_only = true});
  EXPECT_EQ(last, (std::vector<text::Span>{all.back()}));
  const auto some = assistant_spans(chat, messages, Record::object(), full, {.before = all[2].end});
  EXPECT_EQ(some, (std::vector<text::Span>{all[0], all[1], all[2]}));
  EXPECT_EQ(assistant_spans(chat, messages, Record::object(), full, {.before = 0}), (std::vector<text::Span>{all[0]}));
}

/// Mistral's: calls need an id of nine characters, and none is written without.
TEST(TurnsTest, ATemplateThatIsStrictAboutCallsShowsThem) {
  const auto source = read_file(repository("tests/golden/text/templates/mistral_tools.jinja"));
  EXPECT_TRUE(shows_tool_calls(text::ChatTemplate(source, {{"bos_token", "<s>"}, {"eos_token", "</s>"}})));
  EXPECT_TRUE(shows_tool_calls(text::ChatTemplate("{{ raise_exception('no') }}", {})));
  EXPECT_FALSE(shows_tool_calls(template_of("smollm2")));
}

TEST(TurnsTest, GenerationPromptThatOpensAThought) {
  const text::ChatTemplate chat(
      "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}</s>{% endfor %}"
      "{% if add_generation_prompt %}<assistant><think>\n{% endif %}",
      {});
  const Record messages = Record::parse(R"([
    {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
    {"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>c</think>d"}])");
  EXPECT_THAT(turns_of(chat, messages), testing::ElementsAre("b</s>", "d</s>"));
}

TEST(TurnsTest, AssistantWhoSpeaksFirstAndLastQuestionUnanswered) {
  const auto chat = template_of("llama3-style-4k");
  const Record messages = Record::parse(R"([
    {"role": "assistant", "content": "Welcome"}, {"role": "user", "content": "x"},
    {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}])");
  EXPECT_THAT(turns_of(chat, messages), testing::ElementsAre("Welcome<|eot_id|>", "y<|eot_id|>"));
}

TEST(TurnsTest, AssistantWhoSpeaksFirstWithTools) {
  const auto chat = template_of("qwen3");
  const Record messages = Record::parse(R"([{"role": "assistant", "content": "Welcome"}])");
  const Record tools = Record::parse(R"({"tools": [{"name": "Welcome"}]})");
  EXPECT_THAT(turns_of(chat, messages, tools), testing::ElementsAre("Welcome<|im_end|>\n"));
}

TEST(TurnsTest, EmptyAnswersHaveTurnsToo) {
  const auto chat = template_of("qwen3");
  const Record messages = Record::parse(R"([
    {"role": "user", "content": "x"}, {"role": "assistant", "content": ""},
    {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])");
  EXPECT_THAT(turns_of(chat, messages), testing::ElementsAre("<|im_end|>\n", "<think>\n\n</think>\n\ny<|im_end|>\n"));
}

/// A template that writes earlier turns in a way that no rendering of the beginning shows: no guess is made.
TEST(TurnsTest, HiddenTurnsAreRefused) {
  const text::ChatTemplate chat(
      "{% for m in messages %}{{ m.role }}{{ messages | length }}:{{ m.content }};{{ messages | length }}\n{% endfor "
      "%}",
      {});
  const Record messages = Record::parse(R"([
    {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}])");
  EXPECT_THROW(turns_of(chat, messages), BadRecord);
}

}  // namespace
}  // namespace fettle::data
