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
# NEITHER HAS BEEN BUILT SO FAR; docs/installation.md says what was tried instead. The versions go
# together by what the packages require; tools/check_versions.py asks whether they exist.
ARG SGLANG_IMAGE=lmsysorg/sglang:v0.5.16
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS cpu
# 0.17 of megatron-core needs Python 3.12, 0.18 imports triton, which CPU builds of torch lack.
ARG TORCH_VERSION=2.13.0
ARG MEGATRON_CORE_VERSION=0.16.1
# pkill, with which run.sh passes signals on; make, for the targets that users know.
RUN apt-get update && apt-get install -y --no-install-recommends make procps \
        && rm -rf /var/lib/apt/lists/*
# uv knows where PyTorch keeps its builds for the CPU.
RUN python3 -m pip install --no-cache-dir uv \
        && uv pip install --system --no-cache --torch-backend cpu "torch==${TORCH_VERSION}"
WORKDIR /megatron_gad
COPY setup.py pyproject.toml README.md LICENSE ./
COPY megatron_gad megatron_gad
RUN python3 -m pip install --no-cache-dir "megatron-core==${MEGATRON_CORE_VERSION}" --editable ".[dev]"
COPY . .
# make asks for an environment in the project's folder; here it is what was installed above.
RUN python3 -m venv --without-pip --system-site-packages .venv && touch .venv/.ready
ENV OMP_NUM_THREADS=1 PYTHON=python3
CMD ["megatron-gad", "--help"]

# SGLang's own image brings Python 3.12, torch 2.11.0 for CUDA 13, transformers and the engine.
FROM ${SGLANG_IMAGE} AS gpu
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
