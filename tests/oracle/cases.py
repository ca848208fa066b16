"""The runs that are held against the oracle: each option at a setting where a mistake shows."""

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
    "student.min-lr": 1e-4,
    "student.lr-decay-style": "cosine",
    "student.lr-warmup-steps": 1,
    "student.weight-decay": 0.1,
    "student.adam-beta1": 0.8,
    "student.adam-beta2": 0.95,
    "student.clip-grad": 0.5,
    "discriminator.path": "",
    "discriminator.score": "last_token",
    "discriminator.head-std": 0.1,
    "discriminator.split-groups": False,
    "discriminator.lr": 5e-4,
    "discriminator.min-lr": 5e-5,
    "discriminator.lr-decay-style": "cosine",
    "discriminator.lr-warmup-steps": 2,
    "discriminator.weight-decay": 0.05,
    "discriminator.adam-beta1": 0.85,
    "discriminator.adam-beta2": 0.98,
    "discriminator.clip-grad": 0.7,
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
    "adversarial.freeze-discriminator": False,
    "adversarial.discriminator-only-steps": 0,
    "adversarial.extra-discriminator-steps": 1,
    "adversarial.extra-prompts": 4,
    "adversarial.overlap": False,
    "adversarial.student-updates": 1,
    "adversarial.student-minibatches": 1,
    "adversarial.student-lr": 4e-4,
    "adversarial.discriminator-lr": 2.5e-4,
    "gad.discriminator-loss": "bradley_terry",
    "gad.advantage": "grpo",
    "gad.kl-coef": 0.3,
    "gad.kl-estimator": "k3",
    "gad.kl-in": "loss",
    "gad.reference": "stage_start",
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
        paths = {name: options[name] for name in (*files, "discriminator.path")}
        return options | {name: str(assets / path) for name, path in paths.items() if path}


def case(
    engine_error: float = 0.0, resumes_after: tuple[tuple[str, int], ...] = (), **changed: Any
) -> Case:
    """Make a case from keywords, "__" for "." and "_" for "-"."""
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in changed.items()}
    if engine_error:
        named["rollout.logprob-gap-bound"] = 0.0
    return Case(named, engine_error, resumes_after)


CASES: dict[str, Case] = {
    "as published, with everything uneven": case(),
    "summed scores, cross-entropy, dr_grpo, k2 to the base": case(
        discriminator__score="sum",
        gad__discriminator_loss="cross_entropy",
        gad__advantage="dr_grpo",
        gad__kl_estimator="k2",
        gad__reference="base",
        gad__aggregation="sequence_mean",
        adversarial__discriminator_samples=0,
    ),
    "rloo, k1 to the base in the reward": case(
        gad__advantage="rloo",
        gad__kl_estimator="k1",
        gad__kl_in="reward",
        gad__reference="base",
        gad__aggregation="sequence_mean",
        rollout__temperature=1.3,
    ),
    "k3 to the stage's start in the reward": case(
        gad__kl_in="reward",
        gad__discriminator_loss="cross_entropy",
        discriminator__score="sum",
        gad__advantage="rloo",
        adversarial__extra_discriminator_steps=0,
        pack_sequences=False,
    ),
    "an engine that is off, truncated importance weights": case(
        engine_error=0.5,
        gad__tis_cap=1.25,
        gad__kl_coef=0.0,
    ),
    "several updates of the student, clipped": case(
        adversarial__student_updates=3,
        gad__clip_range=0.01,
        gad__kl_estimator="k2",
        gad__reference="base",
    ),
    "several updates on an engine that is off": case(
        engine_error=0.3,
        gad__tis_cap=1.1,
        gad__clip_range=0.02,
        gad__aggregation="sequence_mean",
        gad__advantage="dr_grpo",
        adversarial__student_updates=2,
        pack_sequences=False,
    ),
    "the ratio of whole responses, clipped": case(
        adversarial__student_updates=3,
        gad__policy_loss="gspo",
        gad__clip_range=0.004,
        gad__clip_range_high=0.006,
        gad__aggregation="sequence_mean",
    ),
    "importance weights clipped from above": case(
        engine_error=0.3,
        adversarial__student_updates=3,
        gad__policy_loss="cispo",
        gad__clip_range_high=0.02,
        gad__tis_cap=1.1,
        pack_sequences=False,
    ),
    "dr_grpo in full, clipped on both sides of a negative advantage": case(
        adversarial__student_updates=3,
        gad__advantage="dr_grpo",
        gad__aggregation="constant",
        gad__clip_range=0.03,
        gad__clip_range_high=0.01,
        gad__dual_clip=1.02,
    ),
    "a frozen discriminator": case(
        adversarial__freeze_discriminator=True,
        adversarial__extra_discriminator_steps=0,
        gad__advantage="rloo",
        discriminator__score="sum",
    ),
    "a discriminator on every other turn": case(
        adversarial__discriminator_interval=2,
        adversarial__extra_discriminator_steps=0,
        adversarial__discriminator_only_steps=1,
        adversarial__discriminator_samples=2,
        adversarial__steps=4,
    ),
    "more turns of the discriminator": case(
        adversarial__discriminator_interval=2,
        adversarial__extra_discriminator_steps=2,
        adversarial__discriminator_samples=1,
        gad__discriminator_loss="cross_entropy",
    ),
    "moments forgotten between the stages": case(
        gad__reset_optimizer=True,
    ),
    "groups split, pairs": case(
        discriminator__split_groups=True,
        discriminator__score="sum",
    ),
    "groups split, single responses, padded": case(
        discriminator__split_groups=True,
        gad__discriminator_loss="cross_entropy",
        adversarial__discriminator_samples=2,
        pack_sequences=False,
    ),
    "microbatches by tokens": case(
        max_tokens_per_microbatch=84,
        pack_sequences=True,
        logprob_chunk_size=5,
    ),
    "whole groups, which have their prompt once": case(
        micro_batch_size=10, discriminator__score="sum", adversarial__group_size=5
    ),
    "sampling while training": case(
        adversarial__overlap=True,
        gad__tis_cap=1.02,
        adversarial__steps=4,
    ),
    "resumed in every stage": case(
        resumes_after=(("seqkd", 1), ("warmup", 2), ("adversarial", 1), ("adversarial", 2)),
        adversarial__discriminator_interval=2,
        adversarial__steps=4,
    ),
    "resumed between the stages, reference base": case(
        resumes_after=(("seqkd", 2), ("warmup", 3), ("adversarial", 2)),
        gad__reference="base",
        adversarial__student_updates=2,
        gad__clip_range=0.02,
    ),
    "resumed while sampling while training": case(
        resumes_after=(("adversarial", 2),),
        adversarial__overlap=True,
        gad__tis_cap=1.02,
        adversarial__steps=4,
    ),
    "tokens that are parts of characters": case(
        student__path="bytes/student",
        data__path="bytes/train.jsonl",
        discriminator__score="sum",
        adversarial__steps=2,
    ),
    "a discriminator from another folder": case(
        stages=("seqkd", "adversarial"),
        discriminator__path="discriminator",
    ),
    "means of values, no reward for length, nothing learned from what was cut": case(
        data__max_response_tokens=9,
        discriminator__score="mean",
        gad__length_correction=True,
        gad__mask_truncated=True,
        gad__advantage="dr_grpo",
        gad__aggregation="constant",
    ),
    "minibatches, gone through twice": case(
        engine_error=0.2,
        adversarial__student_minibatches=2,
        adversarial__student_updates=2,
        gad__clip_range=0.02,
        gad__tis_cap=1.2,
        gad__kl_in="reward",
    ),
    "past groups, resumed": case(
        gad__negatives_pool=6,
        gad__negatives_share=0.5,
        gad__negatives_draw="recent",
        adversarial__steps=4,
        resumes_after=(("adversarial", 2),),
    ),
    "past groups, split, single responses": case(
        gad__negatives_pool=30,
        gad__negatives_share=0.25,
        gad__discriminator_loss="cross_entropy",
        discriminator__split_groups=True,
        adversarial__steps=4,
    ),
    "rewards beside the discriminator's": case(
        rewards=(
            {
                "name": "vowels",
                "function": "tests.oracle.given:vowels",
                "arguments": {"factor": 3.0},
                "weight": 0.7,
                "normalization": "batch",
                "clip": 1.1,
            },
            {"name": "discriminator", "weight": 0.4, "normalization": "group", "clip": 1.2},
            {"name": "brevity", "function": "tests.oracle.given:brevity", "weight": 0.05},
        ),
        gad__kl_in="reward",
        gad__advantage="dr_grpo",
        gad__length_correction=True,
    ),
    "plain GRPO on a reward": case(
        rewards=(
            {"name": "vowels", "function": "tests.oracle.given:vowels"},
            {"name": "discriminator", "weight": 0.0},
        ),
        adversarial__freeze_discriminator=True,
        adversarial__extra_discriminator_steps=0,
    ),
    "no warm-up": case(stages=("seqkd", "adversarial"), gad__advantage="dr_grpo"),
    "a student that waits for the discriminator": case(
        warmup__train_student=False,
        adversarial__discriminator_only_steps=1,
        gad__kl_coef=0.0,
    ),
    "one snapshot, its answers below the teacher's": case(
        stages=("seqkd", "preference", "adversarial"),
        adversarial__steps=1,
    ),
    "a snapshot taken anew, resumed": case(
        stages=("preference",),
        student__path="bytes/student",
        data__path="bytes/train.jsonl",
        preference__steps=14,
        preference__refresh_epochs=1,
        resumes_after=(("preference", 5), ("preference", 6), ("preference", 7)),
    ),
    "by the mean of tokens, without a reference": case(
        stages=("seqkd", "preference"),
        preference__loss="simpo",
        preference__beta=2.0,
        pack_sequences=False,
    ),
    "the best of several, resumed": case(
        stages=("warmup", "best_of_n", "adversarial"),
        adversarial__steps=1,
        resumes_after=(("warmup", 3), ("best_of_n", 1)),
    ),
    "those above the teacher's": case(
        stages=("warmup", "best_of_n"),
        best_of_n__keep=4,
        best_of_n__min_margin=-0.02,
        discriminator__score="sum",
    ),
    "constant rates, nothing clipped": case(
        student__lr_decay_style="constant",
        student__lr_warmup_steps=0,
        student__clip_grad=0.0,
        discriminator__lr_decay_style="constant",
        discriminator__lr_warmup_steps=0,
        discriminator__clip_grad=0.0,
        seqkd__lr=4e-4,
    ),
}
