"""One rank reads and tokenises for all; what is wrong with the data is an error on all."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.config.toml import to_toml
from megatron_gad.data.cache import MIN_BYTES
from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.dataset import load_prompts
from tests.distributed import prompts_worker
from tests.e2e import tiny_run
from tests.ranks import run_on_ranks
from tests.tiny_run import make_run
from tests.unit.training.test_run_folder import start_other


@pytest.mark.parametrize("is_large", [True, False])
def test_all_ranks_have_the_prompts_that_one_alone_reads(tmp_path: Path, is_large: bool) -> None:
    config = make_run(tmp_path)
    padding = "x" * (MIN_BYTES // 10 if is_large else 0)
    rows: list[dict[str, Any]] = [
        {"content": f"question {n}", "teacher_response": f"answer {n}", "id": padding}
        for n in range(10)
    ]
    data = Path(config.data.path)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.toml").write_text(to_toml(config))
    run_on_ranks(prompts_worker.main, 2, tmp_path, False)
    codec = ChatCodec.from_config(config.student.path, config.data)
    expected = load_prompts(config.data, codec, config.data.path).prompts
    for mine in torch.load(tmp_path / "results.pt", weights_only=False):
        assert mine == {"is_stored": is_large, "prompts": expected, "held_out": ()}

    data.write_text(data.read_text() + "[1]\n")
    run_on_ranks(prompts_worker.main, 2, tmp_path, True)
    first, second = torch.load(tmp_path / "results.pt", weights_only=False)
    assert first == second
    assert "row 11: is a JSON list; every line has to be one JSON object" in first["error"]


def test_the_first_rank_reads_for_all_before_there_is_a_process_group(tmp_path: Path) -> None:
    config = make_run(tmp_path)
    (tmp_path / "run.toml").write_text(to_toml(config))
    run_on_ranks(prompts_worker.read_before, 2, tmp_path)
    first, second = torch.load(tmp_path / "results.pt", weights_only=False)
    assert not (first["has_group"] or second["has_group"])
    assert len(first["prompts"]) == 20
    assert first["read"] == {False: first["prompts"]}
    assert second["read"] is None and second["prompts"] == first["prompts"]

    data = Path(config.data.path)
    data.write_text(data.read_text() + '{"content": "a", "teacher_response": 5}\n')
    run_on_ranks(prompts_worker.read_before, 2, tmp_path)
    results = torch.load(tmp_path / "results.pt", weights_only=False)
    for mine in results:
        assert f"{data}: 1 row cannot be read" in mine["error"]
        assert mine["read"] is None and not mine["has_group"]


def test_a_second_start_leaves_the_rows_alone_that_another_run_has(tmp_path: Path) -> None:
    save, log, data = tmp_path / "run", tmp_path / "log", tmp_path / "large.jsonl"
    row = json.dumps({"content": "a", "teacher_response": "b", "id": "x" * MIN_BYTES})
    data.write_text(f"{row}\n" * 8)
    kept = save / "prompts/train-0.arrow"
    kept.parent.mkdir(parents=True)
    kept.touch()

    def kill_when_it_waits(ranks: Sequence[Any]) -> None:
        deadline = time.monotonic() + 120
        while "is in use by another run" not in log.read_text():
            assert ranks[0].is_alive() and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.05)
        ranks[0].kill()

    flags = ("--stages", "seqkd", "--data.path", str(data))
    with start_other(save) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        tiny_run.outcome(save, log, *flags, meddle=kill_when_it_waits)
        other.kill()
    assert [*kept.parent.iterdir()] == [kept]
