"""Who leaves the device between its turns changes memory and time, and no number of training."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.e2e import tiny_run

SHORT = ["--seqkd.steps", "1", "--warmup.steps", "2", "--adversarial.steps", "3"]
SHORT += ["--save-interval", "4"]
SHORT += ["--tensor-model-parallel-size", "2"]
EVERYBODY = ["--schedule.leaves", "student", "discriminator", "engine"]


def test_everybody_leaving_gives_the_numbers_of_everybody_staying(tmp_path: Path) -> None:
    stay = tiny_run.run(tmp_path / "stay", *SHORT, num_ranks=2)
    leave = tiny_run.run(tmp_path / "leave", *SHORT, *EVERYBODY, num_ranks=2)
    # A slept engine is loaded again even where the student stood still, and compared again.
    for records in (stay, leave):
        records[2].pop("engine/logprob_gap_max", None)
        records[2].pop("engine/logprob_gap_mean", None)
    assert [tiny_run.compared(r) for r in leave] == [tiny_run.compared(r) for r in stay]
    left, right = (
        load_file(tmp_path / f"{x}/student_hf/model.safetensors") for x in ("stay", "leave")
    )
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)

    last, last_stay = leave[-1], stay[-1]
    for phase in ("rollout", "discriminator", "student"):
        assert last[f"memory/{phase}_gib"] < last_stay[f"memory/{phase}_gib"]
    assert last["moves/bytes"] > last_stay["moves/bytes"] > 0  # the reference's, of who stays
    assert "nobody, everything stays" in tiny_run.log_of(tmp_path / "stay").read_text()
    said = "leaves the device: discriminator, engine, student"
    assert said in tiny_run.log_of(tmp_path / "leave").read_text()
