"""A run that is held against the oracle, and the options that it has if it says nothing else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.oracle.models import Options

# The rates differ by model and by stage, rise, and fall; both norms are clipped; no number is one
# that another could stand in for.
BASE: dict[str, Any] = {
    "stages": ("seqkd", "warmup", "adversarial"),
    "seed": 7,
    "tensorboard": False,
    "save-interval": 0,
    "micro-batch-size": 3,
    "data.shuffle": False,
    "data.eval-path": "",
    "data.max-prompt-tokens": 64,
    "data.max-response-tokens": 17,
    "student.lr": 5e-4,
    "min-lr": 1e-4,
    "lr-decay-style": "cosine",
    "lr-warmup-steps": 1,
    "weight-decay": 0.1,
    "adam-beta1": 0.8,
    "adam-beta2": 0.95,
    "clip-grad": 0.5,
    "discriminator.path": "",
    "discriminator.score": "last_token",
    "discriminator.head-std": 0.1,
    "discriminator.split-groups": False,
    "discriminator.lr": 5e-4,
    "seqkd.steps": 2,
    "seqkd.batch-size": 6,
    "seqkd.lr": 8e-4,
    "warmup.steps": 3,
    "warmup.prompts-per-step": 4,
    "warmup.group-size": 2,
    "warmup.train-student": True,
    "warmup.discriminator-only-steps": 1,
    "warmup.student-lr": 6e-4,
    "warmup.discriminator-lr": 3e-4,
    "preference.steps": 3,
    "preference.prompts-per-step": 4,
    "preference.loss": "dpo",
    "preference.beta": 0.3,
    "preference.refresh-epochs": 0,
    "preference.student-lr": 7e-4,
    "white-box.steps": 3,
    "white-box.prompts-per-step": 4,
    "white-box.group-size": 2,
    "white-box.teacher": "",
    "white-box.loss": "reverse_kl",
    "white-box.student-lr": 7e-4,
    "best-of-n.steps": 3,
    "best-of-n.prompts-per-step": 4,
    "best-of-n.group-size": 4,
    "best-of-n.keep": 2,
    "best-of-n.min-margin": None,
    "best-of-n.student-lr": 5e-4,
    "adversarial.steps": 3,
    "adversarial.prompts-per-step": 4,
    "adversarial.group-size": 4,
    "adversarial.discriminator-samples": 3,
    "adversarial.discriminator-interval": 1,
    "adversarial.extra-discriminator-steps": 1,
    "adversarial.extra-prompts": 4,
    "adversarial.overlap": False,
    "adversarial.student-updates": 1,
    "adversarial.student-minibatches": 1,
    "adversarial.resample-rounds": 0,
    "adversarial.student-lr": 4e-4,
    "adversarial.discriminator-lr": 2.5e-4,
    "gad.discriminator-loss": "bradley_terry",
    "gad.advantage": "grpo",
    "gad.kl-coef": 0.3,
    "gad.kl-estimator": "k3",
    "gad.kl-in": "loss",
    "gad.policy-loss": "grpo",
    "gad.clip-range": 0.2,
    "gad.clip-range-high": None,
    "gad.dual-clip": 0.0,
    "rewards": (),
    "gad.negatives-pool": 0,
    "gad.negatives-share": 0.5,
    "gad.negatives-draw": "uniform",
    "gad.mask-truncated": False,
    "gad.length-correction": False,
    "gad.aggregation": "token_mean",
    "gad.tis-cap": 0.0,
    "gad.reset-optimizer": False,
    "rollout.temperature": 0.8,
}


@dataclass(frozen=True)
class Case:
    """A run that is compared.

    changed: options besides ``BASE``.
    engine_error: standard deviation of an error of the engine's log-probabilities, in nats.
    resumes_after: (stage, steps) after which the run is saved, ended and begun anew.
    """

    changed: dict[str, Any] = field(default_factory=dict)
    engine_error: float = 0.0
    resumes_after: tuple[tuple[str, int], ...] = ()

    def options(self, assets: Path, save: Path) -> Options:
        """Return the options of the run, with its files."""
        files = {"student.path": "student", "data.path": "train.jsonl"}
        options = {**BASE, **files, **self.changed, "save": str(save)}
        others = ("discriminator.path", "white-box.teacher")
        paths = {name: options[name] for name in (*files, *others)}
        return options | {name: str(assets / path) for name, path in paths.items() if path}


def case(
    engine_error: float = 0.0, resumes_after: tuple[tuple[str, int], ...] = (), **changed: Any
) -> Case:
    """Make a case from keywords, "__" for "." and "_" for "-"."""
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in changed.items()}
    if engine_error:
        named["rollout.logprob-gap-bound"] = 0.0
    return Case(named, engine_error, resumes_after)
