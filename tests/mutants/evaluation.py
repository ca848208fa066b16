"""Faults in what a student is measured by."""

from tests.mutants.mutant import Mutant

TESTS = "tests/unit/evaluation"


def _in(file: str, name: str) -> tuple[str, ...]:
    """Return the node id of a test."""
    return (f"{TESTS}/test_{file}.py::test_{name}",)


EVALUATION_MUTANTS = (
    Mutant(
        "the expected accuracy knows which response is the teacher's",
        "return torch.sigmoid(margins.abs())",
        "return torch.sigmoid(margins)",
        _in("calibration", "calibrated_scores_are_as_often_right_as_they_expect"),
    ),
    Mutant(
        "all wins of a range of differences are counted as expected",
        'sums[f"observed_{name}"] = (float(right[inside].sum()), count)',
        'sums[f"observed_{name}"] = (float(expected[inside].sum()), count)',
        _in("calibration", "wins_of_pairs_with_about_the_same_difference"),
    ),
    Mutant(
        "the rule of lengths comes from the pairs that it is tried on",
        "zip(halves, reversed(halves), strict=True)",
        "zip(halves, halves, strict=True)",
        _in("length_only", "the_rule_comes_from_the_other_half"),
    ),
    Mutant(
        "the win rate at equal length keeps the length term",
        "return float(expit(features[:, [0, 2]] @ weights[[0, 2]]).mean())",
        "return float(expit(features @ weights).mean())",
        _in("length_control", "one_model_has_the_rate_of_a_logistic_regression_at_equal_length"),
    ),
    Mutant(
        "the fresh discriminator is read on the prompts that it learned from",
        "learned, read = _shared(learned), _shared(read)",
        "learned, read = _shared(learned), _shared(learned)",
        _in("two_sample", "prompts_are_read_that_were_not_trained_on"),
    ),
    Mutant(
        "the second order of a pair counts for the other side",
        "found[model].append(Pair(first, 1.0 - second))",
        "found[model].append(Pair(first, second))",
        _in("judge", "a_pair_is_judged_in_both_orders"),
    ),
    Mutant(
        "of several winners that a judge names one is taken",
        "[found.pop()] if len(found) == 1 else None",
        "[found.pop()] if found else None",
        _in("judge", "a_winner_is_named_once"),
    ),
    Mutant(
        "a verdict that cannot be read is not asked for again",
        "ATTEMPTS = 2  # a verdict",
        "ATTEMPTS = 1  # a verdict",
        _in("judge", "an_unreadable_verdict_is_asked_for_once_more_and_never_guessed"),
    ),
    Mutant(
        "a call to the judge that was kept is made again",
        "for name, key in keys.items() if not self._holds(key)}",
        "for name, key in keys.items()}",
        _in("judge", "what_was_answered_is_replayed_without_a_network"),
    ),
    Mutant(
        "a share of all prompts has an interval without a width",
        'proportion_ci(confidence, method="wilson")',
        'proportion_ci(1e-9, method="wilson")',
        _in("intervals", "a_share_of_all_prompts_keeps_a_width"),
    ),
    Mutant(
        "a prompt counts if one of its instructions is fulfilled",
        "strict = [all(each) for each in results]",
        "strict = [any(each) for each in results]",
        _in("instructions", "accuracy_counts_prompts_of_which_all_is_fulfilled"),
    ),
    Mutant(
        "instructions in a run are not checked loosely",
        "(float(sum(found.each_loose)), count)",
        "(float(sum(found.each_strict)), count)",
        ("tests/unit/stages/test_graded.py::test_greedy_answers_are_checked_strictly_and_loosely",),
    ),
    Mutant(
        "a judge that went away in the middle gives a rate of the pairs before",
        "if noise is None or spent.stopped:",
        "if noise is None:",
        (
            "tests/unit/stages/test_graded.py::"
            "test_a_run_whose_judge_goes_away_ends_well_on_one_rank_and_on_two",
        ),
    ),
    Mutant(
        "nothing says that a judge was not waited for to the end",
        "if len(done) < len(workers) and not any(errors):",
        "if len(done) > len(workers):",
        ("tests/unit/engines/asking/test_pool.py::test_what_takes_longer_than_it_may_is_given_up",),
    ),
    Mutant(
        "a share's interval over seeds may leave 0 to 1, and other means may not",
        "is_share = measure in SHARES",
        "is_share = measure not in SHARES",
        (
            "tests/unit/test_quickstart_seeds.py::"
            "test_the_verdict_without_a_checker_has_means_over_the_seeds",
        ),
    ),
    Mutant(
        "an instruction of a run is asked though its prompt is too long",
        "too_long = [prompt for prompt in prompts if len(prompt.ids) > limit]",
        "too_long = [prompt for prompt in prompts if len(prompt.ids) > 2 * limit]",
        ("tests/unit/stages/test_graded.py::test_instructions_that_cannot_be_asked_are_refused",),
    ),
    Mutant(
        "the likelihood of a token is read one place too late",
        "logits = model(input_ids=ids[:, :-1], logits_to_keep=len(response))",
        "logits = model(input_ids=ids, logits_to_keep=len(response))",
        _in("likelihood", "the_likelihood_of_a_response_is_that_of_transformers"),
    ),
    Mutant(
        "a share's interval in a comparison of runs leaves 0 to 100 %",
        'is_share = unit == "%" and',
        'is_share = unit == "" and',
        (
            "tests/unit/reporting/test_comparison.py::"
            "test_no_interval_of_a_share_leaves_0_to_100_per_cent",
        ),
    ),
    Mutant(
        "the last mark is no form that may sway the discriminator",
        'names = ("newline", "space", "no_final_mark")',
        'names = ("newline", "space", "same")',
        (
            "tests/unit/reporting/test_failing_runs.py::"
            "test_a_mark_that_only_one_side_has_sways_the_discriminator",
        ),
    ),
    Mutant(
        "a rule that is ignored acts",
        'if finding.level == "act" and finding.name not in self._config.ignore',
        'if finding.level == "act"',
        (
            "tests/unit/reporting/test_failing_learning.py::"
            "test_a_discriminator_whose_rate_is_far_too_high_drives_scores_apart",
        ),
    ),
    Mutant(
        "a discriminator that is overtaken is only watched",
        "high=(1.15, 4.0),",
        "high=(1.15, 400.0),",
        (
            "tests/unit/reporting/test_failing_learning.py::"
            "test_a_discriminator_that_stands_still_is_overtaken",
        ),
    ),
    Mutant(
        "the held-out accuracy is compared with itself",
        'learned = numbers.recent("discriminator/accuracy", taught())',
        'learned = numbers.recent("evaluation/discriminator_accuracy", taught())',
        (
            "tests/unit/reporting/test_failing_runs.py::"
            "test_a_discriminator_that_knows_its_rows_by_heart_is_seen_on_others",
        ),
    ),
)
