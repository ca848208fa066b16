"""A report that cannot be written does not fail the run that it is about."""

from pathlib import Path

import pytest

from megatron_gad.train import _report
from tests.unit.reporting.synthetic_run import write_run


def test_a_report_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "run", steps=(2, 2, 2))
    (run / "report.html").mkdir()
    _report(run, is_writer=True)
    (warning,) = caplog.messages
    assert warning.startswith(f"{run} gets no new report.html; the run itself is not affected: ")
    assert "IsADirectoryError: [Errno 21] Is a directory" in warning


def test_only_the_writer_reports(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(2, 2, 2))
    _report(run, is_writer=False)
    assert not (run / "report.html").exists()
    _report(run, is_writer=True)
    assert (run / "report.html").is_file()
