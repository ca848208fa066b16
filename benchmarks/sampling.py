"""Sampled tokens a second of the embedded engine on this CPU, against transformers' ``generate``.

    python -m benchmarks.sampling [--json FILE] [--mixes ...] [--rounds N] [--other CHECKOUT]

The lengths of responses are log-normal: the output layer's logit of the stop id makes each token
the last with the probability that a log-normal length has there. All sides sample responses to the
same prompts from the same fp32 model, with one thread each, in turns; medians count. ``generate``
gets all rows at once, or as many as ``--rows`` says. With ``--other`` the embedded engine of
another checkout of the project takes its turns, too.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
STOP = 3
# Prompts and a seed; returns how many tokens were sampled.
Sample = Callable[[Tensor, int], int]
OURS, OTHER, THEIRS = "engine", "other", "generate"


@dataclass(frozen=True)
class Mix:
    """Prompts of one length, their responses, and the lengths of these: log-normal, with a cap."""

    prompts: int
    samples: int
    prompt_tokens: int
    mean: float
    cap: int
    sigma: float = 1.0

    def end_chances(self) -> Tensor:
        """Return [cap] float64: the chance that a response ends at a token, if it came so far."""
        centre = math.log(self.mean) - self.sigma**2 / 2
        lengths = torch.arange(self.cap + 1, dtype=torch.float64).clamp(min=1e-9)
        survival = 1 - torch.special.ndtr((lengths.log() - centre) / self.sigma)
        return 1 - survival[1:] / survival[:-1]


MIXES = {
    "32 x 8 of 32 + 64": Mix(32, 8, 32, 64, 384),
    "8 x 8 of 256 + 64": Mix(8, 8, 256, 64, 384),
    "64 x 8 of 32 + 64": Mix(64, 8, 32, 64, 384),
}


class TimedEnds(nn.Module):
    """An output layer that ends responses after as many tokens as a mix says."""

    def __init__(self, head: nn.Linear, mix: Mix) -> None:
        super().__init__()
        self.head = head
        self._first = mix.prompt_tokens - 1
        self._odds = torch.logit(mix.end_chances(), eps=1e-12).float()
        self._tokens = torch.zeros(1, dtype=torch.int64)

    def watch(self, _module: nn.Module, _args: Any, arguments: dict[str, Any]) -> None:
        """See, before each forward pass, how many tokens the responses have."""
        self._tokens = arguments["position_ids"][:, -1] - self._first

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits of any shape [B, ..., V]."""
        logits = self.head(hidden)
        logits[..., STOP] = -torch.inf
        odds = self._odds[self._tokens].view(-1, *[1] * (logits.dim() - 2))
        logits[..., STOP] = torch.logsumexp(logits, dim=-1) + odds
        return logits


def set_ends(model: Any, mix: Mix) -> None:
    """Let a model end its responses as a mix says."""
    ends = TimedEnds(model.lm_head, mix)
    model.lm_head = ends
    model.model.register_forward_pre_hook(ends.watch, with_kwargs=True)


def work(side: str, folder: str, mix: Mix, rows: int) -> None:
    """Sample once for every line on stdin; write seconds and tokens to stdout."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    shape = (mix.prompts, mix.prompt_tokens)
    prompts = torch.randint(5, 4096, shape, generator=generator)
    sample = _generate(folder, mix, rows) if side == THEIRS else _ours(folder, mix)
    sample(prompts[:2], 0)
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        tokens = sample(prompts, int(line))
        seconds = (time.perf_counter() - start, time.process_time() - cpu)
        print(json.dumps([*seconds, tokens]), flush=True)


def _ours(folder: str, mix: Mix) -> Sample:
    from safetensors.torch import load_file  # noqa: PLC0415

    from megatron_gad.engines.base import SamplingConfig  # noqa: PLC0415
    from megatron_gad.engines.embedded import EmbeddedEngine  # noqa: PLC0415
    from megatron_gad.types import Prompt  # noqa: PLC0415

    class Timed(EmbeddedEngine):
        def __init__(self) -> None:
            super().__init__(folder, "cpu", torch.float32)
            self.load_weights(load_file(f"{folder}/model.safetensors").items(), 1)
            set_ends(self._model, mix)

    engine = Timed()

    def sample(prompts: Tensor, seed: int) -> int:
        given = [Prompt(i, (), "", tuple(ids), ()) for i, ids in enumerate(prompts.tolist())]
        sampling = SamplingConfig(mix.samples, 1.0, mix.cap, (STOP,), seed)
        groups = engine.generate(given, sampling)
        return sum(len(rollout.ids) for group in groups for rollout in group.rollouts)

    return sample


def _generate(folder: str, mix: Mix, rows: int) -> Sample:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    set_ends(model, mix)

    def sample(prompts: Tensor, seed: int) -> int:
        torch.manual_seed(seed)
        repeated = prompts.repeat_interleave(mix.samples, dim=0)
        return sum(map(count, repeated.split(rows or len(repeated))))

    def count(ids: Tensor) -> int:
        texts = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=mix.cap,
            eos_token_id=STOP,
            pad_token_id=STOP,
        )[:, ids.shape[1] :]
        stops = texts == STOP
        lengths = torch.where(stops.any(1), stops.int().argmax(1) + 1, texts.shape[1])
        return int(lengths.sum())

    return sample


def measure(mix_name: str, rounds: int, other: str, rows: int) -> dict[str, list[list[float]]]:
    """Return seconds, processor seconds and tokens of every turn, by side."""
    sides = {OURS: str(ROOT), **({OTHER: other} if other else {}), THEIRS: str(ROOT)}
    measured: dict[str, list[list[float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        _save_model(folder, MIXES[mix_name])
        workers = {
            side: subprocess.Popen(
                [sys.executable, __file__, "--work", side, folder, mix_name, str(rows)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for side, path in sides.items()
        }
        for number in range(rounds):
            for side, worker in workers.items():
                assert worker.stdin is not None and worker.stdout is not None
                print(number, file=worker.stdin, flush=True)
                measured[side].append(json.loads(worker.stdout.readline()))
        for worker in workers.values():
            worker.communicate()
    return measured


def _save_model(folder: str, mix: Mix) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=mix.prompt_tokens + mix.cap,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def table(measured: dict[str, dict[str, list[list[float]]]]) -> str:
    """Return median tokens a second as Markdown, by the clock and by processor time."""
    lines = ["| mix | side | tokens/s | of generate | by processor time |", "|---|---|---|---|---|"]
    for mix, sides in measured.items():
        speeds = {
            side: [statistics.median(t[2] / t[i] for t in turns) for i in (0, 1)]
            for side, turns in sides.items()
        }
        for side, (clock, cpu) in speeds.items():
            ratios = [f"{clock / speeds[THEIRS][0]:.2f}", f"{cpu / speeds[THEIRS][1]:.2f}"]
            lines.append(f"| {mix} | {side} | {clock:,.0f} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the file."""
    if sys.argv[1:2] == ["--work"]:
        side, folder, mix, rows = sys.argv[2:]
        work(side, folder, MIXES[mix], int(rows))
        return
    from benchmarks.machine import describe_machine, write_measurements  # noqa: PLC0415

    parser = argparse.ArgumentParser(description="Time sampling against transformers.")
    parser.add_argument("--json", type=Path, help="also write every turn")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="of generate at once; 0: all")
    parser.add_argument("--other", default="", help="folder of another checkout of the project")
    options = parser.parse_args()
    measured = {
        name: measure(name, options.rounds, options.other, options.rows) for name in options.mixes
    }
    print(f"{date.today()}, {describe_machine()}; sampled tokens, medians\n\n{table(measured)}")
    if options.json:
        write_measurements(options.json, measured)


if __name__ == "__main__":
    main()
