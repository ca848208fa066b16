#!/usr/bin/env bash
# Create the folder .venv (or the one given) with everything to run, test and lint the project.
#
#   tools/make_env.sh [FOLDER]
#
# PYTHON=/path/to/python  the interpreter to use; else the newest of 3.12, 3.11, 3.10 on PATH.
# TORCH_VERSION=2.13.0    the torch that a machine without a GPU gets, as a build for the CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}
torch_version=${TORCH_VERSION:-2.13.0}

# A name on PATH can be a stub that runs nothing, so each candidate is tried.
is_usable() {
    "$1" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3.10 python3}; do
        if is_usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        echo "PYTHON=$PYTHON is no Python of version 3.10, 3.11 or 3.12; name one that is" >&2
    else
        echo "no Python of version 3.10, 3.11 or 3.12 on PATH; install one, or name it:" \
            "make env PYTHON=/path/to/python3.11" >&2
    fi
    return 1
}

create_venv() {
    local python
    if ! python=$(find_python 2>/dev/null) && command -v uv >/dev/null && [ -z "${PYTHON:-}" ]; then
        python=3.12 # uv fetches it
    else
        python=$(find_python)
    fi
    echo "Creating $venv with $python"
    # uv works where Debian's python lacks ensurepip. Everything is then installed by pip, because
    # uv does not read pip's configuration, which may be what knows the package mirrors here.
    if command -v uv >/dev/null && uv venv --quiet --seed --python "$python" "$venv"; then
        return
    fi
    "$python" -m venv "$venv" || {
        rm -rf "$venv" # half of one would pass for a whole one next time
        echo "python -m venv failed; on Debian and Ubuntu: apt install python3-venv, or install uv" >&2
        return 1
    }
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

has_gpu() {
    command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1
}

# PyPI's torch for Linux brings gigabytes of CUDA. The CPU build is sought where pip looks by
# itself (PIP_EXTRA_INDEX_URL can add a place), then by uv, which knows where PyTorch keeps it; if
# neither has it, PyPI's build works as well.
install_cpu_torch() {
    if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        return
    fi
    echo "Installing torch $torch_version for the CPU"
    if [ "$(uname -s)" = Linux ]; then
        if pip_install "torch==$torch_version+cpu" 2>/dev/null; then
            return
        fi
        if command -v uv >/dev/null && uv pip install --quiet --python "$venv/bin/python" \
            --torch-backend cpu "torch==$torch_version" 2>/dev/null; then
            return
        fi
        echo "No CPU build of torch $torch_version found; taking PyPI's, which is much larger"
    fi
    pip_install "torch==$torch_version"
}

[ -x "$venv/bin/python" ] || create_venv
has_gpu || install_cpu_torch
echo "Installing megatron-gad and its dependencies"
pip_install --editable ".[dev]"
touch "$venv/.ready"
echo "Ready: $venv/bin/megatron-gad --help"
