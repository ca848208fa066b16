"""How long a run takes to read its data, at its first start and at its second.

    python -m benchmarks.startup --tokenizer runs/smollm2/assets/student

Starts the command on one rank and on four, with so many rows and with almost none, and prints the
difference: seconds of wall clock, seconds of all cores, and the largest memory of a rank.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

WORDS = (
    "the a of to and in is that it for was on are as with they be at one have this from by hot "
    "word but what some we can out other were all there when up use your how said an each she"
)
FEW = 64


@dataclass(frozen=True)
class Options:
    """What is read.

    Attributes:
        tokenizer: folder with the tokenizer of a real model.
        rows: rows of the data.
        characters: length of a row's prompt and response together.
        ranks: numbers of ranks to start it on.
    """

    tokenizer: Path
    rows: int = 200_000
    characters: int = 1400
    ranks: tuple[int, ...] = (1, 4)


def main(options: Options) -> None:
    """Print a row for each number of ranks."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_student(options.tokenizer, folder / "student")
        write_rows(folder / "few.jsonl", FEW, options.characters)
        write_rows(folder / "many.jsonl", options.rows, options.characters)
        size = (folder / "many.jsonl").stat().st_size / 1e6
        print(f"{options.rows:,} rows, {size:.0f} MB; beside a start with {FEW} rows:")
        print("| ranks | start | wall clock, s | all cores, s | largest rank, MB |")
        print("|---|---|---|---|---|")
        for num_ranks in options.ranks:
            base = start(folder, "few.jsonl", num_ranks)
            for name in ("first", "second"):
                found = start(folder, "many.jsonl", num_ranks)
                wall, cores, memory = (a - b for a, b in zip(found, base, strict=True))
                print(f"| {num_ranks} | {name} | {wall:.0f} | {cores:.0f} | {memory:+.0f} |")
            shutil.rmtree(folder / "run-many.jsonl")


def make_student(tokenizer: Path, folder: Path) -> None:
    """Write a tiny model for a real tokenizer."""
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(tokenizer)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)


def write_rows(file: Path, count: int, characters: int) -> None:
    """Write rows of common words, half of them the response's."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            words = " ".join(draw.choices(WORDS.split(), k=characters // 4))
            prompt, response = words[: characters // 2], words[characters // 2 : characters]
            turns = [{"role": "user", "content": prompt}]
            out.write(json.dumps({"content": turns, "teacher_response": response}) + "\n")


def start(folder: Path, data: str, num_ranks: int) -> tuple[float, float, float]:
    """Take one step; return wall clock, seconds of all cores, and MB of the largest process."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [
        *(*launch, "--nproc-per-node", str(num_ranks), "-m", "megatron_gad"),
        *("--stages", "seqkd", "--seqkd.steps", "1", "--seqkd.batch-size", "4"),
        *("--data.path", str(folder / data), "--student.path", str(folder / "student")),
        *("--data.max-response-tokens", "512", "--save", str(folder / f"run-{data}")),
        *("--no-tensorboard", "--save-interval", "0"),
    ]
    # The second start finds the cache of the first, and nothing to go on from.
    for left in (folder / f"run-{data}").glob("iter_*"):
        shutil.rmtree(left)
    (folder / f"run-{data}" / "latest_checkpointed_iteration.txt").unlink(missing_ok=True)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = (
        "import resource, subprocess, sys; status = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[:3000])
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cores, int(done.stdout.split()[-1]) / 1e3


if __name__ == "__main__":
    main(tyro.cli(Options))
