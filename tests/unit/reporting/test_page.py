"""The page is one safe file that holds the run, whatever state the run is in."""

import json
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_gad.config.output import LogConfig
from megatron_gad.reporting.page import build_report
from megatron_gad.runtime.metrics import MetricsWriter
from tests.unit.reporting.synthetic_run import write_metrics, write_results, write_run

TOOL = Path(__file__).parents[3] / "tools" / "report_run.py"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects the text of a page and what its tags refer to, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.references: list[str] = []
        self.num_scripts = 0
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.num_scripts += tag == "script"
        self.references += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data.strip())

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def read_page(run: Path) -> tuple[Page, str]:
    path = build_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def pointers(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="pointers">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "robot", steps=(12, 8, 10))
    write_results(run)
    return run, *read_page(run)


def test_the_page_needs_nothing_but_itself(whole_run):
    _, page, text = whole_run
    assert all(reference.startswith("#") for reference in page.references)
    assert page.num_scripts == 2
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp", text)


def test_the_page_holds_the_numbers_of_the_run(whole_run):
    run, _, text = whole_run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rewards = [
        [line["step"], f"{line['reward/mean']:.3g}"] for line in lines if "reward/mean" in line
    ]
    drawn = pointers(text)["Reward, mean and spread"]["lines"][0]["points"]
    assert [point[1:] for point in drawn] == rewards
    assert len(rewards) == 10


def test_the_page_tells_the_story(whole_run):
    _, page, _ = whole_run
    for expected in (
        "robot",
        "30 steps in",
        "seqkd equal compute 57.4 % 25.2 % 17",
        "gad 88.1 % 100.0 % 16.6",
        "warmup steps 13 to 20",
        "Discriminator too strong: its accuracy in the game",
        "Step 30 adversarial 3 prompts",
        "[adversarial] prompts_per_step = 16",
    ):
        assert expected in page.words


def test_the_newest_calibration_is_a_table(tmp_path):
    row = {"pairs_1_to_3": 0.75, "expected_1_to_3": 0.875, "observed_1_to_3": 0.625}
    newest = {f"calibration/{key}": value for key, value in row.items()}
    old = {"calibration/pairs_from_3": 0.5, "calibration/expected_from_3": 0.99}
    folder = write_metrics(tmp_path, "warmup", [old, newest, {"reward/mean": 0.0}])
    page, _ = read_page(folder)
    assert "Held-out pairs at step 2," in page.words
    assert "observed 1 to 3 75.0 % 87.5 % 62.5 %" in page.words
    assert "from 3" not in page.words


def test_text_of_a_run_cannot_become_markup(tmp_path):
    run = tmp_path / "<b>run"
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    write_metrics(run, evil, [{f"{evil}/x": 1.0, "student/loss": 1.0}])
    (run / "config.toml").write_text(f"[student]\npath = '{evil}'\n")
    (run / "results.json").write_text(json.dumps({evil: {evil: 1.0}}))
    writer = MetricsWriter(run, LogConfig(tensorboard=False), is_writer=True)
    rollout = dict.fromkeys(("text", "score", "advantage", "length", "finish_reason"), evil)
    writer.write_samples(1, evil, [{"prompt": evil, "teacher": evil, "rollouts": [rollout]}])
    page, text = read_page(run)
    assert page.num_scripts == 2
    assert "<img" not in text
    assert "<b>run" not in text
    assert page.words.count(evil) >= 8
    assert f"{evil}/x" in pointers(text)


def test_text_of_any_language_survives(tmp_path):
    write_metrics(tmp_path, "adversarial", [{"student/loss": 1.0}])
    writer = MetricsWriter(tmp_path, LogConfig(tensorboard=False), is_writer=True)
    row = {"prompt": "مرحبا 你好 🙂", "teacher": "lone \ud800 surrogate", "rollouts": []}
    writer.write_samples(1, "adversarial", [row])
    page, _ = read_page(tmp_path)
    assert "مرحبا 你好 🙂" in page.words
    assert "lone \N{REPLACEMENT CHARACTER} surrogate" in page.words


def test_unhealthy_numbers_come_with_advice(tmp_path):
    write_metrics(tmp_path, "adversarial", [{"discriminator/accuracy": 0.99}] * 5)
    page, _ = read_page(tmp_path)
    assert "1 to act on" in page.words
    assert re.search(r"act Discriminator too strong.* It has the game won.* 99\.0 %", page.words)


def test_an_interrupted_run_has_a_page(tmp_path):
    write_metrics(tmp_path, "warmup", [{"discriminator/loss": 0.7}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "sta')
    page, text = read_page(tmp_path)
    assert "1 unreadable line(s) of metrics.jsonl were skipped." in page.words
    assert pointers(text)["Discriminator: loss"]["lines"][0]["points"] == [[0.5, 1, "0.7"]]


def test_a_run_before_its_first_step_has_a_page(tmp_path):
    (tmp_path / "config.toml").write_text("seed = 3\n")
    page, _ = read_page(tmp_path)
    assert "No step has been recorded yet." in page.words
    assert "seed = 3" in page.words


def test_rows_without_any_number_have_a_page(tmp_path):
    page, _ = read_page(write_metrics(tmp_path, "seqkd", [{}, {"student/loss": float("nan")}]))
    assert "2 steps in" in page.words
    assert "act Numbers that are nan or infinite" in page.words


def test_the_tool_writes_the_page_and_refuses_other_folders(tmp_path, monkeypatch, capsys):
    run = write_metrics(tmp_path / "run", "seqkd", [{"student/loss": 1.0}])
    monkeypatch.setattr(sys, "argv", ["report_run.py", str(run)])
    runpy.run_path(str(TOOL), run_name="__main__")
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "1 step in" in (run / "report.html").read_text()
    monkeypatch.setattr(sys, "argv", ["report_run.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"holds neither metrics\.jsonl nor config\.toml"):
        runpy.run_path(str(TOOL), run_name="__main__")
