"""One seed of one task: the beginning that all arms share, then arm after arm."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.compare.arms import ARMS, BASE, OVER, Arm
from examples.compare.costs import Lengths, run_flops, step_flops
from examples.compare.measure import measure
from examples.compare.tasks import TEACHER_SEED, Task
from examples.compare.worker import run_command
from examples.quickstart.data import DataFiles
from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.planning.shapes import ModelShape, read_shape

CONFIG = Path(__file__).with_name("run.toml")
RESULT = "result.json"
TEACHER_STEPS = 3000


@dataclass(frozen=True)
class Seed:
    """A task's data, student and sizes for one seed, and where its runs go."""

    task: Task
    seed: int
    folder: Path
    data: DataFiles
    student: Path
    shape: ModelShape
    lengths: Lengths

    @classmethod
    def open(cls, task: Task, seed: int, out: Path) -> "Seed":
        """Make data and student, which are the same bytes every time."""
        folder = out / task.name / f"seed_{seed}"
        data, student = task.make(folder / "data", seed)
        return cls(task, seed, folder, data, student, read_shape(student), _lengths(data, student))

    def arguments(self, stages: tuple[str, ...], flags: dict[str, str]) -> list[str]:
        """Return the command's arguments without where it saves and what it goes on from."""
        given = {
            "--data.path": str(self.data.train),
            "--data.eval-path": str(self.data.validation),
            "--data.max-response-tokens": str(self.task.max_tokens),
            "--student.path": str(self.student),
            "--seed": str(self.seed),
            **{_flag(key): value for key, value in {**self.task.flags, **flags}.items()},
        }
        pairs = [part for pair in given.items() for part in pair if part]
        return [str(CONFIG), *pairs, "--stages", *stages]

    def begin(self) -> dict[str, Any]:
        """Return the result of the shared beginning: the SeqKD student, and what each part cost."""
        arguments = self.arguments(("seqkd", "warmup"), {})
        return self._finished(BASE, arguments) or self._run(BASE, arguments, "student_hf_seqkd")

    def play(self, name: str) -> dict[str, Any]:
        """Return the result of an arm, which is not run again if it is there."""
        arm, base = ARMS[name], self.begin()
        spent = {
            start: sum(base["stages"][each]["flops"] for each in over)
            for start, over in OVER.items()
        }
        # Every warm-up is as long as the shared one turned out to be.
        warmup = base["stages"]["warmup"]["last_step"] - base["stages"]["seqkd"]["last_step"]
        same = {"warmup.steps": str(warmup), "warmup.stop_below": "0"}
        flags = arm.flags | same
        if arm.has_teacher_model:
            flags["white_box.teacher"] = str(train_teacher(self.task, self.folder.parent))
        arguments = self.arguments(arm.stages, flags)
        config = load_config(arguments)[0]
        steps = self._num_steps(arm, config, self._budget(spent["warmup"]) - spent[arm.start])
        if arm.least:
            steps = max(steps, self._steps_by_seconds(base, self.play(arm.least)))
        arguments += [f"--{arm.sized}.steps", str(steps)]
        if arm.start != "nothing":
            begun = base["stages"][arm.start]["last_step"]
            arguments += ["--load", str(self.folder / BASE), "--ckpt-step", str(begun)]
        arguments += ["--finetune"] * arm.is_fresh
        found = self._finished(name, arguments) or self._run(name, arguments, "student_hf")
        for key in ("flops", "seconds"):
            before = sum(base["stages"][each][key] for each in OVER[arm.start])
            found[key] = found[f"own_{key}"] + before
        return found

    def _budget(self, spent: float) -> float:
        """Return the operations that every arm may spend: of the beginning, and GAD's steps."""
        config = load_config(self.arguments(ARMS["gad"].stages, {}))[0]
        last = config.stage_sections[-1]
        return spent + last.num_steps(_count(self.data.train)) * self._step(config, last)

    def _step(self, config: RunConfig, section: Any) -> float:
        return step_flops(config, section, self.shape, self.lengths)

    def _num_steps(self, arm: Arm, config: RunConfig, left: float) -> int:
        """Return the steps of the last stage that are paid for with what the others leave."""
        *before, last = config.stage_sections
        first = 0 if arm.is_fresh else len(OVER[arm.start])
        for section in before[first:]:
            left -= section.num_steps(_count(self.data.train)) * self._step(config, section)
        return max(1, round(arm.share * left / self._step(config, last)))

    def _steps_by_seconds(self, base: dict[str, Any], other: dict[str, Any]) -> int:
        """Return the steps of SeqKD that take the rest of the seconds of another arm."""
        part = base["stages"]["seqkd"]
        each = part["seconds"] / part["last_step"]
        return round((other["seconds"] - part["seconds"]) / each)

    def _finished(self, name: str, arguments: list[str]) -> dict[str, Any] | None:
        file = self.folder / name / RESULT
        if not file.exists():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if found["made_with"] == self._made_with(arguments) else None

    def _made_with(self, arguments: list[str]) -> list[str]:
        return [CONFIG.read_text(encoding="utf-8"), *arguments[1:]]

    def _run(self, name: str, arguments: list[str], student: str) -> dict[str, Any]:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        seconds = run_command([*arguments, "--save", str(folder)], folder.with_suffix(".log"))
        config = load_config(arguments)[0]
        records = [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
        taken = sum(record["time/step_s"] for record in records)
        stages = {
            stage: {
                "flops": run_flops(config, self.shape, self.lengths, own),
                # Shares of the processor's time as the clock's are.
                "seconds": seconds * sum(record["time/step_s"] for record in own) / taken,
                "last_step": own[-1]["step"],
            }
            for stage, own in _by_stage(records)
        }
        found = {
            "made_with": self._made_with(arguments),
            "stages": stages,
            "num_steps": len(records),
            "own_flops": sum(part["flops"] for part in stages.values()),
            "own_seconds": seconds,
            "curves": _curves(records),
            **measure(self.task, folder / student, self.data.test, self.seed),
        }
        of_student = stages[config.stages[0]] if name == BASE else {}
        found |= {key: of_student[key] for key in ("flops", "seconds") if of_student}
        (folder / RESULT).write_text(json.dumps(found, indent=1), encoding="utf-8")
        return found


def train_teacher(task: Task, out: Path) -> Path:
    """Return the folder of a model of the teacher, trained on many more of its responses."""
    folder = out / "teacher"
    run = folder / "run"
    if not (run / "student_hf").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        task.write_teacher_rows(folder / "train.jsonl")
        flags: dict[str, Any] = {
            "--data.path": folder / "train.jsonl",
            "--data.eval-path": "",
            "--data.max-response-tokens": task.max_tokens,
            "--student.path": task.make_student(folder, TEACHER_SEED),
            "--seed": TEACHER_SEED,
            "--seqkd.steps": TEACHER_STEPS,
            "--save": run,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        words += ["--seqkd.no-keep-best", "--stages", "seqkd"]
        run_command([str(CONFIG), *words], folder / "train.log")
    return run / "student_hf"


def _by_stage(records: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for stage in dict.fromkeys(record["stage"] for record in records):
        yield stage, [record for record in records if record["stage"] == stage]


def _curves(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    keys = ("discriminator/accuracy", "discriminator/loss", "reward/mean", "student/entropy")
    own = [record for record in records if record["stage"] == records[-1]["stage"]]
    return {key: [record[key] for record in own] for key in keys if key in own[0]}


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _count(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in lines)


def _lengths(data: DataFiles, student: Path) -> Lengths:
    """Return mean lengths in tokens; before a student is known, its responses are the teacher's."""
    codec = ChatCodec.from_folder(student, 64, 64)
    rows = [json.loads(line) for line in data.train.open(encoding="utf-8")]
    prompts = [len(codec.encode_prompt(row["content"])) for row in rows]
    responses = [len(codec.encode_response(row["teacher_response"])[0]) for row in rows]
    mean = sum(responses) / len(rows)
    return Lengths(sum(prompts) / len(rows), mean, mean)
