"""The page of a run that goes on follows what the run writes, on this machine alone."""

import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_gad.reporting.live import page_server
from megatron_gad.reporting.page import build_report
from tests.unit.reporting.synthetic_run import write_metrics


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The address of a page that is served."""
    write_metrics(tmp_path, "adversarial", [{"student/kl": 0.25}] * 3)
    with page_server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"
        yield f"http://{host}:{port}"
        server.shutdown()


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.read().decode()


def test_the_page_is_drawn_anew_once_the_run_has_written_more(url: str, tmp_path: Path) -> None:
    before, version = read(f"{url}/"), read(f"{url}/version")
    assert f'const version = "{version}"' in before
    assert read(f"{url}/version") == version
    write_metrics(tmp_path, "adversarial", [{"student/kl": 0.25}] * 7)
    assert read(f"{url}/version") != version
    after = read(f"{url}/")
    steps = [re.search(r"(\d+) steps", page) for page in (before, after)]
    assert [each.group(1) for each in steps if each] == ["3", "7"]
    # Beside the page that is written there is the script alone, and no file is touched.
    assert not (tmp_path / "report.html").exists()
    written = build_report(tmp_path).read_text()
    script = after[after.index("<script>\n(() => {\n  const version") : after.rindex("</body>")]
    assert after.replace(script, "") == written


def test_other_paths_are_not_there(url: str) -> None:
    for path in ("metrics.jsonl", "../config.toml", "version/x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/{path}", timeout=60)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    words = ["-m", "megatron_gad", "report", str(tmp_path), "--watch", "--port", "0"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "holds neither metrics.jsonl nor config.toml" in ended.stderr
    assert "Traceback" not in ended.stderr
