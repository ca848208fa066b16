"""A stage and its section, written here alone, are a part of the command like any other."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.__main__ import main
from megatron_gad.config.data import DataConfig
from megatron_gad.config.gad import GadConfig
from megatron_gad.config.stage_section import StageSection, StageWork
from megatron_gad.runtime.run import Run
from megatron_gad.stages.rollouts import sample_groups
from megatron_gad.stages.stage import Stage
from megatron_gad.stages.step_result import StepResult
from megatron_gad.stages.student_step import learn_from_teacher
from megatron_gad.training.checkpoint_files import LATEST
from tests.ranks import statuses_of_ranks


def define_stage() -> tuple[type, type]:
    """Define a stage that samples and has no discriminator, in the process that calls this."""

    @dataclasses.dataclass(frozen=True)
    class DrillConfig(StageSection):
        """Stage ``drill``.

        Attributes:
            prompts_per_step: prompts of a step.
            group_size: samples of each prompt.
            scale: of the student's rate.
        """

        name = "drill"
        positive = ("group_size", "scale")
        fixed = ("prompts_per_step", "group_size")
        uses_discriminator = False

        prompts_per_step: int = 8
        group_size: int = 2
        scale: float = 1.0

        def work(self, gad: GadConfig, split_groups: bool) -> StageWork:
            return StageWork(
                kind=self.name,
                num_prompts=self.prompts_per_step,
                group_size=self.group_size,
                num_samples=self.prompts_per_step * self.group_size,
                student_trained=self.prompts_per_step,
                steps=self.steps,
                epochs=self.epochs,
            )

        def student_rate(self, default: float) -> float:
            return self.scale * default

        def problems(self, data: DataConfig) -> Iterator[str]:
            if self.group_size > 4:
                yield f"drill.group_size = {self.group_size} is more than anyone looks at; use 4"

    class DrillStage(Stage[DrillConfig]):
        kind = DrillConfig
        num_seen = 0

        def step(self, run: Run) -> StepResult:
            prompts = run.data.take(self.settings.prompts_per_step)
            groups, metrics = sample_groups(run, prompts, self.settings.group_size)
            seen = sum(len(group.rollouts) for group in groups)
            self.num_seen += sum(run.parallel.gather_over_data(seen))
            metrics["drill/num_seen"] = float(self.num_seen)
            return StepResult.of(metrics, learned=learn_from_teacher(run, prompts))

        def state(self, run: Run) -> dict[str, Any]:
            return {"num_seen": self.num_seen}

        def resume(self, run: Run, state: Mapping[str, Any], snapshots: Mapping[str, Any]) -> None:
            self.num_seen = state["num_seen"]

    return DrillConfig, DrillStage


def run_command(words: list[str]) -> int:
    """Run the command in a process in which the stage is known."""
    _kept_alive = define_stage()
    sys.argv = ["megatron_gad", *words]
    return main()


@pytest.fixture
def command(assets: Path, tmp_path: Path):
    """Return the command as a function of flags: its exit statuses, and all that it prints."""

    def run(
        *flags: str, file: str = "examples/tiny/run.toml", num_ranks: int = 1
    ) -> tuple[set[int | None], str]:
        words = [file, "--no-tensorboard", "--data.eval-path", ""]
        words += ["--data.path", str(assets / "train.jsonl")]
        words += ["--student.path", str(assets / "student"), *flags]
        log = tmp_path / "log"
        statuses = statuses_of_ranks(run_command, num_ranks, words, log=log, timeout_s=600)
        return set(statuses), log.read_text()

    return run


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """Return what a run wrote of its steps, apart from seconds and memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    groups = ("student/", "response/", "engine/", "drill/", "data/")
    steps = [{k: v for k, v in json.loads(line).items() if k.startswith(groups)} for line in lines]
    return [{k: v for k, v in step.items() if k != "engine/tokens_per_s"} for step in steps]


def test_its_section_is_read_from_a_file_and_from_flags(command, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    tiny = Path("examples/tiny/run.toml").read_text()
    file.write_text(f"{tiny}\n[drill]\ngroup_sizes = 3\n")
    status, printed = command("--stages", "drill", file=str(file))
    assert status == {2}
    assert "unknown key 'group_sizes' in [drill]; the nearest name is 'group_size'" in printed
    file.write_text(f"{tiny}\n[drill]\ngroup_size = 3\nsteps = 4\n")
    flags = ("--stages", "drill", "--save", str(tmp_path / "out"), "--drill.scale", "5")
    status, printed = command(*flags, "--dry-run", file=str(file))
    assert status == {0}, printed
    assert "4 steps of 8 prompts x 3 samples, lr 5e-06\n" in printed
    # It is planned with an engine and without a discriminator.
    assert "rollout: " in printed
    assert "discriminator: " not in printed
    assert not (tmp_path / "out").exists()
    status, printed = command("--help")
    assert status == {0}
    assert "--drill.prompts-per-step INT" in printed


def test_its_section_is_checked_by_common_rules_and_by_its_own(command, tmp_path: Path) -> None:
    wrong = ("--drill.prompts-per-step", "-3", "--drill.scale", "0", "--drill.group-size", "5")
    status, printed = command("--stages", "drill", "--save", str(tmp_path / "out"), *wrong)
    assert status == {2}
    for key, remedy in (
        ("drill.prompts_per_step = -3", "the next that is one is 1"),
        ("drill.scale = 0", "give a value above 0"),
        ("drill.group_size = 5", "more than anyone looks at; use 4"),
    ):
        assert key in printed
        assert remedy in printed
    status, printed = command("--stages", "dril", "--save", str(tmp_path / "out"))
    assert status == {2}
    assert "'drill'" in printed


def test_it_trains_and_goes_on_from_the_middle(command, tmp_path: Path) -> None:
    whole, resumed, alone = (tmp_path / name for name in ("whole", "resumed", "alone"))
    flags = ("--stages", "drill", "--drill.steps", "4", "--save-interval", "2", "--keep-last", "0")
    flags += ("--student.lr", "1e-4", "--drill.scale", "10")
    status, printed = command(*flags, "--save", str(whole), num_ranks=2)
    assert status == {0}, printed
    steps = metrics_of(whole)
    # 8 prompts x 2 samples a step over both ranks.
    assert [step["drill/num_seen"] for step in steps] == [16, 32, 48, 64]
    losses = [step["student/loss"] for step in steps]
    assert losses[-1] < losses[0]

    shutil.copytree(whole, resumed)
    (resumed / LATEST).write_text("2")
    status, printed = command(*flags, "--save", str(resumed), "--drill.group-size", "3")
    assert status == {2}
    assert "drill.group_size = 3, but the checkpoint" in printed
    status, printed = command(*flags, "--save", str(resumed), num_ranks=2)
    assert status == {0}, printed
    assert metrics_of(resumed) == steps

    status, printed = command(*flags, "--save", str(alone))
    assert status == {0}, printed
    assert [step["student/loss"] for step in metrics_of(alone)] == pytest.approx(losses, rel=1e-4)
    # Its loss is drawn as the cross-entropy that its section says it is.
    assert "cross-entropy on what it fits" in (alone / "report.html").read_text()
