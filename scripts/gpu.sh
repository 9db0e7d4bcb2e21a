#!/usr/bin/env bash
# Everything that wants a GPU, in one command of at most nine minutes, with nothing to download.
#
#   scripts/gpu.sh OUT              run all stages, results under OUT
#   scripts/gpu.sh OUT --rehearse   the same on a machine without a GPU, at tiny sizes
#   scripts/gpu.sh --plan           the stages and their seconds
#   ONLY="build shapes" scripts/gpu.sh OUT
#   ONLY=sanitizer SANITIZERS="memcheck racecheck initcheck" scripts/gpu.sh OUT
#
# The most valuable stages come first; each has a time box, into which time saved by earlier ones is added, and
# leaves its results even if it or a later one fails. PYTHON chooses the interpreter; the package need not be
# installed in it: it then gets an editable install. A library that fits (effnet_fast/lib) is not built again, nor
# a kernel that `make gpu-cache` has compiled ahead into build/triton.
set -u
cd "$(dirname "$0")/.."

# Kernels that a stage compiles where `make gpu-cache` has not, and seconds of one core for it, in this order: inference
# 51 in 25, training 128 in 60, profile 14 in 9, sanitizer 48 in 22 (tests/fake_cuda/rehearse.py, Triton 3.6, a busy
# machine; under the sanitizer more), compile 222 in 21 where Inductor had compiled its own. With Triton 3.8: shapes 220 in
# 138, more than their box, so they want that cache; then tests 1780 in at least 800, which 14 processes do in a minute
# and one does not in its box.
STAGES="build:75 tests:100 inference:100 training:75 compile:60 shapes:50 profile:20 sanitizer:40 report:15"
TOTAL=540 # seconds for everything, starting Python and killing what hangs included

if [ "${1:-}" = --plan ]; then
  for stage in $STAGES; do echo "${stage%:*} ${stage#*:}"; done
  echo "total $TOTAL"
  exit 0
fi
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ] || { [ $# -gt 1 ] && [ "$2" != --rehearse ]; }; then
  echo "usage: scripts/gpu.sh OUT [--rehearse] | --plan" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
REHEARSE=${2:+1}
BEGAN=$SECONDS
LOG=$OUT/gpu.log
: >"$LOG"
# Results of an earlier run must not pass for this one's.
rm -f "$OUT"/e2e.json "$OUT"/e2e.csv "$OUT"/shapes.json "$OUT"/profile.json "$OUT"/report.html
echo "stage,status,seconds,box" >"$OUT/stages.csv"

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=$PWD/.venv/bin/python
fi
export PYTHONUNBUFFERED=1
# Kernels compiled ahead (make gpu-cache), and those that an earlier run compiled.
[ -d build/triton ] && export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/triton}
SM=$("$PYTHON" -c 'import torch
if torch.cuda.is_available(): print("%d%d" % torch.cuda.get_device_capability())' 2>>"$LOG")
if [ -n "$SM" ]; then
  MODELS_INFER="b0@256,1 b4@64 b7@16 b4@1" MODELS_TRAIN="b0@128 b4@32" SIZE="" DTYPE=bf16
  SHAPES="--bench-models b0 --bench-quick --bench-seconds 0.05"
elif [ -n "$REHEARSE" ]; then
  MODELS_INFER="b0@2,1" MODELS_TRAIN="b0@2" SIZE="--resolution 64" DTYPE=fp32
  SHAPES="--bench-models b0 --bench-quick --bench-seconds 0.01 --bench-batch 1 -k stage7"
fi

# The commands of the stages.

build() {
  if ! (cd / && "$PYTHON" -c 'import effnet_fast.kernels'); then
    EFFNET_FAST_SKIP_BUILD=1 "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --no-index -e . || return 1
  fi
  local missing
  missing=$("$PYTHON" -c 'from effnet_fast import build
from effnet_fast.backend import native
print(*[name for name in build.PRODUCTS if not native.available(name)[0]])') || return 1
  [ -z "$missing" ] && echo "the libraries in effnet_fast/lib fit" && return 0
  echo "building $missing"
  # Rehearsing needs one architecture only, as a GPU machine does.
  # shellcheck disable=SC2086
  EFFNET_FAST_CUDA_ARCHS=${SM:-90} MAX_JOBS=${MAX_JOBS:-$(nproc)} "$PYTHON" -m effnet_fast.build $missing
}

tests() {
  local parallel=""
  # Almost all of the time is Triton's compiler, a core each; contexts take half a gigabyte of the GPU each.
  "$PYTHON" -c 'import xdist' 2>/dev/null && [ -n "$SM" ] && parallel="-n $(($(nproc) > 14 ? 14 : $(nproc)))"
  # shellcheck disable=SC2086
  "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider $parallel
}

inference() { bench $MODELS_INFER --dtype $DTYPE; }
training() { bench $MODELS_TRAIN --dtype $DTYPE --mode train; }
compile() { bench ${MODELS_INFER%%,*} --dtype $DTYPE --providers compile effnet-fast-compile; }
bench() {
  # shellcheck disable=SC2086
  "$PYTHON" -m effnet_fast bench "$@" $SIZE --quick --rounds 2 --out "$OUT/e2e.json" --csv "$OUT/e2e.csv" --append \
    --budget $BUDGET
}

shapes() {
  # shellcheck disable=SC2086
  "$PYTHON" -m pytest benchmarks/test_mbconv.py benchmarks/test_depthwise.py benchmarks/test_pointwise.py \
    --benchmark-only --benchmark-columns=median,iqr,rounds -q -p no:cacheprovider $SHAPES \
    --bench-budget $BUDGET --benchmark-json "$OUT/shapes.json"
}

profile() { "$PYTHON" benchmarks/profile_block.py --out "$OUT/profile.json" ${SM:+--batch 64 --dtype bf16}; }

sanitizer() {
  [ -n "$SM" ] || { echo "needs a CUDA device"; return 77; }
  local tool check
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) ||
    { echo "compute-sanitizer is not installed"; return 77; }
  # memcheck: out of bounds; racecheck: shared memory without a barrier; initcheck: read before it was written.
  for check in ${SANITIZERS:-memcheck}; do
    echo "compute-sanitizer $check"
    # PyTorch's caching of memory hides accesses out of bounds from the tool.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$check" --error-exitcode 9 \
      "$PYTHON" benchmarks/sanitizer_subset.py || return
  done
}

report() {
  local files=() file
  for file in "$OUT/e2e.json" "$OUT/shapes.json"; do [ -f "$file" ] && files+=("$file"); done
  [ ${#files[@]} -gt 0 ] || { echo "nothing was measured"; return 77; }
  "$PYTHON" -m effnet_fast report "${files[@]}" -o "$OUT/report.html"
}

export -f build tests inference training compile bench shapes profile sanitizer report
export OUT PYTHON SM MODELS_INFER MODELS_TRAIN SIZE DTYPE SHAPES

SAVED=0
FAILED=0
for stage in $STAGES; do
  case " ${ONLY:-${stage%:*}} " in *" ${stage%:*} "*) ;; *) continue ;; esac
  name=${stage%:*} box=$((${stage#*:} + SAVED))
  left=$((TOTAL - (SECONDS - BEGAN)))
  [ $box -gt $((left - 10)) ] && box=$((left - 10))
  began=$SECONDS code=77
  echo "== $name (at most $box s)" | tee -a "$LOG"
  first=$(($(wc -l <"$LOG") + 1))
  if [ $box -lt 1 ]; then
    echo "no time left" >>"$LOG"
  elif [ -n "$SM$REHEARSE" ] || [ "$name" = build ] || [ "$name" = tests ]; then
    # Benchmarks stop by themselves before that: what they then lack is said in their results.
    BUDGET=$((box > 30 ? box - 15 : (box + 1) / 2)) \
      timeout --signal=INT --kill-after=8 "$box" bash -c "$name" >>"$LOG" 2>&1
    code=$?
  else
    echo "no CUDA device" >>"$LOG"
  fi
  used=$((SECONDS - began))
  SAVED=$((box > used ? box - used : 0))
  case $code in
    0) status=ok ;;
    77) status=skipped ;;
    124 | 130 | 137) status="out of time" ;;
    *) status=failed FAILED=1 ;;
  esac
  echo "$name,$status,$used,$box" >>"$OUT/stages.csv"
  [ $code -eq 0 ] || tail -n "+$first" "$LOG" | tail -n 3 | sed 's/^/   /'
  echo "   $status after $used s"
done

echo
column -t -s, "$OUT/stages.csv" 2>/dev/null || cat "$OUT/stages.csv"
if [ -f "$OUT/e2e.json" ]; then
  echo
  "$PYTHON" -m effnet_fast report "$OUT/e2e.json" --text
fi
echo "$((SECONDS - BEGAN)) s of $TOTAL; results in $OUT"
exit $FAILED
