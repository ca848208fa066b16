"""Can teacher and student be told apart? A fresh discriminator, which took no part in training.

It is trained on half of the prompts and read on the other half. Its AUC is the chance that it ranks
a text of the teacher above one of the student: 0.5 if it cannot tell them apart. Beside it stand
discriminators that see the length alone, or features of the format alone, which say how cheap the
difference is.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse, vstack
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from megatron_gad.evaluation.intervals import Interval, bootstrap_interval
from megatron_gad.evaluation.ngram_f1 import split_words

Numbers = NDArray[np.float64]

FEWEST_PROMPTS = 20
HASHED = 2**18  # features of words, and as many of characters
NUM_RESAMPLES = 1000
FORMAT_FEATURES = (
    r"\n", r"\n[ \t]*\n", r"(?m)^[ \t]*[-*•][ \t]", r"(?m)^[ \t]*\d+[.)][ \t]", r"(?m)^#+ ",
    r"\*\*[^*\n]+\*\*", r"```", r"(?m)^\|", r"`[^`\n]+`", r"!", r"\?", r":", r";", r"—", r"\(",
    r"\d", r"[A-Z]", r"\s\Z", r"[.!?]\s*\Z", r"\A\s", r"\A[A-Z]",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """The texts of one side.

    prompts: what each text answers. A prompt is in one half with all its texts.
    """

    texts: Sequence[str]
    prompts: Sequence[Hashable]


@dataclass(frozen=True)
class TwoSample:
    """AUCs of fresh discriminators, with intervals over prompts.

    text: one that reads words and characters. length: one that is told the length alone.
    format: one that is told the counts of lines, lists, marks and the like alone.
    is_paired: whether texts to the same prompt were compared, as the discriminator of the game
        does; else all texts with all.
    """

    text: Interval
    length: Interval
    format: Interval
    is_paired: bool


def two_sample(teacher: Side, student: Side, generator: np.random.Generator) -> TwoSample:
    """Train all three discriminators on half of the prompts and read them on the others.

    If the sides share prompts, only texts to these are used, and they are compared in pairs, in
    training (the loss is that of Bradley and Terry) and when they are read. Otherwise a
    discriminator classifies texts, and each text is compared with all of the other side.

    Raises:
        ValueError: a text without its prompt, or too few prompts.
    """
    is_paired = not {*teacher.prompts}.isdisjoint(student.prompts)
    learned, read = _halve(teacher, student, generator)
    if is_paired:
        learned, read = _shared(learned), _shared(read)
    text, length, shape = (
        _auc(learned, read, features, generator, strength)
        for features, strength in ((_text_features(), 100.0), (_counts_of(_lengths), 1.0),
                                   (_counts_of(_format), 1.0))
    )  # fmt: skip
    return TwoSample(text, length, shape, is_paired)


Sides = tuple[Side, Side]


def _halve(teacher: Side, student: Side, generator: np.random.Generator) -> tuple[Sides, Sides]:
    """Return what is learned from and what is read.

    Prompts with texts of both sides are shared evenly, and so are those of one side alone.
    """
    for side in (teacher, student):
        if len(side.texts) != len(side.prompts):
            raise ValueError(f"{len(side.texts)} texts and {len(side.prompts)} prompts; give both")
    left, right = dict.fromkeys(teacher.prompts), dict.fromkeys(student.prompts)
    if min(len(left), len(right)) < FEWEST_PROMPTS:
        raise ValueError(
            f"{len(left)} and {len(right)} prompts; a discriminator needs {FEWEST_PROMPTS} of each "
            "side at least, to be trained on half of them"
        )
    halves: tuple[set[Hashable], set[Hashable]] = (set(), set())
    in_both = [prompt for prompt in left if prompt in right]
    alone = [p for p in left if p not in right], [p for p in right if p not in left]
    for prompts in (in_both, *alone):
        for place, number in enumerate(generator.permutation(len(prompts))):
            halves[place % 2].add(prompts[number])
    learned, read = ((_part(teacher, half), _part(student, half)) for half in halves)
    return learned, read


def _part(side: Side, half: set[Hashable]) -> Side:
    places = [place for place, prompt in enumerate(side.prompts) if prompt in half]
    return Side([side.texts[n] for n in places], [side.prompts[n] for n in places])


def _shared(sides: Sides) -> Sides:
    shared = {*sides[0].prompts} & {*sides[1].prompts}
    return _part(sides[0], shared), _part(sides[1], shared)


def _auc(
    learned: Sides,
    read: Sides,
    features: Any,
    generator: np.random.Generator,
    strength: float,
) -> Interval:
    """Fit a scorer, linear in the features, and read it; strength: inverse of the L2 penalty."""
    features.fit([*learned[0].texts, *learned[1].texts])
    left, right = (features.transform(side.texts) for side in learned)
    pairs = _pairs(learned)
    scorer = LogisticRegression(max_iter=1000, C=strength, fit_intercept=False)
    if len(pairs):
        differences = left[pairs[:, 0]] - right[pairs[:, 1]]
        scorer.fit(_stacked(differences, -differences), [1] * len(pairs) + [0] * len(pairs))
    else:
        labels = [1] * left.shape[0] + [0] * right.shape[0]
        scorer.set_params(fit_intercept=True).fit(_stacked(left, right), labels)
    scores = [scorer.decision_function(features.transform(side.texts)) for side in read]
    # [teacher's texts, student's texts]: 1 where the teacher's is ranked above, 0.5 at a tie.
    wins = (np.sign(scores[0][:, None] - scores[1][None, :]) + 1.0) / 2.0
    return _paired(wins, read, generator) if len(pairs) else _pooled(wins, read, generator)


def _stacked(left: Any, right: Any) -> Any:
    return vstack([left, right]) if issparse(left) else np.concatenate([left, right])


def _pairs(sides: Sides) -> NDArray[np.int64]:
    """Return [pairs, 2] int64, the places of all pairs of texts to the same prompt."""
    places = [_places(side) for side in sides]
    pairs = [
        (left, right)
        for prompt in places[0]
        for left in places[0][prompt]
        for right in places[1].get(prompt, ())
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _paired(wins: Numbers, read: Sides, generator: np.random.Generator) -> Interval:
    places = [_places(side) for side in read]
    means = [wins[np.ix_(places[0][prompt], places[1][prompt])].mean() for prompt in places[0]]
    return bootstrap_interval(means, generator)


def _places(side: Side) -> dict[Hashable, list[int]]:
    places: dict[Hashable, list[int]] = {}
    for number, prompt in enumerate(side.prompts):
        places.setdefault(prompt, []).append(number)
    return places


def _pooled(wins: Numbers, read: Sides, generator: np.random.Generator) -> Interval:
    """Draw prompts again and again; a text counts as often as its prompt is drawn."""
    prompts = [*dict.fromkeys([*read[0].prompts, *read[1].prompts])]
    number = {prompt: place for place, prompt in enumerate(prompts)}
    even = np.full(len(prompts), 1.0 / len(prompts))
    counts = generator.multinomial(len(prompts), even, size=NUM_RESAMPLES).astype(np.float64)
    left, right = (counts[:, [number[prompt] for prompt in side.prompts]] for side in read)
    drawn = ((left @ wins) * right).sum(1) / (left.sum(1) * right.sum(1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(wins.mean()), float(low), float(high), len(prompts))


def _text_features() -> Any:
    options: Any = {"n_features": HASHED, "alternate_sign": False, "lowercase": False, "norm": None}
    words: Any = {"analyzer": _word_ngrams, **options}
    characters = HashingVectorizer(analyzer="char", ngram_range=(1, 4), **options)
    # The norm is 1 whatever the length is, which has a discriminator of its own.
    both = make_union(HashingVectorizer(**words), characters)
    return make_pipeline(both, TfidfTransformer(sublinear_tf=True))


def _counts_of(count: Callable[[Sequence[str]], Numbers]) -> Any:
    return make_pipeline(FunctionTransformer(count), StandardScaler())


def _word_ngrams(text: str) -> list[str]:
    words = split_words(text)
    return [*words, *(f"{left} {right}" for left, right in pairwise(words))]


def _lengths(texts: Sequence[str]) -> Numbers:
    """Return logs of characters and words, and their squares: one side may just be more uneven."""
    logs = np.log1p(np.array([[len(text), len(split_words(text))] for text in texts], np.float64))
    return np.concatenate([logs, np.square(logs - 5.0)], axis=1)


def _format(texts: Sequence[str]) -> Numbers:
    """Return for each feature how often it occurs: logs, and per hundred characters."""
    counts = np.array(
        [[len(re.findall(feature, text)) for feature in FORMAT_FEATURES] for text in texts],
        np.float64,
    )
    sizes = np.array([[max(len(text), 1)] for text in texts], np.float64)
    return np.concatenate([np.log1p(counts), 100.0 * counts / sizes], axis=1)
