"""Faults in the stages without a game: pairs of responses, the best of several, a known teacher."""

from tests.mutants.mutant import Mutant, oracle

PREFERENCE = ("tests/unit/algorithms/test_preference.py",)
BEST = ("tests/unit/stages/test_best_of_n.py",)
COMPARED = ("tests/unit/training/test_teacher.py",)
RESUMED = ("tests/unit/stages/test_resumed_stages.py",)
ONE_RANK = "tests/distributed/test_training.py::test_gradients_equal_those_of_one_rank"
SNAPSHOT = oracle("one snapshot, its answers below the teacher's")
TAUGHT = oracle("a teacher's distribution, resumed")

FURTHER_MUTANTS = (
    Mutant(
        "the student's own response is preferred",
        "margins = beta * (gains[0::2] - gains[1::2])",
        "margins = beta * (gains[1::2] - gains[0::2])",
        PREFERENCE,
    ),
    Mutant(
        "simpo takes sums of log-probabilities and not means",
        "gains = gains / mask.sum(dim=-1).clamp(min=1)",
        "gains = gains * 1.0",
        PREFERENCE,
    ),
    Mutant(
        "simpo has no target margin",
        "target = SIMPO_MARGIN * beta",
        "target = 0.0 * beta",
        PREFERENCE,
    ),
    Mutant(
        "a pair with an empty response counts",
        "is_pair = has_tokens[0::2] & has_tokens[1::2]",
        "is_pair = has_tokens[0::2] | has_tokens[1::2]",
        PREFERENCE,
    ),
    Mutant(
        "the rows of a pair change places",
        "for ids in (group.prompt.teacher_ids, rollout.ids)",
        "for ids in (rollout.ids, group.prompt.teacher_ids)",
        ("tests/unit/data/test_batching.py", *SNAPSHOT),
    ),
    Mutant(
        "the student as it is answers in place of the snapshot",
        "sample_groups(run, prompts, 1, self.snapshot)",
        "sample_groups(run, prompts, 1)",
        SNAPSHOT,
    ),
    Mutant(
        "the reference of DPO is taken at the sampling temperature",
        "self.snapshot.logprobs(batch, temperature=1.0)",
        "self.snapshot.logprobs(batch, temperature=run.config.rollout.temperature)",
        SNAPSHOT,
    ),
    Mutant(
        "the snapshot is never taken anew",
        "if done * each // size > (done - 1) * each // size:",
        "if False:",
        oracle("a snapshot taken anew, resumed"),
    ),
    Mutant(
        "a stage that goes on takes the student for its snapshot",
        'self._snapshot = Reference(run.student, snapshots["reference"], version)',
        "self._snapshot = Reference(run.student, run.student.snapshot(), version)",
        RESUMED,
    ),
    Mutant(
        "the samples with the lowest rewards are fitted",
        "rewards_PG.argsort(dim=1, descending=True, stable=True)",
        "rewards_PG.argsort(dim=1, descending=False, stable=True)",
        BEST,
    ),
    Mutant(
        "samples are ranked by the discriminator whatever the rewards are",
        "best(rewarded.total_PG, own.keep)",
        "best(judged.scores_PG, own.keep)",
        oracle("the best by rewards, above a discriminator's margin"),
    ),
    Mutant(
        "the margin is over zero and not over the teacher",
        "scores_PG > teacher_scores_P[:, None] + min_margin",
        "scores_PG > min_margin",
        BEST,
    ),
    Mutant(
        "the discriminator learns from the samples that it ranks",
        "judged = judge_groups(run, groups, learns=False, shows=run.writes_samples)",
        "judged = judge_groups(run, groups, shows=run.writes_samples)",
        oracle("those above the teacher's"),
    ),
    Mutant(
        "the student learns the teacher's distribution at temperature 1",
        "run.student.train(batch, divergence_loss, temperature, taught)",
        "run.student.train(batch, divergence_loss, 1.0, taught)",
        TAUGHT,
    ),
    Mutant(
        "the sampled divergence is taken at temperature 1",
        "run.student.train(batch, sampled_divergence_loss, temperature)",
        "run.student.train(batch, sampled_divergence_loss)",
        oracle("a teacher's distribution, by what is sampled"),
    ),
    Mutant(
        "the teacher has a temperature",
        "_log_softmax(states.to(device), taught.weight, shard, 1.0)",
        "_log_softmax(states.to(device), taught.weight, shard, 0.8)",
        COMPARED,
    ),
    Mutant(
        "a state of the teacher stands for the token that it is of",
        "states = own_tokens(pad(piece.teacher_states[:, 1:], (0, 1)), group)[places]",
        "states = own_tokens(piece.teacher_states, group)[places]",
        COMPARED,
    ),
    Mutant(
        "the teacher's columns are those of its own padding",
        "return to_host(whole[shard.start : shard.start + shard.size])",
        "return to_host(own[: shard.size])",
        (f"{ONE_RANK}[divergence-tp4-sp]",),
    ),
)
