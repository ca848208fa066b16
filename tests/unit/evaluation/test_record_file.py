"""Files of results: what is damaged is named, and nothing of them is changed."""

import json
from pathlib import Path

import pytest

from megatron_gad.evaluation.record_file import RecordFile

GOOD = json.dumps({"key": "a", "text": "[[A]]"}) + "\n"


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[]\n", b"{}\n", b"[" * 100_000 + b"\n"])
def test_a_line_of_another_kind_is_named_and_stays(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "judge.jsonl"
    path.write_bytes(GOOD.encode() + line)
    with pytest.raises(ValueError, match=r"judge.jsonl, line 2: no record .*; remove the line, or"):
        RecordFile(path)
    assert path.read_bytes() == GOOD.encode() + line
