"""Files are whole at every moment."""

from pathlib import Path

import pytest

from megatron_gad.files import replace_lines, replacing


def test_a_file_that_is_being_replaced_stays_whole_until_the_new_one_is(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    replace_lines(file, ["old"])
    with pytest.raises(RuntimeError, match="half"), replacing(file) as draft:
        draft.write_text("ne")
        assert file.read_text() == "old\n"
        raise RuntimeError("half")
    assert file.read_text() == "old\n"
    replace_lines(file, ["new", "lone surrogate \ud800"])
    assert file.read_text() == "new\nlone surrogate \\ud800\n"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
