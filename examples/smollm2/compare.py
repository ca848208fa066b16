"""The run's curves, and answers to held-out prompts: ``python -m examples.smollm2.compare``."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.evaluation.answers import answer
from megatron_gad.evaluation.ngram_f1 import mean_ngram_f1

# A panel each: title, and the metrics that are drawn in it.
PANELS = (
    ("Accuracy of the discriminator", ("discriminator/accuracy",)),
    ("Its score: teacher above student", ("discriminator/margin",)),
    ("Mean length in tokens", ("response/length_mean", "teacher/length_mean")),
    ("Student: entropy (nats), KL to its start", ("student/entropy", "student/kl")),
)
SPAN = 5  # steps of a running mean


@dataclass(frozen=True)
class Options:
    """Write what teacher, student before and student after answer to the same prompts.

    Attributes:
        rows: held-out rows, as prepare wrote them.
        before: the student's folder before training.
        after: its folder after training.
        run: run directory, whose metrics are drawn.
        out: folder to write samples.md and curves.png to.
        num_prompts: prompts that are answered.
        num_shown: those of them whose answers are written out.
        max_tokens: longest answer.
        temperature: of sampling; 0 is greedy.
    """

    rows: Path = Path("runs/smollm2/assets/eval.jsonl")
    before: Path = Path("runs/smollm2/assets/student")
    after: Path = Path("runs/smollm2_cpu/student_hf")
    run: Path = Path("runs/smollm2_cpu")
    out: Path = Path("runs/smollm2_cpu")
    num_prompts: int = 40
    num_shown: int = 6
    max_tokens: int = 96
    temperature: float = 0.0


def main(options: Options) -> None:
    """Answer, compare, and write the file."""
    rows = [json.loads(line) for line in options.rows.open(encoding="utf-8")]
    rows = rows[: options.num_prompts]
    teacher = [row["teacher_response"] for row in rows]
    sampling = SamplingConfig(max_new_tokens=options.max_tokens, temperature=options.temperature)
    conversations = [row["content"] for row in rows]
    answers = {
        "teacher": teacher,
        "before": answer(options.before, conversations, sampling),
        "after": answer(options.after, conversations, sampling),
    }
    lines = [f"{len(rows)} held-out prompts, at most {options.max_tokens} tokens.", ""]
    lines += ["| | mean characters | F1 of words with the teacher | of word pairs |"]
    lines += ["|---|---|---|---|"]
    for who, texts in answers.items():
        overlap = mean_ngram_f1(texts, teacher, 2)
        characters = sum(map(len, texts)) / len(texts)
        lines.append(f"| {who} | {characters:.0f} | {overlap[1]:.3f} | {overlap[2]:.3f} |")
    for number, row in enumerate(rows[: options.num_shown]):
        lines += ["", f"**{_on_one_line(row['content'][-1]['content'])}**", ""]
        lines += ["| teacher | before | after |", "|---|---|---|"]
        cells = [_on_one_line(texts[number]) for texts in answers.values()]
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (options.out / "samples.md").write_text(text, encoding="utf-8")
    draw(options.run / "metrics.jsonl", options.out / "curves.png")
    print(text)


def draw(metrics: Path, out: Path) -> None:
    """Draw the steps of a run, and running means of them."""
    records = [json.loads(line) for line in metrics.open(encoding="utf-8")]
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for panel, (title, names) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for name in names:
            found = [(record["step"], record[name]) for record in records if name in record]
            steps, values = [step for step, _ in found], [value for _, value in found]
            means = [
                sum(part) / len(part)
                for end in range(1, len(values) + 1)
                if (part := values[max(0, end - SPAN) : end])
            ]
            (line,) = panel.plot(steps, means, label=name)
            panel.plot(steps, values, ".", color=line.get_color(), alpha=0.35)
        game = next(record["step"] for record in records if record["stage"] == "adversarial")
        panel.axvline(game - 0.5, color="0.6", linestyle=":")
        panel.set_title(title, loc="left", fontsize=10)
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"step; the game begins at the dotted line; lines are means of {SPAN} steps")
    figure.savefig(out, dpi=110)


def _on_one_line(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")


if __name__ == "__main__":
    main(tyro.cli(Options))
