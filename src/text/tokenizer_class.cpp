// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer_class.h"

#include <openssl/evp.h>

#include <map>
#include <string_view>
#include <utility>

namespace fettle::text {
namespace {

using nlohmann::json;

std::string without_fast(std::string name) {
  if (name.ends_with("Fast") && name != "PreTrainedTokenizerFast") {
    name.resize(name.size() - 4);
  }
  return name;
}

/// transformers' tokenizer class for a model type, for the families of this program; empty: not in its table.
std::string registered_class(const std::string& model_type) {
  static const std::map<std::string, std::string> table = {
      {"gpt2", "GPT2Tokenizer"},         {"qwen2", "Qwen2Tokenizer"},       {"qwen2_moe", "Qwen2Tokenizer"},
      {"qwen3", "Qwen2Tokenizer"},       {"qwen3_moe", "Qwen2Tokenizer"},   {"mistral", "TokenizersBackend"},
      {"mistral3", "TokenizersBackend"}, {"mixtral", "TokenizersBackend"},  {"ministral", "TokenizersBackend"},
      {"phi3", "TokenizersBackend"},     {"nemotron", "TokenizersBackend"},
  };
  const auto found = table.find(model_type);
  return found == table.end() ? std::string() : found->second;
}

Rebuild rebuild_of_class(const std::string& name) {
  return name == "LlamaTokenizer"   ? Rebuild::kLlama
         : name == "GPT2Tokenizer"  ? Rebuild::kGpt2
         : name == "Qwen2Tokenizer" ? Rebuild::kQwen2
                                    : Rebuild::kNone;
}

json byte_level(bool add_prefix_space, bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

json llama_parts(const json& config) {
  const bool prefix = flag_at(config, "add_prefix_space", true);
  const bool legacy = flag_at(config, "legacy", false);
  json decoders = {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}};
  if (prefix) {
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  return {{"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Metaspace"},
            {"replacement", "▁"},
            {"prepend_scheme", !prefix  ? "never"
                               : legacy ? "always"
                                        : "first"},
            {"split", false}}},
          {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}},
          {"model",
           {{"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"dropout", nullptr},
            {"ignore_merges", false}}}};
}

json byte_level_model() {
  return {{"unk_token", nullptr},  {"continuing_subword_prefix", ""}, {"end_of_word_suffix", ""},
          {"fuse_unk", false},     {"byte_fallback", false},          {"dropout", nullptr},
          {"ignore_merges", false}};
}

json gpt2_parts(const json& config) {
  return {{"normalizer", nullptr},
          {"pre_tokenizer", byte_level(flag_at(config, "add_prefix_space", false), true)},
          {"decoder", byte_level(true, true)},
          {"model", byte_level_model()}};
}

json qwen2_parts(const json& config) {
  constexpr const char* kPattern = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
                                   R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const json split = {
      {"type", "Split"}, {"pattern", {{"Regex", kPattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers", json::array({split, byte_level(flag_at(config, "add_prefix_space", false), false)})}}},
          {"decoder", byte_level(true, true)},
          {"model", byte_level_model()}};
}

std::string base64(std::string_view bytes) {
  std::string encoded((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(encoded.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  encoded.resize(static_cast<size_t>(size));
  return encoded;
}

}  // namespace

std::string text_at(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

bool flag_at(const json& object, const char* key, bool otherwise) {
  const auto found = object.find(key);
  return found != object.end() && found->is_boolean() ? found->get<bool>() : otherwise;
}

Rebuild choose_rebuild(const TokenizerFiles& files, const nlohmann::json& config) {
  const std::string declared = without_fast(text_at(config, "tokenizer_class"));
  const std::string registered = registered_class(files.model_type);
  // transformers trusts the model type, not the file, where it knows many files of a family to be wrong.
  const bool distrusted = files.model_type == "qwen2" || files.model_type == "phi3" || files.model_type == "nemotron";
  if (declared.empty()) {
    return rebuild_of_class(registered);
  }
  if (declared == "LlamaTokenizer" && !distrusted && files.tokenizer_json.find("\"ByteLevel\"") != std::string::npos) {
    return Rebuild::kNone;
  }
  if (registered.empty() || registered == declared) {
    return rebuild_of_class(declared);
  }
  if (registered == "TokenizersBackend") {
    return Rebuild::kNone;
  }
  return rebuild_of_class(distrusted ? registered : declared);
}

json rebuilt_parts(Rebuild rebuild, const json& config) {
  switch (rebuild) {
    case Rebuild::kLlama:
      return llama_parts(config);
    case Rebuild::kGpt2:
      return gpt2_parts(config);
    case Rebuild::kQwen2:
      return qwen2_parts(config);
    case Rebuild::kNone:
      break;
  }
  return json::object();
}

json generic_sentencepiece_parts(const SentencePieceModel& model) {
  json normalizers = json::array();
  if (!model.precompiled_charsmap.empty()) {
    normalizers.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", base64(model.precompiled_charsmap)}});
  }
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}});
  json decoders = json::array({{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}}});
  if (model.byte_fallback) {
    decoders.push_back({{"type", "ByteFallback"}});
    decoders.push_back({{"type", "Fuse"}});
  }
  return {{"normalizer", {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}}},
          {"pre_tokenizer", nullptr},
          {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}}};
}

}  // namespace fettle::text
