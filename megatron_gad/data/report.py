"""What is said about a data set at the start and in a dry run: how it was read, what stands out."""

from collections.abc import Mapping
from pathlib import Path

from megatron_gad.data.conversation import KNOWN_ROLES
from megatron_gad.data.reading import Tally
from megatron_gad.data.rows import find_files, is_held_out


def data_notes(
    tally: Tally, path: Path | None, held_out: bool, weights: Mapping[str, int]
) -> tuple[str, ...]:
    """Return a line about how the rows were read.

    path: of local files; None for a data set of the Hub. weights: of files whose rows come again.
    """
    read = "; ".join(f"{form} ({count:,})" for form, count in tally.forms.most_common())
    if tally.num_with_several:
        read += (
            f"; of {tally.num_with_several:,} rows each of several answers is a row of its own, so "
            "that an epoch has every pair of prompt and answer once"
        )
    unread = f"; not read: {', '.join(tally.unread)}" if tally.unread else ""
    left_out = find_files(path, held_out).left_out if path is not None else ()
    names = f"; files left out: {', '.join(file.name for file in left_out)}" if left_out else ""
    again = "".join(f"; {name} {number} times" for name, number in weights.items())
    return (f"rows read: {read}{unread}{again}{names}",)


def data_warnings(tally: Tally, trained_on: str) -> tuple[str, ...]:
    """Return a line for each thing that was wrong with some rows.

    trained_on: the path as it was given; empty for held-out data.
    """
    warnings: list[str] = []
    if is_held_out(trained_on.rpartition(":")[2] if ":" in trained_on else Path(trained_on).name):
        warnings.append(
            f"data.path = {trained_on!r} is named like data for testing, and is trained on; name "
            "it in data.eval_path instead if it is"
        )
    for role, count in tally.roles.most_common(3):
        warnings.append(
            f"{count:,} turns have the role {role!r}, which models are not trained with; write "
            f"{', '.join(KNOWN_ROLES[:-2])}"
        )
    for words, count in tally.refusals.most_common(3):
        warnings.append(f"{count:,} conversations are left out: {words}")
    for reason, count in tally.failures.most_common():
        warnings.append(
            f"{count:,} responses are left out: finish_reason {reason!r} says that the teacher did "
            "not end them"
        )
    return tuple(warnings)
