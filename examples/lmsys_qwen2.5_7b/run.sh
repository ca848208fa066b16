#!/usr/bin/env bash
# Train on this node, alone or as one of several:
#   examples/lmsys_qwen2.5_7b/run.sh [flags of megatron_gad]
# On SIGUSR1, SIGTERM or Ctrl-C the step that is running is finished, a checkpoint is written, and
# the run ends; the same command goes on from there. Ctrl-C twice ends it without a checkpoint.
#
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT: as torchrun has them; without them this is one node.
# GPUS_PER_NODE, TP, PP: the layout; what is left over is data parallel.
# CONFIG, MODEL, DATA, SAVE: recipe, Hugging Face folder, training rows, run directory.
# PYTHON: interpreter, by default that of .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

EXAMPLE=examples/lmsys_qwen2.5_7b
if [ -z "${PYTHON:-}" ]; then
  PYTHON=.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=python3
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# One queue, so that on Hopper and before the GPU starts communication in the order it was asked for.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

DISTRIBUTED_ARGS=(
  --nproc-per-node "${GPUS_PER_NODE:-8}"
  --nnodes "${NNODES:-1}"
  --node-rank "${NODE_RANK:-${SLURM_NODEID:-0}}"
  --master-addr "${MASTER_ADDR:-localhost}"
  --master-port "${MASTER_PORT:-29500}"
)
MODEL_PARALLEL_ARGS=(
  --tensor-model-parallel-size "${TP:-2}"
  --pipeline-model-parallel-size "${PP:-1}"
)
MODEL_ARGS=(
  --student.path "${MODEL:-models/Qwen2.5-7B-Instruct}"
)
DATA_ARGS=(
  --data.path "${DATA:-data/lmsys_gpt5_chat/train.parquet}"
)
CHECKPOINT_ARGS=(
  --save "${SAVE:-runs/lmsys_qwen2.5_7b}"
)

# Told to stop, torchrun gives its ranks 30 seconds, which a checkpoint of this size exceeds. So the
# ranks are told and torchrun is not: they save and end, and it ends with them.
asked= launcher=
tell_ranks() {
  pkill --signal USR1 --parent "$launcher" 2>/dev/null || true # none there yet
}
ask_ranks_to_stop() {
  if [ -z "$asked" ]; then
    asked=$1
    tell_ranks
  elif [ "$1" != USR1 ]; then
    kill -TERM "$launcher" 2>/dev/null || true
  fi
}
for signal in USR1 TERM INT HUP; do
  # shellcheck disable=SC2064 # the name is to be put in now
  trap "ask_ranks_to_stop $signal" "$signal"
done

# If this script is killed, torchrun goes with it, and the ranks with torchrun. By itself it would go on
# beyond the job where Slurm tracks processes by their parents or their group, and keep its port.
ends_with_this=(setpriv --pdeathsig KILL)
"${ends_with_this[@]}" true 2>/dev/null || ends_with_this=()

# A session of its own keeps a terminal's Ctrl-C from torchrun. A scheduler may send USR1 to every
# process there is: torchrun ignores it, and so do the ranks until they can heed it.
(
  trap '' USR1
  exec setsid "${ends_with_this[@]}" "$PYTHON" -m torch.distributed.run "${DISTRIBUTED_ARGS[@]}" \
    -m megatron_gad "${CONFIG:-$EXAMPLE/run.toml}" \
    "${MODEL_PARALLEL_ARGS[@]}" \
    "${MODEL_ARGS[@]}" \
    "${DATA_ARGS[@]}" \
    "${CHECKPOINT_ARGS[@]}" \
    "$@"
) &
launcher=$!

# wait also ends when a signal has been handled; what counts is whether torchrun is still there. From
# then on the ranks are told again and again: one that was only starting did not hear it, and to one
# that did it is nothing new.
while kill -0 "$launcher" 2>/dev/null; do
  if [ -z "$asked" ]; then
    wait "$launcher" || true
  else
    tell_ranks
    sleep 2
  fi
done
wait "$launcher" && status=0 || status=$?
exit "$status"
