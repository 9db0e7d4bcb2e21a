// Runs the steps of a plan.
#pragma once

#include "cpu/engine/plan.h"

namespace effnet::cpu {

// In one parallel region of up to `threads` threads. `times`, or null: the clock in ns before the first step and after
// each, with the kind of step in the highest byte.
void run_plan(const NetworkPlan& plan, int64_t threads, int64_t* times);

}  // namespace effnet::cpu
