"""How many of a teacher's different answers to a prompt a student produces."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from megatron_gad.evaluation.ngram_f1 import ngram_f1, split_words

# Answers nearer than this, on average between two clusters, are one answer in other words.
SAME_ANSWER = 0.5


@dataclass(frozen=True)
class Coverage:
    """The answers of one prompt.

    num_clusters: number of the teacher's answers that differ.
    num_covered: number of those that some sample of the student is nearest to.
    num_possible: the most that so many samples could cover.
    """

    num_clusters: int
    num_covered: int
    num_possible: int

    @property
    def share(self) -> float:
        """Covered of possible."""
        return self.num_covered / self.num_possible


def coverage(teacher: Sequence[str], student: Sequence[str]) -> Coverage:
    """Return how many of the teacher's answers to one prompt the student's samples are nearest to.

    The teacher's answers are clustered (average linkage) at a distance of 0.5. The distance is 1
    less the F1 of single words and pairs, averaged. Each sample counts for the cluster of the
    teacher's answer that it is nearest to, so that wording need not be the same, only nearer to
    this answer than to the others.

    Raises:
        ValueError: no answer of the teacher, or no sample.
    """
    if not teacher or not student:
        raise ValueError(
            f"{len(teacher)} answers of the teacher and {len(student)} samples; give one of each "
            "at least"
        )
    teacher_words = [split_words(text) for text in teacher]
    clusters = _clusters(teacher_words)
    covered = set()
    for text in student:
        words = split_words(text)
        covered.add(clusters[int(np.argmin([_distance(words, other) for other in teacher_words]))])
    num_clusters = len({*clusters})
    return Coverage(num_clusters, len(covered), min(num_clusters, len(student)))


def _clusters(answers: Sequence[Sequence[str]]) -> list[int]:
    if len(answers) == 1:
        return [0]
    distances = np.array([[_distance(left, right) for right in answers] for left in answers])
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances), method="average")
    return [int(number) for number in fcluster(tree, SAME_ANSWER, criterion="distance")]


def _distance(left: Sequence[str], right: Sequence[str]) -> float:
    scores = [score for n in (1, 2) if (score := ngram_f1(left, right, n)) is not None]
    return 1.0 - sum(scores) / len(scores) if scores else 0.0
