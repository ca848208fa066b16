"""Rollouts in files, and the engine that gives them again without sampling.

A run that records writes one file per sampling, named after it: a JSON line for every prompt, with
the token ids of prompt and responses, log-probabilities, finish reasons and weights_version.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_gad.engines.base import EngineWork, SamplingConfig, finish_reason
from megatron_gad.files import replace_lines, to_json
from megatron_gad.types import Group, Prompt, Rollout

ROLLOUTS_FOLDER = "rollouts"
SUFFIX = ".jsonl"


def as_record(group: Group) -> dict[str, Any]:
    """Return a group as plain values; floats come back from JSON as they were."""
    rollouts = [
        {
            "ids": list(rollout.ids),
            "logprobs": list(rollout.rollout_logprobs),
            "finish_reason": rollout.finish_reason,
            "weights_version": rollout.weights_version,
            "text": rollout.text,
        }
        for rollout in group.rollouts
    ]
    prompt = group.prompt
    return {"prompt_index": prompt.index, "prompt_ids": list(prompt.ids), "rollouts": rollouts}


def from_record(
    record: dict[str, Any], prompt: Prompt, stop_ids: Sequence[int], where: str
) -> Group:
    """Return the recorded responses to a prompt; their text is left to ``rollout.py``.

    stop_ids: of this run's tokenizer. where: names the record's source in an error.

    Raises ValueError where they were sampled for other tokens than the prompt's.
    """
    if tuple(record["prompt_ids"]) != prompt.ids:
        raise ValueError(
            f"{where}: the rollouts of data row {prompt.index} were sampled for a prompt of "
            f"{len(record['prompt_ids'])} tokens that differs from this run's of "
            f"{len(prompt.ids)}; use the data, the tokenizer and the chat template they were "
            "recorded with"
        )
    rollouts = tuple(
        Rollout(
            tuple(each["ids"]),
            tuple(map(float, each["logprobs"])),
            finish_reason(each["ids"], stop_ids, each["finish_reason"]),
            each["weights_version"],
        )
        for each in record["rollouts"]
    )
    return Group(prompt, rollouts)


def write_groups(folder: Path, name: str, groups: Iterable[Group]) -> None:
    """Record one sampling, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_lines(folder / (name + SUFFIX), [to_json(as_record(group)) for group in groups])


class ReplayEngine:
    """Gives recorded rollouts for the same prompts of the same samplings; implements ``Engine``.

    It takes weights as every engine does, and has no use for them.
    """

    def __init__(self, folder: str | Path) -> None:
        """folder: run directory of a run that recorded, or its folder of rollouts."""
        folder = Path(folder)
        inner = folder / ROLLOUTS_FOLDER
        self._folder = inner if inner.is_dir() else folder

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Read the weights to the end, since other ranks may take part in it."""
        for _ in named_tensors:
            pass

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Group]:
        """Return the rollouts recorded under ``sampling.name``, in the order of the prompts.

        Raises ValueError where nothing fitting was recorded.
        """
        path = self._folder / (sampling.name + SUFFIX)
        records = self._read(path)
        return [self._find(records, prompt, sampling, path) for prompt in prompts]

    def take_work(self) -> EngineWork:
        """Return nothing: no token was sampled."""
        return EngineWork()

    def held_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Return nothing."""
        return ()

    def sleep(self) -> None:
        """Do nothing: there is no device memory to give back."""

    def close(self) -> None:
        """Do nothing: nothing was started."""

    def _read(self, path: Path) -> dict[int, dict[str, Any]]:
        if not path.is_file():
            recorded = sorted(found.stem for found in self._folder.glob("*" + SUFFIX))
            span = f"it has {recorded[0]} to {recorded[-1]}" if recorded else "it has none"
            raise ValueError(
                f"rollout.replay: {self._folder} holds no rollouts {path.stem!r}, {span}; take "
                "as many steps as the recorded run, with its stages and its extra steps of the "
                "discriminator"
            )
        with path.open(encoding="utf-8") as lines:
            return {record["prompt_index"]: record for record in map(json.loads, lines)}

    def _find(
        self,
        records: dict[int, dict[str, Any]],
        prompt: Prompt,
        sampling: SamplingConfig,
        path: Path,
    ) -> Group:
        record = records.get(prompt.index)
        if record is None:
            raise ValueError(
                f"rollout.replay: {path} has rollouts for the data rows {sorted(records)[:20]}, "
                f"none for row {prompt.index}, which this run takes in that step; use the seed, "
                "the data and the prompts_per_step they were recorded with"
            )
        if len(record["rollouts"]) != sampling.num_samples:
            raise ValueError(
                f"rollout.replay: {path} has {len(record['rollouts'])} rollouts for data row "
                f"{prompt.index}, and {sampling.num_samples} are wanted; use the group_size "
                "they were recorded with"
            )
        return from_record(record, prompt, sampling.stop_ids, f"rollout.replay: {path}")
