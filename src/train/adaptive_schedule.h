// SPDX-License-Identifier: Apache-2.0
/// The two schedules whose rate follows the evaluation loss.
#pragma once

#include <memory>

#include "train/schedule.h"
#include "train/schedule_arguments.h"

namespace fettle::train {

/// torch.optim.lr_scheduler.ReduceLROnPlateau: multiplies the rate by `factor` after `patience` evaluations without
/// progress.
std::shared_ptr<Schedule::Adaptive> reduce_on_plateau(double learning_rate, ScheduleArguments& arguments);

/// transformers' GreedyLR (arXiv 2512.14527): raises the rate while the metric improves, lowers it on a plateau.
std::shared_ptr<Schedule::Adaptive> greedy(double learning_rate, ScheduleArguments& arguments);

}  // namespace fettle::train
