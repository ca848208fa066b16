"""What an evaluation in a run needs, and what is said if it is missing."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.checks.run import check_config
from megatron_gad.config.run import RunConfig
from tests.tiny_run import make_run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake, its files beside it."""
    return make_run(tmp_path_factory.mktemp("run"))


def test_an_evaluation_needs_rows_an_engine_and_a_row_for_each_rank(good: RunConfig) -> None:
    def messages(world_size: int = 1, stages: tuple = ("seqkd",), **keys: Any) -> list[str]:
        own = replace(good.evaluation, **keys)
        bare = replace(good, data=replace(good.data, eval_path=""))
        return check_config(replace(bare, evaluation=own, stages=stages), world_size)

    assert messages(select="evaluation/loss") == [
        "evaluation.select = 'evaluation/loss', but evaluation.interval = 0 never evaluates; set "
        "it, or leave select out"
    ]
    assert messages(interval=10) == [
        "evaluation.interval = 10 measures held-out rows, but data.eval_path is not set; set it, "
        "or leave interval at 0",
        "evaluation.interval = 10 with stages = ['seqkd']: no stage has an engine that would "
        "answer; leave interval at 0",
    ]
    assert messages(8, stages=("warmup",), interval=10, num_prompts=7)[-1] == (
        "evaluation.num_prompts = 7 are fewer than the 8 data-parallel ranks that answer and score "
        "them; make it at least 8"
    )
    assert messages(interval=-1, num_prompts=0, max_length_ratio=0.0) == [
        "evaluation.interval = -1 is not allowed; give a value 0 or more",
        "evaluation.num_prompts = 0 is not allowed; give a value above 0",
        "evaluation.max_length_ratio = 0.0 is not allowed; give a value above 0",
    ]


def test_instructions_in_a_run_need_a_file_and_an_interval(
    good: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def messages(**keys: Any) -> list[str]:
        own = replace(good.evaluation, **keys)
        data = replace(good.data, eval_path=good.data.path)
        return check_config(replace(good, data=data, evaluation=own), world_size=1)

    assert messages(instructions="packaged") == [
        "evaluation.instructions = 'packaged', but evaluation.interval = 0 never evaluates; set "
        "it, or leave instructions out"
    ]
    assert messages(interval=5, select="evaluation/instructions_loose") == [
        "evaluation.select = 'evaluation/instructions_loose', but evaluation.instructions is not "
        "set; set it to 'packaged' or a file, or choose by another metric"
    ]
    nowhere = str(tmp_path / "nowhere.jsonl")
    assert messages(interval=5, instructions=nowhere) == [
        f"evaluation.instructions = {nowhere!r} does not exist; name a file of instructions, or "
        "'packaged' for those of the package"
    ]
    assert messages(interval=5, instructions="packaged") == []
    monkeypatch.setitem(sys.modules, "py3langid", None)
    assert messages(interval=5, instructions="packaged") == [
        "evaluation.instructions = 'packaged', but py3langid is not installed; install "
        "megatron-gad[evaluate], or leave it out"
    ]


def test_a_judge_in_a_run_needs_an_endpoint_and_a_model(
    good: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def messages(**keys: Any) -> list[str]:
        own = replace(good.evaluation, **{"interval": 5, **keys})
        data = replace(good.data, eval_path=good.data.path)
        return check_config(replace(good, data=data, evaluation=own), world_size=1)

    url = "https://host/v1"
    assert messages(judge_url=url, judge_model="m") == []
    assert messages(judge_url=url, judge_model="m", interval=0) == [
        f"evaluation.judge_url = '{url}', but evaluation.interval = 0 never evaluates; set it, or "
        "leave judge_url out"
    ]
    assert messages(judge_url=url) == [
        "evaluation.judge_model is not set; a judge has both an endpoint, judge_url, and a model "
        "there, judge_model"
    ]
    assert messages(select="evaluation/judge_win_rate") == [
        "evaluation.select = 'evaluation/judge_win_rate', but evaluation.judge_url is not set; set "
        "it, or choose by another metric"
    ]
    for wrong in ("host/v1", "http://host:port/v1", "http://[/v1"):
        assert messages(judge_url=wrong, judge_model="m") == [
            f"evaluation.judge_url = '{wrong}' is no address; give one like https://host/v1"
        ]
    for more in ("?api_key=hidden", "?", "#hidden"):  # a key there would be written into files
        (problem,) = messages(judge_url=url + more, judge_model="m")
        assert problem.startswith(f"evaluation.judge_url = '{url}' and more from '{more[0]}' on")
        assert "hidden" not in problem
    assert messages(judge_url=url, judge_model="m", judge_extra_body="[1]") == [
        "evaluation.judge_extra_body = '[1]' is no JSON object; give one like "
        "'{\"max_tokens\": 4096}'"
    ]
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "nowhere"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (problem,) = messages(judge_url=url, judge_model="m")
    assert problem.endswith("(OPENAI_API_KEY_FILE) cannot be read: FileNotFoundError")
