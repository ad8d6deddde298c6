// SPDX-License-Identifier: Apache-2.0
#include "text/stand_ins.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/error.h"

namespace fettle::text {
namespace {

// Plane 15: private use, four bytes each, of which the first is never the first of another assigned character.
constexpr uint32_t kFirst = 0xF0000;
constexpr uint32_t kLast = 0xFFFFD;
constexpr char kLead = '\xf3';
constexpr size_t kSize = 4;

std::string utf8(uint32_t code) {
  return {kLead, static_cast<char>(0x80 | ((code >> 12) & 0x3f)), static_cast<char>(0x80 | ((code >> 6) & 0x3f)),
          static_cast<char>(0x80 | (code & 0x3f))};
}

}  // namespace

Spellings::Spellings(const std::vector<std::string>& spellings) {
  std::set<size_t, std::greater<>> lengths;
  std::set<char> first_bytes;
  for (const std::string& spelling : spellings) {
    if (!spelling.empty()) {
      spellings_.insert(spelling);
      lengths.insert(spelling.size());
      first_bytes.insert(spelling.front());
    }
  }
  lengths_.assign(lengths.begin(), lengths.end());
  first_bytes_.assign(first_bytes.begin(), first_bytes.end());
}

std::optional<Span> Spellings::find(std::string_view text, size_t from) const {
  for (size_t at = text.find_first_of(first_bytes_, from); at != std::string_view::npos;
       at = text.find_first_of(first_bytes_, at + 1)) {
    for (const size_t length : lengths_) {
      if (length <= text.size() - at && spellings_.contains(text.substr(at, length))) {
        return Span{at, at + length};
      }
    }
  }
  return std::nullopt;
}

StandIns::StandIns(const Spellings& spellings, std::string_view source, std::string_view variables)
    : spellings_(spellings), source_(source), variables_(variables), next_(kFirst) {}

std::string StandIns::free_character() {
  while (next_ <= kLast) {
    std::string character = utf8(next_++);
    if (source_.find(character) == std::string_view::npos && variables_.find(character) == std::string_view::npos) {
      return character;
    }
  }
  throw Error(ExitCode::kData, "a record uses every private-use character of Unicode's plane 15");
}

const std::string& StandIns::stand_in_for(std::string_view spelling) {
  std::string& character = stand_ins_[std::string(spelling)];
  if (character.empty()) {
    character = free_character();
    stands_for_[character] = spelling;
  }
  return character;
}

bool StandIns::put_into(std::string& text) {
  auto found = spellings_.find(text);
  if (!found) {
    return false;
  }
  std::string replaced;
  size_t position = 0;
  for (; found; found = spellings_.find(text, position)) {
    replaced.append(text, position, found->begin - position);
    replaced += stand_in_for(std::string_view(text).substr(found->begin, found->end - found->begin));
    position = found->end;
  }
  text = replaced.append(text, position);
  return true;
}

bool StandIns::put_into(OrderedJson& value) {
  if (value.is_string()) {
    return put_into(value.get_ref<std::string&>());
  }
  bool any = false;
  if (value.is_structured()) {
    for (auto& item : value) {
      any = put_into(item) || any;
    }
  }
  const auto spelled = [this](const auto& item) { return spellings_.find(item.first).has_value(); };
  const auto* object = value.get_ptr<const OrderedJson::object_t*>();
  if (object != nullptr && std::any_of(object->begin(), object->end(), spelled)) {
    OrderedJson renamed = OrderedJson::object();
    for (auto& [key, item] : value.items()) {
      std::string name = key;
      put_into(name);
      renamed[name] = std::move(item);
    }
    value = std::move(renamed);
    return true;
  }
  return any;
}

const std::string& StandIns::block_marks() {
  if (block_marks_.empty()) {
    block_marks_ = free_character();
    block_marks_ += free_character();
  }
  return block_marks_;
}

StandIns::Restored StandIns::restore(std::string_view written) const {
  Restored result;
  auto& [text, user, generation] = result.rendered;
  text.reserve(written.size());
  bool open = false;
  size_t position = 0;
  while (position < written.size()) {
    const size_t lead = std::min(written.find(kLead, position), written.size());
    text += written.substr(position, lead - position);
    const std::string character(written.substr(lead, kSize));
    position = lead + character.size();
    if (const auto found = stands_for_.find(character); found != stands_for_.end()) {
      user.push_back({text.size(), text.size() + found->second.size()});
      text += found->second;
    } else if (const size_t mark = block_marks_.find(character); character.empty() || mark == std::string::npos) {
      text += character;
    } else {
      const bool begins = mark == 0;
      result.balanced = result.balanced && begins != open;
      if (begins) {
        generation.push_back({text.size(), text.size()});
      } else if (!generation.empty()) {
        generation.back().end = text.size();
      }
      open = begins;
    }
  }
  result.balanced = result.balanced && !open;
  return result;
}

}  // namespace fettle::text
