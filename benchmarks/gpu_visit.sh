#!/usr/bin/env bash
# One visit to a machine with a GPU, of at most 8 minutes: tests, runs through all stages, a table of speeds.
#
#   benchmarks/gpu_visit.sh [--out DIR] [--smollm2 DIR] [--wheels DIR] [--shapes 0.5b 1.5b]
#   benchmarks/gpu_visit.sh --device cpu --shapes tiny        # all of it without a GPU, to try it
#
# --out: for the log of each part and lines.txt, which gets each line as it comes (runs/gpu_visit).
# --smollm2: what `python -m examples.smollm2.prepare` wrote (runs/smollm2/assets); left out if it is not there.
# --wheels: of what the machine's python lacks, installed into --out and nowhere else, without a network. If Transformer
#   Engine's are among them with transformer_engine_torch-*.tar.gz, that is built at the end, for minutes, and tested.
# CUDA_HOME: where nvcc is, for that (/usr/local/cuda).
# PYTHON: the interpreter. It needs torch and transformers; megatron-core and tyro may be wheels.
# Exit status: 0 if every part went well, 1 if one failed or took too long. The others run in any case.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=runs/gpu_visit SMOLLM2=runs/smollm2/assets WHEELS='' DEVICE=cuda SHAPES=(0.5b 1.5b)
while [ $# -gt 0 ]; do
  case "$1" in
    --out) OUT=$2; shift 2 ;;
    --smollm2) SMOLLM2=$2; shift 2 ;;
    --wheels) WHEELS=$2; shift 2 ;;
    --device) DEVICE=$2; shift 2 ;;
    --shapes) shift; SHAPES=(); while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do SHAPES+=("$1"); shift; done ;;
    *) echo "gpu_visit: unknown option $1; use --out, --smollm2, --wheels, --device, --shapes" >&2; exit 2 ;;
  esac
done
case "$DEVICE" in
  cuda) ;;
  cpu) export CUDA_VISIBLE_DEVICES='' ;;
  *) echo "gpu_visit: --device $DEVICE; use cuda or cpu" >&2; exit 2 ;;
esac

PYTHON=${PYTHON:-python}
rm -rf "$OUT"/{tiny,smollm2,quickstart,site}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
: > "$OUT/lines.txt"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
FAILED=0
LIMIT=470

say() { echo "$*" | tee -a "$OUT/lines.txt"; }

part() { # NAME SECONDS COMMAND...: run it for at most so long, and say how it ended
  local name=$1 most=$2 begun=$SECONDS status
  shift 2
  [ "$most" -le $((LIMIT - SECONDS)) ] || most=$((LIMIT - SECONDS))
  if [ "$most" -le 0 ]; then
    FAILED=1
    say "== $name: not begun, $LIMIT s are over"
    return
  fi
  say "== $name: at most $most s"
  timeout --kill-after=10 "$most" "$@" 2>&1 | tee "$OUT/$name.log" | tee -a "$OUT/lines.txt"
  status=${PIPESTATUS[0]}
  if [ "$status" -eq 0 ]; then
    say "== $name: well, $((SECONDS - begun)) s"
  else
    FAILED=1
    [ "$status" -eq 124 ] && say "== $name: not done after $most s" || say "== $name: FAILED with status $status"
  fi
}

if [ -n "$WHEELS" ]; then
  part wheels 60 "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$OUT/site" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$OUT/site"
fi

part versions 30 "$PYTHON" -c '
import datetime, platform, torch, transformers
card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(datetime.date.today(), card, "python", platform.python_version(), "torch", torch.__version__,
      "CUDA", torch.version.cuda, "transformers", transformers.__version__)'

part tests 90 "$PYTHON" -m pytest -q -p no:cacheprovider -p no:xdist -rs tests/gpu

part tiny 60 env PYTHON="$PYTHON" SAVE="$OUT/tiny" examples/tiny/run.sh

part speeds 120 "$PYTHON" -m benchmarks.gpu_step --device "$DEVICE" --shapes "${SHAPES[@]}" --json "$OUT/speeds.json"

if [ -d "$SMOLLM2/student" ]; then
  part smollm2 90 "$PYTHON" -m megatron_gad examples/smollm2/run_cpu.toml --save "$OUT/smollm2" \
    --data.path "$SMOLLM2/train.jsonl" --student.path "$SMOLLM2/student" \
    --stages seqkd warmup adversarial --seqkd.steps 4 --seqkd.batch-size 4 --warmup.steps 4 \
    --warmup.discriminator-only-steps 2 --adversarial.steps 4
else
  say "== smollm2: left out, there is no $SMOLLM2/student"
fi

if [ "$DEVICE" = cuda ]; then
  part quickstart 120 "$PYTHON" -m examples.quickstart --out "$OUT/quickstart"
else
  say "== quickstart: left out on a CPU, where make quickstart plays it for minutes"
fi

SOURCES=("$WHEELS"/transformer_engine_torch-*.tar.gz)
if [ -n "$WHEELS" ] && [ -e "${SOURCES[0]}" ]; then
  NVIDIA=$("$PYTHON" -c 'import nvidia; print(list(nvidia.__path__)[0])')
  part te_build 240 env CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}" MAX_JOBS=16 NVTE_FRAMEWORK=pytorch \
    NVTE_PYTORCH_FORCE_BUILD=TRUE CPLUS_INCLUDE_PATH="$NVIDIA/cu13/include:$NVIDIA/cudnn/include:$NVIDIA/nccl/include" \
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-build-isolation --target "$OUT/site" "${SOURCES[0]}"
  part te_tests 90 "$PYTHON" -m pytest -q -p no:cacheprovider -p no:xdist -rs tests/gpu/test_parity.py
else
  say "== Transformer Engine: left out, no source of transformer_engine_torch was given"
fi

say "== all: $([ "$FAILED" -eq 0 ] && echo well || echo 'NOT well'), $SECONDS s"
exit "$FAILED"
