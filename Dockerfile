# A GPU image: SGLang's own, with Transformer Engine, Megatron-Core and this project added.
#
# NOT BUILT AND NOT RUN SO FAR. The versions were read from the packages' requirements, not tried:
# Python 3.12, torch 2.11 for CUDA 13 and SGLang 0.5.16 come with the base image; megatron-core 0.16.1
# asks for Transformer Engine >= 2.9, < 2.12.
#
#   docker build -t megatron-gad .
#   docker run --rm -it --gpus all --ipc=host --shm-size=16g -v "$PWD":/project megatron-gad bash
FROM lmsysorg/sglang:v0.5.16

# What the image brings must stay as it is: SGLang's kernels are built for exactly this torch.
RUN python3 -m pip freeze | grep -E '^(torch|torchvision|torchaudio|triton|transformers|sglang)==' \
        > /constraints.txt

# The core is a wheel for CUDA 13; the torch part is compiled here against the image's torch.
RUN python3 -m pip install --no-cache-dir --no-build-isolation --constraint /constraints.txt \
        "transformer-engine[core_cu13,pytorch]==2.11.0"

WORKDIR /megatron_gad
COPY setup.py pyproject.toml README.md LICENSE ./
COPY megatron_gad megatron_gad
COPY examples examples
COPY tools tools
RUN python3 -m pip install --no-cache-dir --constraint /constraints.txt --editable .

CMD ["megatron-gad", "--help"]
