# Two images of the project: for GPUs (the default), and for CPUs.
#
#   docker build -t megatron-gad .
#   docker run --rm -it --gpus all --ipc=host -v "$PWD/runs":/megatron_gad/runs megatron-gad bash
#   docker build --target cpu -t megatron-gad:cpu .
#   docker run --rm megatron-gad:cpu examples/tiny/run.sh
#
# Both hold the whole project, so that its tests and benchmarks run inside: `make test` in that for
# CPUs; `python3 -m pytest -m gpu` and `python3 -m benchmarks.gpu_step` in that for GPUs.
#
# THE IMAGE FOR GPUS HAS NOT BEEN BUILT. That for CPUs has been, by `make test-image`, without Docker
# and on a stand-in for PYTHON_IMAGE: docs/installation.md says what was run in it, and what differed.
# The versions go together by what the packages require; tools/check_versions.py asks whether they
# exist.
ARG SGLANG_IMAGE=lmsysorg/sglang:v0.5.16
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS cpu
# pkill, with which run.sh passes signals on; make, for the targets that users know.
RUN apt-get update && apt-get install -y --no-install-recommends make procps \
        && rm -rf /var/lib/apt/lists/*
WORKDIR /megatron_gad
# make looks for this environment; and Debian's own Python takes no packages from pip.
RUN python3 -m venv .venv
ENV PATH=/megatron_gad/.venv/bin:$PATH OMP_NUM_THREADS=1 PYTHON=python3
# 0.17 of megatron-core needs Python 3.12, 0.18 imports triton, which CPU builds of torch lack.
ARG TORCH_VERSION=2.13.0
ARG MEGATRON_CORE_VERSION=0.16.1
# uv knows where PyTorch keeps its builds for the CPU. "pip install" looks where pip is told to.
ARG TORCH_INSTALL="uv pip install --no-cache --torch-backend cpu"
RUN python3 -m pip install --no-cache-dir uv && ${TORCH_INSTALL} "torch==${TORCH_VERSION}"
# No more than setup.py reads, so that what it requires is installed anew only if that changes.
COPY setup.py pyproject.toml README.md LICENSE ./
COPY megatron_gad/__init__.py megatron_gad/
RUN python3 -m pip install --no-cache-dir "megatron-core==${MEGATRON_CORE_VERSION}" --editable ".[dev]"
COPY . .
RUN touch .venv/.ready
CMD ["megatron-gad", "--help"]

# SGLang's own image brings Python 3.12, torch 2.11.0 for CUDA 13, transformers and the engine.
FROM ${SGLANG_IMAGE} AS gpu
# Should its Python be the distribution's own, which takes no packages from pip otherwise.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
ARG MEGATRON_CORE_VERSION=0.16.1
# megatron-core 0.16.1 asks for >= 2.9, < 2.12; from 2.13 on the wheels need a newer cuBLAS than
# this torch brings.
ARG TRANSFORMER_ENGINE_VERSION=2.11.0
RUN apt-get update && apt-get install -y --no-install-recommends procps \
        && rm -rf /var/lib/apt/lists/*
# What the image brings must stay as it is: the engine's kernels are built for exactly this torch.
RUN python3 -m pip freeze \
        | grep -E '^(torch|torchvision|torchaudio|triton|transformers|tokenizers|openai|sglang)==' \
        > /constraints.txt
# The core is a wheel for CUDA 13; the torch part is compiled here, against the image's torch.
RUN NVTE_FRAMEWORK=pytorch python3 -m pip install --no-cache-dir --no-build-isolation \
        --constraint /constraints.txt \
        "transformer-engine[core_cu13,pytorch]==${TRANSFORMER_ENGINE_VERSION}"
WORKDIR /megatron_gad
COPY setup.py pyproject.toml README.md LICENSE ./
COPY megatron_gad megatron_gad
RUN python3 -m pip install --no-cache-dir --constraint /constraints.txt \
        "megatron-core==${MEGATRON_CORE_VERSION}" --editable ".[dev]"
COPY . .
ENV PYTHON=python3
CMD ["megatron-gad", "--help"]
