"""The package as the oracle's tests drive it. What they need of its parts is in this file alone."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from megatron_gad.checks.run import check_config
from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig
from megatron_gad.resume import load_latest, save
from megatron_gad.stages.begin import begin_stage, open_run, reason_to_end
from megatron_gad.training.parallel import Parallel, initialize
from megatron_gad.types import Group, Rollout
from tests.oracle.models import Options
from tests.oracle.texts import Response, Sampled
from tests.stage_steps import take_step


@dataclass(frozen=True)
class Step:
    """What a step did; the same on all ranks.

    number: of the step in its stage, from 0.
    groups: sampled for it. extra: for every further step of the discriminator.
    asked: how to sample both, as the engine was told.
    past: groups that the discriminator learned from again: how many steps ago, and their rows.
    resting: rows whose groups it did not learn from.
    further: groups of every round of further prompts.
    metrics: as they are reported. samples: what it shows of its responses, by the prompt.
    """

    stage: str
    number: int
    groups: list[Sampled]
    extra: list[list[Sampled]]
    asked: list[dict[str, Any]]
    past: list[tuple[int, int]]
    resting: set[int]
    further: list[list[Sampled]]
    metrics: dict[str, float]
    samples: dict[str, dict[str, Any]]


class Product:
    """A run, taken step by step through its stages."""

    def __init__(
        self,
        options: Options,
        place: Parallel,
        engine_error: float = 0.0,
        sampled: dict[str, list[Sampled]] | None = None,
    ) -> None:
        """Build a run; go on from its checkpoint where there is one.

        engine_error: standard deviation of what is added to the engine's log-probabilities.
        sampled: what was sampled before, by the name of the sampling.
        """
        self.options = options
        self._error = engine_error
        self._sampled = {} if sampled is None else sampled
        self._past: list[tuple[int, int]] = []
        self._resting: set[int] = set()
        self._asked: dict[str, dict[str, Any]] = {}
        self._run = open_run(configure(options, place.world_size), place)
        if self._run.sampler.engine is not None:
            self._listen(self._run.sampler.engine)
        self._stage = load_latest(self._run)
        self._watch_pool()

    @property
    def stage(self) -> str | None:
        """The stage of the next step; None at the end of the run."""
        index = self._run.progress.stage_index
        stages = self._run.config.stages
        return stages[index] if index < len(stages) else None

    @property
    def is_at_start(self) -> bool:
        """Whether the next step is its stage's first."""
        return self._run.progress.step_in_stage == 0

    @property
    def is_inside_stage(self) -> bool:
        """Whether the stage was set up, or a checkpoint from inside it was loaded."""
        return self._stage is not None

    def begin_stage(self) -> None:
        """Set the stage up, from the models as they are."""
        self._stage = begin_stage(self._run)
        self._watch_pool()

    def step(self) -> Step:
        """Take the next step, and end the stage after its last."""
        run, where, stage = self._run, self._run.progress, self._stage
        assert stage is not None, "the stage has to begin first"
        self._past.clear()
        self._resting.clear()
        number, name = where.step_in_stage, f"step_{where.iteration + 1:07d}"
        result = take_step(run, stage)
        if reason_to_end(run, stage):
            stage.finish(run)
            where.stage_index += 1
            where.step_in_stage = 0
            self._stage = None
        shares = self._over_data(self._sampled.get(f"{name}_0", []))
        samples = {row["prompt"]: row for part in self._over_data(result.samples) for row in part}
        metrics = dict(result.metrics)
        groups = [group for share in shares for group in share]
        keys = [f"{name}_{draw}" for draw in (0, 1, *range(3, 9))]
        asked = [self._asked[key] for key in keys if key in self._asked]
        return Step(
            stage.name,
            number,
            groups,
            self._extra(name),
            asked,
            [*self._past],
            set(self._resting),
            self._further(name),
            metrics,
            samples,
        )

    def weights(self, model: str) -> dict[str, Tensor]:
        """Return the weights of "student" or "discriminator" under their Hugging Face names."""
        trainer = self._run.student if model == "student" else self._run.discriminator
        return {name: value.detach().clone() for name, value in trainer.hf_weights()}

    def resumed(self) -> "Product":
        """Save, end, and begin anew from the checkpoint."""
        save(self._run, self._stage)
        self.close()
        return Product(self.options, self._run.parallel, self._error, self._sampled)

    def close(self) -> None:
        """Stop the engine and finish all files."""
        self._run.close()

    def _extra(self, name: str) -> list[list[Sampled]]:
        """Every data rank sampled its shares of all further steps one after the other."""
        shares = self._over_data(self._sampled.get(f"{name}_1", []))
        count = int(self.options["adversarial.extra-discriminator-steps"]) if shares[0] else 0
        size = len(shares[0]) // max(1, count)
        return [
            [group for share in shares for group in share[i * size : (i + 1) * size]]
            for i in range(count)
        ]

    def _further(self, name: str) -> list[list[Sampled]]:
        rounds = range(int(self.options["adversarial.resample-rounds"]))
        shares = [self._over_data(self._sampled.get(f"{name}_{3 + n}", [])) for n in rounds]
        found = [[group for part in share for group in part] for share in shares]
        return [groups for groups in found if groups]

    def _over_data(self, value: Any) -> list[Any]:
        """Return what all data ranks have; only the first of a model's ranks sampled."""
        place = self._run.parallel
        return place.gather_over_data(place.from_engine_rank(value))

    def _watch_pool(self) -> None:
        """Note which past groups are drawn, and which of the step make room for them."""
        pool = getattr(self._stage, "negatives", None)
        if pool is None:
            return
        draw, resting = pool.draw, pool.resting

        def watched_draw(count: int, iteration: int, how: str) -> Any:
            drawn = draw(count, iteration, how)
            self._past[:] = [(iteration - p.iteration, p.group.prompt.index) for p in drawn]
            return drawn

        def watched_resting(*args: Any, **kwargs: Any) -> set[int]:
            self._resting.update(resting(*args, **kwargs))
            return set(self._resting)

        pool.draw, pool.resting = watched_draw, watched_resting

    def _listen(self, engine: Any) -> None:
        """Note what the engine samples, and put an error on its log-probabilities."""
        generate = engine.generate

        def listening(prompts: Sequence[Any], sampling: Any) -> list[Group]:
            groups = generate(prompts, sampling)
            given = [_with_error(group, self._error) for group in groups]
            self._sampled[sampling.name] = list(map(_noted, groups, given))
            self._asked[sampling.name] = asdict(sampling)
            return given

        engine.generate = listening


def start(options: Options, world_size: int = 1) -> Parallel:
    """Make the process groups of a run."""
    config = configure(options, world_size)
    return initialize(config.parallel, config.seed)


def configure(options: Options, world_size: int) -> RunConfig:
    """Return the configuration that the options stand for, which has to be without a mistake."""
    words: list[str] = []
    if options.get("rewards"):
        # Tables have no flags. A file of each rank's own: none reads what another is writing.
        file = Path(f"{options['save']}_rewards_{os.getpid()}.toml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(tomli_w.dumps({"rewards": options["rewards"]}))
        words.append(str(file))
    for name, value in options.items():
        if name == "rewards":
            continue
        if isinstance(value, bool):
            words.append(_switch(name, value))
        elif value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{name}", *map(str, values)]
    config, _ = load_config(words)
    problems = check_config(config, world_size)
    assert not problems, "\n".join(problems)
    return config


def _switch(name: str, value: bool) -> str:
    table, dot, key = name.rpartition(".")
    return f"--{name}" if value else f"--{table}{dot}no-{key}"


def _with_error(group: Group, size: float) -> Group:
    if not size:
        return group
    drawn = torch.Generator().manual_seed(sum(group.rollouts[0].ids))

    def spoil(rollout: Rollout) -> Rollout:
        error = size * torch.randn(len(rollout.ids), generator=drawn)
        # No log-probability is above 0.
        spoilt = (torch.tensor(rollout.rollout_logprobs) + error).clamp(max=0.0)
        return replace(rollout, rollout_logprobs=tuple(spoilt.tolist()))

    return replace(group, rollouts=tuple(map(spoil, group.rollouts)))


def _noted(drawn: Group, given: Group) -> Sampled:
    """Return in the oracle's terms what was drawn for a prompt and what of it was given on."""
    responses = [
        Response(
            ids=after.ids,
            logprobs=after.rollout_logprobs,
            drawn_logprobs=before.rollout_logprobs,
            is_cut=after.finish_reason == "length",
        )
        for before, after in zip(drawn.rollouts, given.rollouts, strict=True)
    ]
    return Sampled(drawn.prompt.index, drawn.prompt.ids, tuple(responses))
