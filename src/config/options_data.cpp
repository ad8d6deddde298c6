// SPDX-License-Identifier: Apache-2.0
// The option table's data section.
#include "config/option_table.h"

namespace fettle::config::table {
namespace {

constexpr unsigned kRecords = kReadRecords;
constexpr unsigned kSources = kRecords | kDownload;
constexpr unsigned kTemplates = kRecords | kAnswer;

std::vector<Option> source_options() {
  return {
      {.name = "dataset_name",
       .slot = slot<&DataConfig::dataset_name>,
       .help = "A dataset's name on the hub (org/name), or a folder with train.* and, if there is one, validation.* or "
               "test.*.",
       .commands = kSources},
      {.name = "dataset_config_name",
       .slot = slot<&DataConfig::dataset_config_name>,
       .help = "Configuration of a dataset on the hub that has several.",
       .commands = kSources},
      {.name = "dataset_split",
       .slot = slot<&DataConfig::dataset_split>,
       .help = "The dataset's training records, for instance train[:1000] or train[10%:20%]; empty: train.",
       .commands = kSources},
      {.name = "dataset_test_split",
       .slot = slot<&DataConfig::dataset_test_split>,
       .help = "The dataset's evaluation records, written alike; empty: validation, else test, if there is one.",
       .commands = kSources},
      {.name = "dataset_revision",
       .slot = slot<&DataConfig::dataset_revision>,
       .help = "Branch, tag or commit of a dataset on the hub.",
       .commands = kSources},
      {.name = "train_file",
       .slot = slot<&DataConfig::train_file>,
       .help = "Training records: .json, .jsonl, .csv, .txt or .parquet files, or https URLs of such files.",
       .commands = kSources,
       .list_syntax = ListSyntax::kPaths},
      {.name = "validation_file",
       .slot = slot<&DataConfig::validation_file>,
       .help = "Evaluation records, in the same formats.",
       .commands = kSources,
       .list_syntax = ListSyntax::kPaths},
  };
}

std::vector<Option> format_options() {
  return {
      {.name = "dataset_format",
       .slot = slot<&DataConfig::dataset_format>,
       .help = "What the records are; auto: decided by the first record's columns.",
       .commands = kRecords,
       .choices = {"auto", "alpaca", "prompt_completion", "messages", "sharegpt", "text", "tokenized"}},
      {.name = "prompt_template",
       .slot = slot<&DataConfig::prompt_template>,
       .help = "How a record becomes text: one of the names, or a Jinja chat template file; auto: the tokenizer's chat "
               "template if it has one, else alpaca.",
       .commands = kTemplates,
       .choices = {"auto", "alpaca", "llama2", "chat", "none"},
       .choices_or_file = true},
      {.name = "prompt_with_input",
       .slot = slot<&DataConfig::prompt_with_input>,
       .help = "System sentence for a record that has an input; empty: alpaca's own in the alpaca and llama2 "
               "templates, none in a chat.",
       .commands = kTemplates},
      {.name = "prompt_without_input",
       .slot = slot<&DataConfig::prompt_without_input>,
       .help = "The same for a record without an input.",
       .commands = kTemplates},
      {.name = "template_date",
       .slot = slot<&DataConfig::template_date>,
       .help =
           "The date, as YYYY-MM-DD, for a chat template that writes today's; empty: today, or the day on which the "
           "run in output_dir began.",
       .commands = kTemplates},
  };
}

std::vector<Option> column_options() {
  return {
      {.name = "instruction_column",
       .slot = slot<&DataConfig::instruction_column>,
       .help = "Column of an alpaca record's instruction.",
       .commands = kRecords},
      {.name = "input_column",
       .slot = slot<&DataConfig::input_column>,
       .help = "Column of an alpaca record's input.",
       .commands = kRecords},
      {.name = "output_column",
       .slot = slot<&DataConfig::output_column>,
       .help = "Column of an alpaca record's answer.",
       .commands = kRecords},
      {.name = "prompt_column",
       .slot = slot<&DataConfig::prompt_column>,
       .help = "Column of a prompt_completion record's prompt.",
       .commands = kRecords},
      {.name = "completion_column",
       .slot = slot<&DataConfig::completion_column>,
       .help = "Column of a prompt_completion record's answer.",
       .commands = kRecords},
      {.name = "messages_column",
       .slot = slot<&DataConfig::messages_column>,
       .help = "Column of a chat's messages (role, content).",
       .commands = kRecords},
      {.name = "conversations_column",
       .slot = slot<&DataConfig::conversations_column>,
       .help = "Column of a ShareGPT record's turns (from, value).",
       .commands = kRecords},
      {.name = "text_column",
       .slot = slot<&DataConfig::text_column>,
       .help = "Column of a plain text record.",
       .commands = kRecords},
      {.name = "sample_by",
       .slot = slot<&DataConfig::sample_by>,
       .help = "What one record of a .txt file is.",
       .commands = kSources,
       .choices = {"line", "paragraph", "document"}},
  };
}

std::vector<Option> token_options() {
  return {
      {.name = "completion_only_loss",
       .slot = slot<&DataConfig::completion_only_loss>,
       .help = "Only the answer's tokens are targets; false: the prompt's too.",
       .commands = kRecords},
      {.name = "mask_history",
       .slot = slot<&DataConfig::mask_history>,
       .help = "Only the last assistant turn of a chat is a target; false: every one.",
       .commands = kRecords},
      {.name = "max_seq_length",
       .slot = slot<&DataConfig::max_seq_length>,
       .help = "Most tokens of a document and of a packed row.",
       .commands = kRecords,
       .range = between(2, 1 << 20)},
      {.name = "packing",
       .slot = slot<&DataConfig::packing>,
       .help = "Put several documents into a row of max_seq_length tokens; they never see each other.",
       .commands = kRecords},
      {.name = "packing_strategy",
       .slot = slot<&DataConfig::packing_strategy>,
       .help = "A document longer than max_seq_length is cut off (bfd) or becomes several (bfd_split).",
       .commands = kRecords,
       .choices = {"bfd", "bfd_split"},
       .unavailable = {"wrapped"}},
      {.name = "shuffle",
       .slot = slot<&DataConfig::shuffle>,
       .help = "A new order in every epoch, decided by seed; false: the file's order.",
       .commands = kTrain},
  };
}

std::vector<Option> selection_options() {
  return {
      {.name = "on_bad_record",
       .slot = slot<&DataConfig::on_bad_record>,
       .help = "A record that cannot be used stops the run, or is left out and counted.",
       .commands = kRecords,
       .choices = {"fail", "skip"}},
      {.name = "max_train_samples",
       .slot = slot<&DataConfig::max_train_samples>,
       .help = "Use the first so many training records; -1: all.",
       .commands = kRecords,
       .range = count_or_all()},
      {.name = "max_eval_samples",
       .slot = slot<&DataConfig::max_eval_samples>,
       .help = "Use the first so many evaluation records; -1: all.",
       .commands = kRecords,
       .range = count_or_all()},
      {.name = "validation_split_percentage",
       .slot = slot<&DataConfig::validation_split_percentage>,
       .help = "Part of the training records held out for evaluation: a percentage from 1 on, a fraction below 1.",
       .commands = kRecords,
       .range = from_to_below(0, 100)},
      {.name = "dataset_seed",
       .slot = slot<&DataConfig::dataset_seed>,
       .help = "Decides which records are held out.",
       .commands = kRecords,
       .range = at_least(0)},
      {.name = "preprocessing_num_workers",
       .slot = slot<&DataConfig::preprocessing_num_workers>,
       .help = "Threads that tokenize; 0: one a core.",
       .commands = kRecords,
       .range = between(0, 1024)},
      {.name = "dataset_cache_directory",
       .slot = slot<&DataConfig::dataset_cache_directory>,
       .help = "Folder of the tokenized records; empty: $XDG_CACHE_HOME/fettle, else ~/.cache/fettle.",
       .commands = kRecords},
      {.name = "overwrite_cache",
       .slot = slot<&DataConfig::overwrite_cache>,
       .help = "Tokenize again even if the cache has these records.",
       .commands = kRecords},
  };
}

}  // namespace

std::vector<Option> data_options() {
  return join({source_options(), format_options(), column_options(), token_options(), selection_options()});
}

}  // namespace fettle::config::table
