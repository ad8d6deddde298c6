// SPDX-License-Identifier: Apache-2.0
/// A document as a person checks it: what is learned and what is only read.
#pragma once

#include <cstdint>
#include <string>

#include "data/dataset.h"
#include "text/tokenizer.h"

namespace fettle::data {

/// One document in terminal colours: targets green, all else grey, special tokens bold; line breaks shown as ↵, other
/// control characters as \x1b, so that no record can steer the terminal. Ends with a line of counts.
std::string preview(const TokenDataset& dataset, const text::Tokenizer& tokenizer, int64_t index);

}  // namespace fettle::data
