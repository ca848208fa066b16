"""Checks of what a run measures of its student while it goes on."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from megatron_gad.checks.values import NOT_NEGATIVE, POSITIVE, violations
from megatron_gad.config.evaluation import PACKAGED, EvaluationConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.engines.asking.settings import address_problem, is_json_object


def check_evaluation(config: RunConfig, num_data_ranks: int) -> Iterator[str]:
    """Yield what is wrong with the evaluations of a run.

    num_data_ranks: of the model that has more; each has to be given a row.
    """
    own = config.evaluation
    rules = {"interval": NOT_NEGATIVE, "num_prompts": POSITIVE, "max_length_ratio": POSITIVE}
    yield from violations("evaluation", own, rules)
    for key in ("select", "instructions", "judge_url"):
        if getattr(own, key) and not own.interval:
            yield (
                f"evaluation.{key} = {getattr(own, key)!r}, but evaluation.interval = 0 never "
                f"evaluates; set it, or leave {key} out"
            )
    if own.interval <= 0:
        return
    yield from _check_instructions(own)
    yield from _check_judge(own)
    if not config.data.eval_path:
        yield (
            f"evaluation.interval = {own.interval} measures held-out rows, but data.eval_path is "
            "not set; set it, or leave interval at 0"
        )
    if not config.uses_engine:
        yield (
            f"evaluation.interval = {own.interval} with stages = {list(config.stages)}: no stage "
            "has an engine that would answer; leave interval at 0"
        )
    if 0 < own.num_prompts < num_data_ranks:
        yield (
            f"evaluation.num_prompts = {own.num_prompts} are fewer than the {num_data_ranks} "
            f"data-parallel ranks that answer and score them; make it at least {num_data_ranks}"
        )


def _check_instructions(own: EvaluationConfig) -> Iterator[str]:
    """Yield why no instructions could be checked; they are read with the data."""
    if own.select.startswith("evaluation/instructions") and not own.instructions:
        yield (
            f"evaluation.select = {own.select!r}, but evaluation.instructions is not set; set it "
            f"to {PACKAGED!r} or a file, or choose by another metric"
        )
    if not own.instructions:
        return
    if own.instructions != PACKAGED and not Path(own.instructions).is_file():
        yield (
            f"evaluation.instructions = {own.instructions!r} does not exist; name a file of "
            f"instructions, or {PACKAGED!r} for those of the package"
        )
    if find_spec("py3langid") is None:
        yield (
            f"evaluation.instructions = {own.instructions!r}, but py3langid is not installed; "
            "install megatron-gad[evaluate], or leave it out"
        )


def _check_judge(own: EvaluationConfig) -> Iterator[str]:
    """Yield why no judge could be asked."""
    if own.select == "evaluation/judge_win_rate" and not own.judge_url:
        yield (
            f"evaluation.select = {own.select!r}, but evaluation.judge_url is not set; set it, or "
            "choose by another metric"
        )
    if bool(own.judge_url) != bool(own.judge_model):
        missing = "judge_model" if own.judge_url else "judge_url"
        yield (
            f"evaluation.{missing} is not set; a judge has both an endpoint, judge_url, and a "
            "model there, judge_model"
        )
    if own.judge_url and (problem := address_problem(own.judge_url)):
        yield f"evaluation.judge_url = {problem}"
    if not is_json_object(own.judge_extra_body):
        yield (
            f"evaluation.judge_extra_body = {own.judge_extra_body!r} is no JSON object; give one "
            "like '{\"max_tokens\": 4096}'"
        )
