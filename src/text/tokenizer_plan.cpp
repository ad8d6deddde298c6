// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer_plan.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <set>
#include <string_view>

#include "base/error.h"
#include "text/sentencepiece.h"
#include "text/tokenizer_class.h"

namespace fettle::text {
namespace {

using nlohmann::json;

constexpr int kDeepestPart = 30;  // of nested arrays and objects; what is deeper says nothing to us, and copies recurse

constexpr std::array kNamedTokens = {"bos_token", "eos_token", "unk_token", "sep_token",
                                     "pad_token", "cls_token", "mask_token"};

json parse(const std::string& text, const std::string& name, std::string_view file) {
  if (text.empty()) {
    return json::object();
  }
  const auto skip_deep = [](int depth, json::parse_event_t, json&) { return depth <= kDeepestPart; };
  json parsed = json::parse(text, skip_deep, false);
  if (!parsed.is_object()) {
    throw Error(ExitCode::kData, fmt::format("{}: {} is not a JSON object", name, file),
                "check that the file was copied completely");
  }
  return parsed;
}

/// tokenizer.json without its vocabulary and merges, which are 99 % of it and not looked at here.
json parse_outline(const TokenizerFiles& files) {
  const auto skip_large = [](int depth, json::parse_event_t event, json& value) {
    const bool large = depth == 2 && event == json::parse_event_t::key && (value == "vocab" || value == "merges");
    return !large && depth <= kDeepestPart;
  };
  json outline = json::parse(files.tokenizer_json, skip_large, false);
  if (!outline.is_object() || !outline.contains("model") || !outline["model"].is_object()) {
    throw Error(ExitCode::kData, files.name + ": tokenizer.json is not a tokenizer",
                "check that the file was copied completely");
  }
  return outline;
}

bool is_named_token(const std::string& key) {
  return std::find(kNamedTokens.begin(), kNamedTokens.end(), key) != kNamedTokens.end();
}

/// An added token from a string or from {"content", flags…}; null for anything else.
json added_token(const json& value, bool special) {
  const std::string content = value.is_string()   ? value.get<std::string>()
                              : value.is_object() ? text_at(value, "content")
                                                  : "";
  if (content.empty()) {
    return nullptr;
  }
  const json flags = value.is_object() ? value : json::object();
  const bool is_special = flag_at(flags, "special", special);
  return {{"content", content},
          {"single_word", flag_at(flags, "single_word", false)},
          {"lstrip", flag_at(flags, "lstrip", false)},
          {"rstrip", flag_at(flags, "rstrip", false)},
          {"normalized", flag_at(flags, "normalized", !is_special)},
          {"special", is_special}};
}

/// The values that name the special tokens, from all files and in transformers' order of precedence.
json named_values(const TokenizerFiles& files, const json& config, Rebuild rebuild) {
  json values = json::object();
  if (rebuild == Rebuild::kLlama) {
    values = {{"unk_token", "<unk>"}, {"bos_token", "<s>"}, {"eos_token", "</s>"}};
  } else if (rebuild == Rebuild::kGpt2) {
    values = {{"unk_token", "<|endoftext|>"}, {"bos_token", "<|endoftext|>"}, {"eos_token", "<|endoftext|>"}};
  } else if (rebuild == Rebuild::kQwen2) {
    values = {{"unk_token", "<|endoftext|>"}, {"eos_token", "<|endoftext|>"}, {"pad_token", "<|endoftext|>"}};
  }
  values.update(config);
  if (!config.contains("added_tokens_decoder")) {
    values.update(parse(files.special_tokens_map, files.name, "special_tokens_map.json"));
  }
  return values;
}

/// {"bos_token": "<s>", …}: the seven names of transformers, and any other "…_token" of the model.
json special_tokens(const json& values) {
  json named = json::object();
  for (const auto& [key, value] : values.items()) {
    const json token = added_token(value, true);
    if (!token.is_null() && (is_named_token(key) || (key.ends_with("_token") && value.is_string()))) {
      named[key] = token["content"];
    }
  }
  return named;
}

/// Collects added tokens, the first of a content wins.
class TokenList {
 public:
  explicit TokenList(const json& present) {
    for (const auto& token : present) {
      seen_.insert(text_at(token, "content"));
    }
  }
  void add(const json& token) {
    if (!token.is_null() && seen_.insert(token["content"].get<std::string>()).second) {
      list_.push_back(token);
    }
  }
  [[nodiscard]] const json& list() const { return list_; }

 private:
  std::set<std::string> seen_;
  json list_ = json::array();
};

/// Adds the named tokens, transformers' seven in its order, then the model's own.
void add_named_tokens(const json& named, TokenList& tokens) {
  for (const char* key : kNamedTokens) {
    tokens.add(added_token(named.value(key, json()), true));
  }
  for (const auto& content : named) {
    tokens.add(added_token(content, true));
  }
}

int64_t parse_id(const std::string& text, const std::string& name) {
  int64_t id = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size() || id < 0) {
    throw Error(ExitCode::kData,
                fmt::format("{}: tokenizer_config.json: added_tokens_decoder: bad id '{}'", name, text));
  }
  return id;
}

/// The added tokens that the files list, by id: tokenizer_config's, else added_tokens.json's and tokenizer.json's own.
std::map<int64_t, json> listed_tokens(const TokenizerFiles& files, const json& config, const json& outline,
                                      const json& named) {
  std::map<int64_t, json> tokens;
  if (const auto decoder = config.find("added_tokens_decoder"); decoder != config.end() && decoder->is_object()) {
    for (const auto& [id, token] : decoder->items()) {
      tokens[parse_id(id, files.name)] = added_token(token, false);
    }
    return tokens;
  }
  const json added = parse(files.added_tokens, files.name, "added_tokens.json");
  for (const auto& [content, id] : added.items()) {
    const bool special = std::find(named.begin(), named.end(), content) != named.end();
    if (id.is_number_integer()) {
      tokens[id.get<int64_t>()] = added_token(content, special);
    }
  }
  for (const auto& token : outline.value("added_tokens", json::array())) {
    if (token.is_object() && token.contains("id") && token["id"].is_number_integer()) {
      tokens[token["id"].get<int64_t>()] = added_token(token, false);
    }
  }
  return tokens;
}

void add_extra_tokens(const json& values, TokenList& tokens) {
  for (const char* key : {"extra_special_tokens", "additional_special_tokens"}) {
    const auto extra = values.find(key);
    if (extra == values.end() || extra->empty() || !extra->is_structured()) {
      continue;
    }
    for (const auto& token : *extra) {
      tokens.add(added_token(token, true));
    }
    return;
  }
}

/// BOS and EOS around a text, for a tokenizer that has no post-processor of its own.
json template_processing(const json& named, const json& config, const SentencePieceModel& model,
                         const std::string& name) {
  const auto ids = model.vocabulary();
  json before = json::array();
  json after = json::array();
  json specials = json::object();
  const auto special = [&](const char* key, json& side) {
    const std::string flag = std::string("add_") + key;
    const std::string token = text_at(named, key);
    if (!flag_at(config, flag.c_str(), false) || token.empty()) {
      return;
    }
    const auto id = ids.find(token);
    if (id == ids.end()) {
      throw Error(ExitCode::kData, fmt::format("{}: {} '{}' is not in tokenizer.model", name, key, token),
                  "add a tokenizer.json");
    }
    specials[token] = {{"id", token}, {"ids", {id->second}}, {"tokens", {token}}};
    side.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
  };
  special("bos_token", before);
  special("eos_token", after);
  json single = before;
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  single.insert(single.end(), after.begin(), after.end());
  json pair = single;
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  return {{"type", "TemplateProcessing"},
          {"single", std::move(single)},
          {"pair", std::move(pair)},
          {"special_tokens", std::move(specials)}};
}

/// The template of tokenizer_config.json of that name; a single one is the default.
std::string named_template(const json& config, const std::string& name) {
  const auto found = config.find("chat_template");
  if (found == config.end()) {
    return {};
  }
  if (found->is_array()) {
    for (const auto& entry : *found) {
      if (entry.is_object() && text_at(entry, "name") == name) {
        return text_at(entry, "template");
      }
    }
  }
  return found->is_string() && name == "default" ? found->get<std::string>() : std::string();
}

/// A template in a file of its own replaces all of tokenizer_config.json's.
void plan_chat_templates(const TokenizerFiles& files, const json& config, TokenizerPlan& plan) {
  const bool in_files = !files.chat_template.empty() || !files.tool_use_template.empty();
  plan.chat_template = in_files ? files.chat_template : named_template(config, "default");
  plan.tool_use_template = in_files ? files.tool_use_template : named_template(config, "tool_use");
}

/// Defaults that come from the sentencepiece model itself, where no class of transformers sets its own.
void name_from_model(const SentencePieceModel& model, json& values) {
  const auto set = [&](const char* key, int64_t id, const std::string& piece) {
    if (id >= 0 && !values.contains(key)) {
      values[key] = piece;
    }
  };
  set("bos_token", model.bos_id, model.bos_piece);
  set("eos_token", model.eos_id, model.eos_piece);
  set("unk_token", model.unk_id, model.unk_piece);
}

void plan_sentencepiece(const TokenizerFiles& files, const json& config, Rebuild rebuild, TokenizerPlan& plan) {
  const SentencePieceModel model = parse_sentencepiece(files.sentencepiece_model, files.name + ": tokenizer.model");
  json values = named_values(files, config, rebuild);
  json parts = rebuilt_parts(rebuild, config);
  json body;
  if (rebuild == Rebuild::kLlama) {
    body = sentencepiece_bpe(model);
    body.update(parts["model"]);
  } else {
    name_from_model(model, values);
    parts = generic_sentencepiece_parts(model);
    body = model.kind == SentencePieceModel::Kind::kBpe ? sentencepiece_bpe(model) : sentencepiece_unigram(model);
    if (model.kind == SentencePieceModel::Kind::kBpe) {
      body["unk_token"] = model.unk_piece;
    }
  }
  parts["model"] = std::move(body);
  plan.special_tokens = special_tokens(values);
  TokenList tokens(json::array());
  for (const auto& [id, token] : listed_tokens(files, config, json::object(), plan.special_tokens)) {
    tokens.add(token);
  }
  add_named_tokens(plan.special_tokens, tokens);
  using Type = SentencePieceModel::PieceType;
  for (const auto& piece : model.pieces) {
    if (piece.type == Type::kControl || piece.type == Type::kUserDefined) {
      tokens.add({{"content", piece.text},
                  {"single_word", false},
                  {"lstrip", false},
                  {"rstrip", false},
                  {"normalized", false},
                  {"special", piece.type == Type::kControl}});
    }
  }
  plan.tokens_to_add = tokens.list();
  parts["version"] = "1.0";
  parts["added_tokens"] = json::array();
  parts["post_processor"] = template_processing(plan.special_tokens, config, model, files.name);
  plan.built_json = parts.dump();
}

void plan_tokenizer_json(const TokenizerFiles& files, const json& config, Rebuild rebuild, TokenizerPlan& plan) {
  const json outline = parse_outline(files);
  if (text_at(outline["model"], "type") != "BPE") {
    rebuild = Rebuild::kNone;  // the classes with a constructor of their own are all BPE
  }
  json values = named_values(files, config, rebuild);
  if (const auto padding = outline.find("padding"); padding != outline.end() && padding->is_object()) {
    if (!values.contains("pad_token")) {
      values["pad_token"] = text_at(*padding, "pad_token");
    }
  }
  plan.special_tokens = special_tokens(values);
  plan.patch = rebuilt_parts(rebuild, config);
  json present = outline.value("added_tokens", json::array());
  if (rebuild != Rebuild::kNone) {
    plan.patch["added_tokens"] = json::array();
    present = json::array();
  }
  TokenList tokens(present);
  for (const auto& [id, token] : listed_tokens(files, config, outline, plan.special_tokens)) {
    tokens.add(token);
  }
  add_named_tokens(plan.special_tokens, tokens);
  add_extra_tokens(values, tokens);
  plan.tokens_to_add = tokens.list();
}

}  // namespace

TokenizerPlan plan_tokenizer(const TokenizerFiles& files) {
  TokenizerPlan plan;
  const json config = parse(files.tokenizer_config, files.name, "tokenizer_config.json");
  const Rebuild rebuild = choose_rebuild(files, config);
  plan.patch = json::object();
  if (!files.tokenizer_json.empty()) {
    plan_tokenizer_json(files, config, rebuild, plan);
  } else {
    plan_sentencepiece(files, config, rebuild, plan);
  }
  plan_chat_templates(files, config, plan);
  return plan;
}

}  // namespace fettle::text
