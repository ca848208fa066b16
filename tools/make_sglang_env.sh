#!/usr/bin/env bash
# Make .venv-sglang, an environment with an SGLang server that runs on a CPU.
#
#   tools/make_sglang_env.sh [FOLDER]
#
# It is kept in a cache, one for each recipe, and .venv-sglang is a link to it, so that another
# checkout of the project finds it ready. SGLANG_ENV_CACHE=DIR moves the cache from ~/.cache. A FOLDER
# that is given gets an environment of its own.
#
# For the tests: SGLang publishes no CPU kernels, so tests/engines/sglang_shims stands in for them,
# and what only GPUs or other models need is left out (2.6 GB instead of 9). On a machine with GPUs
# install megatron-gad[sglang] instead. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
shims=tests/engines/sglang_shims
torch=torch==2.13.0
# SGLang and torchvision declare the CUDA build of torch, so they are installed by themselves.
alone=(sglang==0.5.23 torchvision==0.28.0)
oldest=sglang==0.5.16
needed=(
    numpy transformers==5.19.0 tokenizers==0.23.2 aiohttp fastapi 'uvicorn>=0.51' uvloop orjson
    msgspec pyzmq psutil pydantic prometheus-client python-multipart requests setproctitle
    sentencepiece==0.2.1 tiktoken xxhash zstandard pillow partial_json_parser pybase64 einops
    packaging tqdm IPython triton dill apache-tvm-ffi==0.1.11 compressed-tensors==0.18.0 gguf
    openai==2.8.0 jsonschema xgrammar==0.2.7 soundfile
)

# Another recipe is another environment: a run that uses the old one meanwhile is not disturbed.
recipe=$(cat tools/make_sglang_env.sh "$shims"/*.py | cksum | cut -d ' ' -f 1)
cache=${SGLANG_ENV_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/megatron_gad}
if ! { mkdir -p "$cache" && [ -w "$cache" ]; } 2>/dev/null; then
    cache=$PWD/.venv-cache
    mkdir -p "$cache"
fi
venv=${1:-$cache/sglang-$recipe}
# Checkouts that start together make it once.
exec 9> "$venv.lock"
if command -v flock >/dev/null; then flock 9; fi

link() {
    [ "$1" = "$cache/sglang-$recipe" ] || return 0
    [ -L .venv-sglang ] || rm -rf .venv-sglang
    ln -sfn "$1" .venv-sglang
    touch "$1"
    # 2.6 GB each: those that no checkout asked for in a month go.
    find "$cache" -maxdepth 1 -name 'sglang-*' -mtime +30 -exec rm -rf {} +
}

if [ "$(cat "$venv/.ready" 2>/dev/null)" = "$recipe" ]; then
    link "$venv"
    exit 0
fi

# A name on PATH can be a stub that runs nothing, so each candidate is tried.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
            2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "no Python of version 3.10, 3.11 or 3.12; install one, or name it:" \
        "PYTHON=/path/to/python3.11 $0" >&2
    return 1
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# PyPI's torch for Linux brings gigabytes of CUDA that a CPU server does not use.
install_cpu_torch() {
    pip_install "$torch+cpu" 2>/dev/null && return
    command -v uv >/dev/null && uv pip install --quiet --python "$venv/bin/python" \
        --torch-backend cpu "$torch" 2>/dev/null && return
    pip_install "$torch"
}

rm -rf "$venv"
python=$(find_python)
echo "Creating $venv with $python"
if ! { command -v uv >/dev/null && uv venv --quiet --seed --python "$python" "$venv"; }; then
    "$python" -m venv "$venv"
fi
echo "Installing torch, then SGLang: 2.6 GB, a few minutes"
install_cpu_torch
pip_install --no-deps "${alone[@]}"
pip_install "${needed[@]}"
# A .pth file is read by every interpreter of the environment, also by the processes that the
# server spawns: the first line adds the stand-ins' folder, the second prepares torchvision, the third
# looks less often for garbage among what imports leave, a fifth of a server's start. The stand-ins
# are copied, because the checkout may go while the environment stays.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -r "$shims" "$venv/shims"
cat > "$site/sglang_cpu_shims.pth" <<PTH
$(cd "$venv" && pwd)/shims
import torchvision_operators
import gc; gc.set_threshold(100_000, 20, 100)
PTH
# The oldest version that is supported: its source is compared with the calls, nothing of it runs.
"$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps \
    --dest "$venv/contract" "$oldest"
SGLANG_USE_CPU_ENGINE=1 "$venv/bin/python" -c 'import sglang.srt.entrypoints.http_server'
echo "$recipe" > "$venv/.ready"
link "$venv"
echo "Ready: $venv/bin/python -m sglang.launch_server --help"
