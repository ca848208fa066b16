"""A teacher behind a server teaches what the same teacher in a folder does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.training import parallel
from tests.loopback_server import Request, loopback_server
from tests.stage_steps import take_step


@pytest.fixture(scope="module")
def place() -> Iterator[parallel.Parallel]:
    """A world of one."""
    config = RunConfig()
    yield parallel.initialize(config.parallel, config.seed)
    parallel.shut_down()


@pytest.fixture(scope="module")
def teacher_url(assets: Path) -> Iterator[str]:
    """A server that answers as SGLang does, with the student's own weights."""
    model: Any = AutoModelForCausalLM.from_pretrained(assets / "student", dtype=torch.float32)
    model.save_pretrained(assets / "teacher")
    tokenizer: Any = AutoTokenizer.from_pretrained(assets / "student")
    tokenizer.save_pretrained(assets / "teacher")

    def answer(request: Request) -> tuple[int, Any]:
        body = request.body
        if request.path == "/tokenize":
            return 200, {"tokens": tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        if request.path == "/detokenize":
            return 200, {"text": [tokenizer.decode(row) for row in body["tokens"]]}
        ids, start = torch.tensor([body["input_ids"]]), body["logprob_start_len"]
        with torch.no_grad():
            table = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
        taken = table.gather(1, ids[0, 1:, None])[start:, 0].tolist()
        pairs = zip(taken, body["input_ids"][start + 1 :], strict=True)
        entries = [[None, body["input_ids"][start], None], *([x, y, None] for x, y in pairs)]
        return 200, {"meta_info": {"input_token_logprobs": entries}}

    with loopback_server(answer) as url:
        yield url


def steps(assets: Path, place: parallel.Parallel, save: Path, teacher: str) -> list[dict]:
    """The metrics of two steps; at this temperature the student is not the teacher at 1."""
    flags = ["examples/tiny/run.toml", "--stages", "white_box", "--save", str(save)]
    flags += ["--data.path", str(assets / "train.jsonl"), "--no-tensorboard"]
    flags += ["--data.eval-path", "", "--student.path", str(assets / "student")]
    flags += ["--white-box.student-lr", "0.01", "--rollout.temperature", "0.6"]
    flags += ["--white-box.teacher", teacher, "--white-box.loss", "sampled_kl"]
    config, _ = load_config([*flags, "--white-box.prompts-per-step", "4"])
    run = open_run(config, place)
    stage = begin_stage(run)
    found = [take_step(run, stage).metrics for _ in range(2)]
    run.close()
    return found


def test_a_served_teacher_gives_the_numbers_of_a_folder(
    assets: Path, place: parallel.Parallel, teacher_url: str, tmp_path: Path
) -> None:
    served = steps(assets, place, tmp_path / "served", teacher_url)
    loaded = steps(assets, place, tmp_path / "loaded", str(assets / "teacher"))
    for one, other in zip(served, loaded, strict=True):
        for key in ("student/loss", "student/grad_norm", "student/entropy"):
            assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key
    assert max(abs(each["student/loss"]) for each in served) > 1e-3


def test_a_server_of_another_tokenizer_is_refused_before_any_model_is_built(
    assets: Path, place: parallel.Parallel, tmp_path: Path
) -> None:
    answer = lambda request: (200, {"tokens": [1, 2, 3]})  # noqa: E731
    with loopback_server(answer) as url, pytest.raises(ValueError) as refused:
        steps(assets, place, tmp_path / "run", url)
    assert str(refused.value) == (
        f"white_box.teacher = '{url}' gives probabilities of other tokens: it makes other ids of "
        "the text \"The answer is 42, isn't it? (1,234.5)\" than the student's; serve a teacher of "
        "the student's family"
    )
