#!/usr/bin/env bash
# A run of seconds: 3 seqkd, 3 warm-up and 5 adversarial steps of a tiny student on its own data.
#   examples/tiny/run.sh [flags of megatron_gad]
#   NPROC=4 SAVE=runs/try examples/tiny/run.sh --tensor-model-parallel-size 2
# NPROC: ranks (default 1). SAVE: run directory (default runs/tiny). PYTHON: interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."

NPROC=${NPROC:-1}
SAVE=${SAVE:-runs/tiny}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=python3
fi
# One thread a rank: ranks that share cores only wait for one another with more.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

ASSETS=$SAVE/assets
[ -e "$ASSETS/student/config.json" ] || "$PYTHON" -m examples.tiny.prepare "$ASSETS"

PATHS=(
  --save "$SAVE"
  --data.path "$ASSETS/train.jsonl"
  --data.eval-path "$ASSETS/eval.jsonl"
  --student.path "$ASSETS/student"
)
LAUNCH=("$PYTHON")
if [ "$NPROC" -gt 1 ]; then
  # A free port for the ranks to meet at, so that several runs can go on at once.
  LAUNCH=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$NPROC")
fi
exec "${LAUNCH[@]}" -m megatron_gad examples/tiny/run.toml "${PATHS[@]}" "$@"
