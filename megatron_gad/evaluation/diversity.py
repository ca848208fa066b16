"""How much the responses to one prompt differ."""

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU


def self_bleu(group: Sequence[str]) -> float | None:
    """Return the mean BLEU of each text of a prompt with the others as references, in [0, 1].

    1 if all are the same (Zhu et al. 2018, arXiv 1802.01886). None for fewer than two texts.
    """
    if len(group) < 2:
        return None
    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, [*group[:number], *group[number + 1 :]]).score
        for number, text in enumerate(group)
    ]
    return sum(scores) / len(scores) / 100.0
