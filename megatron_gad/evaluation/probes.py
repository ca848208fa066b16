"""Changes to a text that should, or should not, matter to whoever scores it."""

import random
from collections.abc import Mapping

SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f"  # with those of East Asian texts


def variants(text: str, other: str, seed: int) -> Mapping[str, str]:
    """Return what the probes make of a response, by their names.

    same: as it is, so that any difference of scores is an error. newline, space: one appended.
    no_final_mark: without the marks that end its last sentence. half: its first half, in
    characters. doubled: twice, as two paragraphs. shuffled: its paragraphs in another order; of a
    text of one paragraph its sentences. other: the response to another prompt.

    other: that response. seed: of the order.
    """
    return {
        "same": text,
        "newline": text + "\n",
        "space": text + " ",
        "no_final_mark": text.rstrip().rstrip(SENTENCE_ENDS),
        "half": text[: max(1, len(text) // 2)],
        "doubled": f"{text}\n\n{text}",
        "shuffled": _shuffled(text, seed),
        "other": other,
    }


def _shuffled(text: str, seed: int) -> str:
    """Return the text's paragraphs, or else its sentences or words, in another order."""
    for separator in ("\n\n", "\n", ". ", " "):
        parts = text.split(separator)
        if len(set(parts)) > 1:
            break
    else:
        return text
    order = list(range(len(parts)))
    draw = random.Random(seed)
    while [parts[i] for i in order] == parts:
        draw.shuffle(order)
    return separator.join(parts[i] for i in order)
