"""The results as a page of Markdown that a reader understands without the code."""

from collections.abc import Mapping, Sequence
from typing import Any

# What an evaluation leaves in its folder: its numbers, and all answers prompt by prompt.
RESULTS_FILE, ANSWERS_FILE = "evaluation.json", "answers.jsonl"
PER_CENT = ("per cent", 100.0, 1)
PLAIN = ("", 1.0, 1)
FINE = ("", 1.0, 3)
# Measure -> its name, and how its numbers are written.
ROWS: Mapping[str, tuple[str, tuple[str, float, int]]] = {
    "score": ("judge's score, 50: as good as the judge's answer", PLAIN),
    "win": ("wins against {against}, ties half, %", PER_CENT),
    "win_at_equal_length": ("the same at equal length, %", PER_CENT),
    "order_disagreement": ("pairs with another outcome in the other order, %", PER_CENT),
    "first_answer_wins": ("verdicts for the answer shown first, 50: no preference, %", PER_CENT),
    "longer_than_baseline": ("answers longer than {against}'s, %", PER_CENT),
    "instructions_strict": ("instructions followed, strict, %", PER_CENT),
    "instructions_loose": ("instructions followed, loose, %", PER_CENT),
    "auc_text": ("AUC against the teacher, 0.5: not told apart", FINE),
    "auc_length": ("AUC by length alone", FINE),
    "auc_format": ("AUC by format alone", FINE),
    "words": ("words", PLAIN),
    **{f"words_p{q}": (f"words that {q} % do not exceed", PLAIN) for q in (10, 50, 90, 99)},
    **{f"f1_{n}": (f"F1 with the teacher, runs of {n}", FINE) for n in range(1, 7)},
    "nats_per_token": ("nats per token of the teacher's text", FINE),
    "nats_per_byte": ("nats per byte of the teacher's text", FINE),
    "coverage": ("the teacher's different answers covered, %", PER_CENT),
    "self_bleu": ("self-BLEU, 1: all samples the same", FINE),
    **{f"distinct_{n}": (f"different of all runs of {n}", FINE) for n in (1, 2, 3)},
    "repetition": ("repeated within an answer, %", PER_CENT),
    "refusal": ("refusals, %", PER_CENT),
    "cut": ("cut at the limit, %", PER_CENT),
    "blank": ("blank, %", PER_CENT),
    "other_language": ("another language than the teacher's, %", PER_CENT),
}  # fmt: skip


def student_rows(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return (measure in words, text of every student's number with its interval) of all measures.

    results: what ``evaluation.json`` holds.
    """
    students = results["students"]
    return [
        (name, [_cell(students[s], measure, form) for s in students])
        for measure, (name, form) in _rows(results).items()
    ]


def difference_rows(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return (measure in words, [of whom, difference, prompts, whether it is noise])."""
    rows = _rows(results)
    return [
        (
            rows[each["measure"]][0],
            [
                f"{each['student']} - {each['baseline']}",
                _interval(each, rows[each["measure"]][1]),
                str(each["count"]),
                "within noise" if each["is_within_noise"] else "differs",
            ],
        )
        for each in results["differences"]
        if each["measure"] in rows
    ]


def arm_rows(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return (measure in words, text of every arm's mean over seeds with its interval)."""
    arms = results["arms"]
    return [
        (name, [_interval(arms[a][m], form) if m in arms[a] else "-" for a in arms])
        for m, (name, form) in _rows(results).items()
        if any(m in means for means in arms.values())
    ]


def note_lines(results: Mapping[str, Any]) -> list[str]:
    """Return what has to be known of the numbers, a sentence or two each."""
    notes = [
        f"{name}: {flag}."
        for name, student in results["students"].items()
        for flag in student["flags"]
    ]
    judge = results["judge"]
    if judge:
        notes.append(
            f"Judge {judge['model']}: {judge['num_calls']} calls, {judge['num_replayed']} of "
            f"them kept from before; {judge['prompt_tokens']} tokens read, "
            f"{judge['completion_tokens']} written, cost {judge['cost']:.4f}. "
            f"{judge['num_unreadable']} verdicts could not be read in two attempts and "
            f"{judge['num_unanswered']} calls have no answer; neither counts as anything."
        )
    if judge and judge["stopped"]:
        notes.append(f"The judge was not asked everything: {judge['stopped']}.")
    return notes


def page(results: Mapping[str, Any]) -> str:
    """Return the page of what ``evaluation.json`` holds."""
    parts = [
        f"# Evaluation on {results['num_prompts']} prompts",
        "Ranges are 95 % intervals over prompts. They do not cover the randomness of training.",
        _table(["", *results["students"]], student_rows(results)),
        *_differences(results),
        *_arms(results),
        *_notes(results),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(results: Mapping[str, Any]) -> dict[str, tuple[str, tuple[str, float, int]]]:
    against = "the teacher" if results["against"] == "teacher" else results["against"]
    return {
        measure: (name.format(against=against), form)
        for measure, (name, form) in ROWS.items()
        if any(
            measure in s["means"] or measure in s["numbers"] for s in results["students"].values()
        )
    }


def _cell(student: Mapping[str, Any], measure: str, form: tuple[str, float, int]) -> str:
    if measure in student["means"]:
        return _interval(student["means"][measure], form)
    if measure in student["numbers"]:
        return _number(student["numbers"][measure], form)
    return "-"


def _interval(found: Mapping[str, float], form: tuple[str, float, int]) -> str:
    low, high = (_number(found[end], form) for end in ("low", "high"))
    mean = _number(found["mean"], form)
    return mean if low == high == mean or "nan" in (low, high) else f"{mean} ({low} to {high})"


def _number(value: float, form: tuple[str, float, int]) -> str:
    return f"{form[1] * float(value):.{form[2]}f}"


def _differences(results: Mapping[str, Any]) -> list[str]:
    lines = difference_rows(results)
    if not lines:
        return []
    return ["## Differences, prompt by prompt", _table(["", "of", "", "n", ""], lines)]


def _arms(results: Mapping[str, Any]) -> list[str]:
    if not results["arms"]:
        return []
    return [
        "## Means over seeds",
        "Ranges are 95 % intervals over seeds (Student's t; of shares on the log odds).",
        _table(["", *results["arms"]], arm_rows(results)),
    ]


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = [f"- {note}" for note in note_lines(results)]
    return ["## Notes", "\n".join(notes)] if notes else []


def _table(header: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    rows = [_line(header), "|---" * len(header) + "|"]
    return "\n".join([*rows, *(_line([name, *cells]) for name, cells in lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
