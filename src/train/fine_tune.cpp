// SPDX-License-Identifier: Apache-2.0
#include "train/fine_tune.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/watchdog.h"
#include "config/describe.h"
#include "config/value.h"
#include "device/device.h"
#include "hub/safetensors.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/loop.h"
#include "train/metrics_server.h"
#include "train/output_folder.h"
#include "train/ranks.h"
#include "train/result.h"
#include "train/save.h"
#include "train/shared_checkpoint.h"
#include "train/shared_result.h"
#include "train/training_inputs.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

/// Batches on which a saved result is compared with the model in memory.
constexpr int64_t kProbeBatches = 2;

void log_evaluation(const char* when, const Evaluation& evaluation) {
  log::info("{}: loss {:.4f}, perplexity {:.3f} on {} records ({} target tokens)", when, evaluation.loss,
            evaluation.perplexity(), evaluation.records, evaluation.target_tokens);
}

void log_plan(int64_t steps, int64_t steps_per_epoch) {
  constexpr int64_t kFewSteps = 20;
  log::info("{} steps, {} an epoch", steps, steps_per_epoch);
  if (steps < kFewSteps) {
    log::warning("so few steps ({}) change a model little: lower per_device_train_batch_size or raise num_train_epochs",
                 steps);
  }
}

[[noreturn]] void fail_version(const fs::path& checkpoint) {
  throw Error(ExitCode::kData, fmt::format("{} was written by another version", checkpoint.string()),
              "start again with overwrite_output_dir and resume_from_checkpoint=none");
}

/// One run of `fettle train`. Members are what several of its stages need.
class FineTuning {
 public:
  FineTuning(const config::Config& config, TrainingInputs inputs, std::shared_ptr<dist::Group> group, at::Device device,
             MetricsServer* server)
      : config_(config),
        inputs_(std::move(inputs.model)),
        data_(std::move(inputs.data)),
        group_(std::move(group)),
        device_(device),
        server_(server),
        output_dir_(config.output.output_dir) {}

  /// Everything after the data is prepared, when there is anything left to do.
  void run();
  /// do_train is false.
  void evaluate_only();

 private:
  void run_in_folder();
  [[nodiscard]] bool evaluates() const { return config_.training.do_eval && data_.validation.has_value(); }
  [[nodiscard]] Evaluation evaluate_on_validation(const model::Decoder& model) const {
    return evaluate_over_ranks(*group_, model, *data_.validation,
                               evaluation_order(config_, *data_.validation, device_));
  }
  [[nodiscard]] bool is_main() const { return group_->is_main(); }
  /// zero_stage 3.
  [[nodiscard]] bool shares_weights() const { return config_.distributed.zero_stage == 3 && group_->size() > 1; }
  [[nodiscard]] std::map<std::string, int64_t> weight_owners() const;
  [[nodiscard]] std::optional<model::LayerSharing> sharing() const;
  [[nodiscard]] ComputeOptions compute() const { return {compute_type(config_.training), device_, sharing()}; }
  void require_same_on_all_ranks() const;
  void require_same_validation() const;
  [[nodiscard]] StartingPoint starting_point();
  void require_unchanged(const StartingPoint& start) const;
  [[nodiscard]] int64_t batches_per_step(const StartingPoint& start) const;
  [[nodiscard]] model::Decoder make_model(const StartingPoint& start) const;
  [[nodiscard]] Run make_run(model::Decoder& model, MetricsLog& metrics);
  [[nodiscard]] const char* weights_file() const {
    return config_.lora.use_peft ? "adapter_model.safetensors" : "model.safetensors";
  }
  [[nodiscard]] nlohmann::json saved_state(const Run& run) const;
  [[nodiscard]] Snapshot snapshot(const Run& run) const;
  [[nodiscard]] SharedSnapshot shared_snapshot(const Run& run) const;
  void resume(const fs::path& checkpoint, Run& run);
  std::optional<Evaluation> train_from(const StartingPoint& start, model::Decoder& model, MetricsLog& metrics);
  [[nodiscard]] std::unique_ptr<Saver> make_saver(const Run& run) const;
  void evaluate_before(const Run& run);
  [[nodiscard]] uint64_t max_shard_bytes() const {
    return static_cast<uint64_t>(config::parse_bytes(config_.output.max_shard_size).value());
  }
  void save_result(const model::Decoder& model) const;
  void save_shared_result(const model::Decoder& model) const;
  [[nodiscard]] Evaluation probe(const model::Decoder& model) const;
  [[nodiscard]] model::Decoder verified(model::Decoder model) const;

  const config::Config& config_;
  ModelInputs inputs_;
  data::PreparedData data_;
  std::shared_ptr<dist::Group> group_;
  at::Device device_;
  MetricsServer* server_;  ///< null: none is wanted
  fs::path output_dir_;
  nlohmann::json identity_;
  nlohmann::json resumed_;  ///< trainer_state.json of the checkpoint to continue from
  TrainingState state_;
  Shards shards_;
  std::optional<Evaluation> before_;
  bool has_begun_ = false;  ///< output_dir holds this run
};

std::map<std::string, int64_t> FineTuning::weight_owners() const {
  return tensor_owners(inputs_.spec, group_->size(), !config_.lora.use_peft);
}

std::optional<model::LayerSharing> FineTuning::sharing() const {
  if (!shares_weights()) return std::nullopt;
  return layer_sharing(group_, inputs_.spec, weight_owners());
}

model::Decoder FineTuning::make_model(const StartingPoint& start) const {
  config::ModelConfig options = config_.model;
  // A checkpoint holds the adapter's configuration too; the adapter that training began with may have been replaced.
  if (start.checkpoint && !options.adapter_name_or_path.empty()) options.adapter_name_or_path = *start.checkpoint;
  model::Decoder model = load_model(inputs_, options, compute(), config_.lora.lora_dropout);
  if (!config_.lora.use_peft) {
    model.make_trainable_full();
  } else if (config_.model.adapter_name_or_path.empty()) {
    model.add_lora(config_.lora, static_cast<uint64_t>(config_.training.seed));
  }
  const bool recomputes = config_.training.gradient_checkpointing;
  model.set_gradient_checkpointing(recomputes || shares_weights());
  return model;
}

Run FineTuning::make_run(model::Decoder& model, MetricsLog& metrics) {
  const config::TrainingConfig& training = config_.training;
  StepLoader loader(data_.train, training_order(config_, data_.train, device_), state_.batches_per_step,
                    {group_->rank(), group_->size()});
  const int64_t total = total_steps(training, loader.steps_per_epoch());
  if (is_main()) log_plan(total, loader.steps_per_epoch());
  using Owners = std::map<std::string, int64_t>;  // where the ranks share out weights that are trained
  shards_ = Shards(group_, config_.distributed.zero_stage, model.trainable(),
                   shares_weights() && !config_.lora.use_peft ? weight_owners() : Owners());
  Run run{.options = training,
          .model = model,
          .parameters = model.trainable(),
          .loader = std::move(loader),
          .total_steps = total,
          .optimizer = AdamW(shards_.owned(), training),
          .schedule = Schedule::from_config(training, peak_learning_rate(training, config_.lora), total),
          .metrics = metrics,
          .state = state_,
          .full_training = !config_.lora.use_peft,
          .peak_flops = device::measure_matmul_peak(compute_type(training), device_)};
  run.group = group_;
  run.server = server_;
  if (training.profile_steps > 0 && group_->is_main()) {
    run.profiler = std::make_shared<Profiler>(config_.output.output_dir, training.profile_steps, device_);
  }
  run.sums_gradients = group_->size() > 1 && device::compiles_graphs(device_) && !shards_.share_gradients();
  if (group_->size() > 1 && !run.sums_gradients) {
    run.gradients = std::make_shared<dist::GradientBuckets>(
        group_, tensors_of(run.parameters), config_.distributed.ddp_bucket_cap_mb << 20,
        shards_.share_gradients() ? shards_.owners() : std::vector<int64_t>());
  }
  run.shards = shards_;
  if (evaluates()) run.evaluate = [this, &model] { return evaluate_on_validation(model); };
  return run;
}

/// trainer_state.json.
nlohmann::json FineTuning::saved_state(const Run& run) const {
  nlohmann::json state = {{"state", run.state},
                          {"schedule", run.schedule.state()},
                          {"evaluation_before", nullptr},
                          {"evaluation", nullptr},
                          {"identity", identity_}};
  if (before_) state["evaluation_before"] = *before_;
  if (run.last_evaluation) state["evaluation"] = *run.last_evaluation;
  return state;
}

Snapshot FineTuning::snapshot(const Run& run) const {
  return {weights_file(), run.parameters, run.optimizer.state(), saved_state(run)};
}

SharedSnapshot FineTuning::shared_snapshot(const Run& run) const {
  return {weights_file(), shared_weights(run.parameters, run.shards, group_->rank()),
          shared_optimizer_state(run.parameters, run.shards, run.optimizer.state()), saved_state(run)};
}

/// Takes up the state of a checkpoint. Rank 0 alone reads it, and the others get all from rank 0: their machines need
/// not see the folder, or see it in time.
void FineTuning::resume(const fs::path& checkpoint, Run& run) {
  try {
    run.state = resumed_.at("state").get<TrainingState>();
    run.schedule.restore(resumed_.at("schedule"));
    if (!resumed_.at("evaluation_before").is_null()) before_ = resumed_.at("evaluation_before").get<Evaluation>();
    if (!resumed_.at("evaluation").is_null()) run.last_evaluation = resumed_.at("evaluation").get<Evaluation>();
  } catch (const nlohmann::json::exception&) {
    fail_version(checkpoint);
  }
  if (run.state.step > run.total_steps) {
    throw Error(
        ExitCode::kData,
        fmt::format("{} is at step {}, and this run has {}", checkpoint.string(), run.state.step, run.total_steps),
        "resume from a checkpoint of this run");
  }
  if (run.shards.share_optimizer()) {
    restore_shared_checkpoint(*group_, checkpoint, shared_snapshot(run));
  } else if (is_main()) {
    restore_checkpoint(checkpoint, snapshot(run));
  }
  if (is_main()) remove_checkpoints_after(output_dir_, run.state.step);
  run.metrics.drop_after(run.state.step, run.last_evaluation.has_value());
  log::info("resuming from {} at step {} of {}", checkpoint.string(), run.state.step, run.total_steps);
}

/// Null on the ranks that take no part in saving.
std::unique_ptr<Saver> FineTuning::make_saver(const Run& run) const {
  if (!is_main() && !run.shards.share_optimizer()) return nullptr;
  double bytes = 0;
  for (const model::NamedTensor& each : run.parameters) bytes += 3.0 * static_cast<double>(each.tensor.nbytes());
  AddFiles add_files = config_.lora.use_peft ? adapter_files(run.model, config_.model) : model_files(inputs_.base);
  const CheckpointWriter::Options options{output_dir_, config_.training.save_total_limit, bytes,
                                          [folder = output_dir_] { require_in_place(folder); }, server_};
  if (run.shards.share_optimizer()) {
    return std::make_unique<SharedSaver>(
        group_, options, [this](const Run& state) { return shared_snapshot(state); }, std::move(add_files));
  }
  return std::make_unique<CheckpointSaver>(
      options, config_.training.async_save, [this](const Run& state) { return snapshot(state); }, std::move(add_files));
}

void FineTuning::evaluate_before(const Run& run) {
  if (!evaluates() || run.state.step > 0) return;
  before_ = evaluate_on_validation(run.model);
  if (server_ != nullptr) server_->evaluated(*before_);
  run.metrics.write(evaluation_line(*before_, 0, 0));
  log_evaluation("before training", *before_);
}

void FineTuning::save_result(const model::Decoder& model) const {
  if (config_.lora.use_peft) {
    save_adapter(output_dir_, model, config_.model, inputs_.tokenizer);
  } else {
    save_full_model(output_dir_, model, inputs_.base, inputs_.tokenizer, max_shard_bytes());
  }
}

/// As save_result and verified, where the weights are shared out: on all ranks, and nothing is loaded again.
void FineTuning::save_shared_result(const model::Decoder& model) const {
  const bool verifies = config_.output.verify_saved_model;
  if (config_.lora.use_peft) {
    if (!is_main()) return;
    save_result(model);
    if (verifies) verify_adapter(output_dir_, model.adapter_tensors());
  } else {
    const std::vector<SharedTensor> weights = shared_weights(model.trainable(), shards_, group_->rank());
    save_shared_model(*group_, output_dir_, weights, inputs_, max_shard_bytes());
    if (verifies) verify_shared_model(*group_, output_dir_, weights, inputs_);
  }
  if (verifies) log::info("verified: the result read back from disk has the same bits");
}

Evaluation FineTuning::probe(const model::Decoder& model) const {
  const data::TokenDataset& records = evaluates() ? *data_.validation : data_.train;
  return evaluate(model, records, evaluation_order(config_, records, device_), kProbeBatches);
}

/// Loads the result from disk in place of `model` and compares their losses. The weights in memory are gone by then:
/// one model's memory is enough, and what is evaluated afterwards is what the user has.
model::Decoder FineTuning::verified(model::Decoder model) const {
  const at::ScalarType type = compute_type(config_.training);
  const double expected = probe(model).loss;
  { const model::Decoder released = std::move(model); }
  model::Decoder loaded = load_result(output_dir_, inputs_.base, config_.lora.use_peft, type,
                                      {.quantization = weight_format(config_.model), .device = device_});
  const double actual = probe(loaded).loss;
  const at::ScalarType stored = config_.lora.use_peft ? at::kFloat : stored_type(inputs_.base.open_weights());
  const double tolerance = stored == at::kFloat || stored == type ? 1e-5 : 1e-2;  // rounded once more: half precision
  if (!(std::abs(actual - expected) <= tolerance * std::abs(expected))) {
    throw Error(ExitCode::kInternal,
                fmt::format("the saved model differs: loss {} read back from {}, {} in memory", actual,
                            output_dir_.string(), expected),
                "please report it; the checkpoints are intact");
  }
  log::info("verified: the result read back from disk has the same loss ({:.5f})", actual);
  return loaded;
}

std::optional<Evaluation> FineTuning::train_from(const StartingPoint& start, model::Decoder& model,
                                                 MetricsLog& metrics) {
  Run run = make_run(model, metrics);
  log_sharing(config_, group_->size());
  const std::unique_ptr<Saver> saver = make_saver(run);
  run.saver = saver.get();
  if (start.checkpoint) resume(*start.checkpoint, run);
  share_tensors(*group_, run.shards.held_by_all());
  if (!run.shards.share_optimizer()) share_tensors(*group_, run.optimizer.state());
  model.refresh_compute_weights();
  if (is_main() && config_.training.report_to == "tensorboard") {
    metrics.also_write_events(event_folder(config_), run.state.step == 0 ? 0 : run.state.step + 1);
  }
  evaluate_before(run);
  train(run);
  state_ = run.state;
  return run.last_evaluation;
}

void FineTuning::require_same_validation() const {
  group_->require_same("the validation records", data_.validation ? data_.validation->fingerprint() : "none");
}

void FineTuning::require_same_on_all_ranks() const {
  for (const char* part : {"options", "data_options"})
    group_->require_same("the configuration", identity_.at(part).dump());
  group_->require_same("the training records", identity_.at("dataset").get<std::string>());
  require_same_validation();
  group_->require_same("the base model", identity_.at("model").get<std::string>());
}

/// A step keeps the micro-batches that the run began with: on another number of ranks, each takes more or fewer.
int64_t FineTuning::batches_per_step(const StartingPoint& start) const {
  const int64_t now = config_.training.gradient_accumulation_steps * group_->size();
  if (!start.checkpoint) return now;
  const nlohmann::json kept = resumed_.value("/state/batches_per_step"_json_pointer, nlohmann::json());
  if (!kept.is_number_integer() || kept.get<int64_t>() < 1) fail_version(*start.checkpoint);
  if (kept != now) {
    log::info(
        "the run began with {} micro-batches a step and keeps them; {} ranks with gradient_accumulation_steps {} "
        "would make {}",
        kept.get<int64_t>(), group_->size(), config_.training.gradient_accumulation_steps, now);
  }
  return kept;
}

/// Where to begin and what the run's state was there, as rank 0 finds it.
StartingPoint FineTuning::starting_point() {
  nlohmann::json found;
  if (is_main()) {
    const StartingPoint start = find_starting_point(config_, identity_);
    found = {start.finished, start.keeps_folder, start.checkpoint ? start.checkpoint->string() : "", nullptr};
    if (start.checkpoint) found[3] = read_checkpoint_state(*start.checkpoint);
  }
  found = nlohmann::json::parse(share_text(*group_, found.dump()));
  StartingPoint start{.finished = found[0], .keeps_folder = found[1]};
  if (!found[2].get<std::string>().empty()) start.checkpoint = found[2].get<std::string>();
  resumed_ = found[3];
  return start;
}

/// Another process may have begun, or even finished, a run there before this one had the lock.
void FineTuning::require_unchanged(const StartingPoint& start) const {
  if (find_starting_point(config_, identity_) == start) return;
  throw Error(ExitCode::kUnavailable,
              fmt::format("output_dir {} was changed by another process while this one began", output_dir_.string()),
              "run the same command again");
}

/// A file that is missing after output_dir was there is the volume's fault, not the user's.
void FineTuning::run() {
  try {
    run_in_folder();
  } catch (const Error& error) {
    if (error.code() == ExitCode::kNoInput && has_begun_) require_in_place(output_dir_);
    throw;
  }
}

void FineTuning::run_in_folder() {
  identity_ = run_identity(config_, data_.train.fingerprint(), weights_fingerprint(inputs_.base.open_weights()));
  require_same_on_all_ranks();
  std::optional<FolderLock> lock;  // a new folder gets one when it is made
  if (is_main() && holds_run(output_dir_)) lock.emplace(output_dir_);
  const StartingPoint start = starting_point();
  if (start.finished) {
    log::info("this run is complete already");
    if (is_main()) announce_result(config_);
    return;
  }
  state_.batches_per_step = batches_per_step(start);
  std::optional<SectionMark> mark(std::in_place, Section::kSetup, "loading the model");
  model::Decoder model = make_model(start);  // before output_dir is touched: it may hold the adapter to start from
  std::optional<MetricsLog> metrics;
  if (is_main()) {
    if (!lock) {
      lock.emplace(output_dir_);
      require_unchanged(start);
    }
    begin_run(config_, identity_, start);
    has_begun_ = true;
    write_file(output_dir_ / "fettle_config.json", config::to_json(config_).dump(2) + '\n');
    metrics.emplace(output_dir_ / "metrics.jsonl", start.keeps_folder);
  } else {
    metrics.emplace();
  }
  mark.reset();
  std::optional<Evaluation> after = train_from(start, model, *metrics);
  if (shares_weights()) {
    const SectionMark saving(Section::kSave, "the result");
    if (is_main()) require_in_place(output_dir_);
    save_shared_result(model);
  } else if (is_main()) {
    const SectionMark saving(Section::kSave, "the result");
    require_in_place(output_dir_);
    save_result(model);
    if (config_.output.verify_saved_model) model = verified(std::move(model));
  }
  if (evaluates() && !after) {
    after = evaluate_on_validation(model);
    metrics->write(evaluation_line(*after, state_.step, state_.epoch));
  }
  if (!is_main()) return;
  if (before_) log_evaluation("before training", *before_);
  if (after) log_evaluation("after training", *after);
  write_results(config_, state_, {before_, after}, device_);
  require_in_place(output_dir_);
  finish_run(output_dir_, identity_);
  announce_result(config_);
}

void FineTuning::evaluate_only() {
  require_same_validation();
  if (!evaluates()) {
    throw Error(ExitCode::kConfig, "do_train is false and there are no evaluation records",
                "give validation_file or validation_split_percentage");
  }
  const Evaluation evaluation = evaluate_on_validation(load_model(inputs_, config_.model, compute()));
  if (!is_main()) return;
  log_evaluation("evaluation", evaluation);
  make_directories(output_dir_);
  write_file(output_dir_ / "eval_results.json", evaluation_results(evaluation).dump(2) + '\n');
}

void fine_tune_in(const std::shared_ptr<dist::Group>& group, TrainingInputs inputs, at::Device device,
                  MetricsServer* server) {
  const config::Config config = std::move(inputs.config);
  FineTuning fine_tuning(config, std::move(inputs), group, device, server);
  try {
    group->require_same("the configuration", shared_options(config).dump());
    require_own_devices(*group, device);
    if (config.training.do_train) {
      fine_tuning.run();
    } else {
      fine_tuning.evaluate_only();
    }
  } catch (const Error& error) {
    group->announce_failure(error);
    throw;
  } catch (const std::exception& error) {
    group->announce_failure(Error(ExitCode::kInternal, error.what()));
    throw;
  }
  group->leave();
}

}  // namespace

double peak_learning_rate(const config::TrainingConfig& training, const config::LoraConfig& lora) {
  return training.learning_rate.value_or(lora.use_peft ? 2e-4 : 2e-5);
}

void fine_tune(const config::Config& given, const dist::Launch& launch) {
  if (launch.rank > 0) log::set_level(log::Level::kError);  // rank 0 warns for all
  const Watchdog watchdog(parse_section_limits(given.distributed.section_timeouts), log::name());
  std::optional<SectionMark> mark(std::in_place, Section::kSetup);
  const device::Device device = start_device(given.device, {launch.local_world_size, launch.local_rank});
  log::info("{}", device.description());
  const std::unique_ptr<MetricsServer> server = MetricsServer::for_run(given, launch);
  TrainingInputs inputs = prepare_training(given);
  mark.reset();
  const auto group = dist::Group::join(launch, group_options(given.distributed));  // tokenizing may take hours
  fine_tune_in(group, std::move(inputs), device.torch_device, server.get());
}

}  // namespace fettle::train
