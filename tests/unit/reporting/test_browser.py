"""The page in a real browser: it works, fits every width, and nothing of a run runs in it."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.config.output import LogConfig
from megatron_gad.reporting.comparison import build_comparison
from megatron_gad.reporting.page import build_report
from megatron_gad.runtime.metrics import MetricsWriter
from tests.unit.reporting.synthetic_run import write_results, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

HOSTILE = (
    "</script><script>document.title = 'taken'</script>"
    "<img src=x onerror=\"document.title = 'taken'\">"
    " line\u2028separator \u202eright to left\u202c <b>bold</b> {{ 7 * 7 }} ${1} &lt;"
)
LONG_WORD = "w" * 3000


def write_hostile_run(folder: Path) -> Path:
    """Write a run, and an evaluation, whose texts try to be more than text."""
    run = write_run(folder / HOSTILE.replace("/", "-")[:60], steps=(6, 4, 5))
    write_results(run)
    writer = MetricsWriter(run, LogConfig(tensorboard=False), is_writer=True)
    numbers = {"score": 1.0, "advantage": 0.5, "length": 9, "finish_reason": HOSTILE}
    texts = ("needle in the hay", HOSTILE, LONG_WORD)
    rollouts = [{"text": text, **numbers} for text in texts]
    row = {"prompt": HOSTILE, "teacher": HOSTILE, "teacher_score": 2.0, "rollouts": rollouts}
    other = {"prompt": "another prompt", "teacher": "its answer", "rollouts": []}
    # Tokens of a text that tries to be more than text, of every colour, and an end token.
    values = [(number - 5) / 5 for number in range(11)]
    cut = [HOSTILE[number * 15 : (number + 1) * 15] for number in range(10)] + [HOSTILE[150:]]
    tokens = [*([*each] for each in zip(cut, values, strict=True)), [None, -0.5]]
    coloured = {"text": HOSTILE, **numbers, "tokens": tokens}
    read = {"prompt": "read by token", "teacher": "its answer", "rollouts": [coloured]}
    read["teacher_tokens"] = [["its", 1.0], [" answer", -1.0], [None, 0.25]]
    writer.write_samples(12, "adversarial", [row, other, read])
    (run / "verdict").mkdir()
    share = {"mean": 0.5, "low": 0.25, "high": 0.75, "count": 9}
    means = {"win": share, "auc_text": share}
    student = {"means": means, "numbers": {}, "flags": [HOSTILE]}
    names = ("seqkd", HOSTILE, "gad", "(teacher)")
    difference = {**share, "measure": "win", "student": HOSTILE, "baseline": "seqkd"}
    results = {
        "num_prompts": 9,
        "against": "teacher",
        "students": dict.fromkeys(names, student),
        "differences": [{**difference, "is_within_noise": False}],
        "arms": {},
        "judge": {},
    }
    (run / "verdict/evaluation.json").write_text(json.dumps(results))
    answers = {"seqkd": [HOSTILE], HOSTILE: [LONG_WORD], "gad": ["a pin"]}
    rows = [{"prompt": HOSTILE, "teacher": [HOSTILE], "students": answers}]
    rows += [{"prompt": "easy", "teacher": [], "students": {"gad": ["a needle"]}}]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (run / "verdict/answers.jsonl").write_text("".join(lines))
    return run


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the hostile run."""
    return build_report(write_hostile_run(tmp_path_factory.mktemp("runs"))).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox"]  # root has none, as in a container
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def messages() -> list[str]:
    """What the browser complains about."""
    return []


@pytest.fixture
def page(browser: Any, url: str, messages: list[str]) -> Iterator[Any]:
    """The page, opened; at its end nothing may have been complained about."""
    tab = browser.new_page(viewport={"width": 1300, "height": 900})
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("requestfailed", lambda request: messages.append(request.url))
    tab.goto(url)
    yield tab
    tab.close()
    assert messages == []


def visible(page: Any, selector: str) -> list[str]:
    """Return the texts of what can be seen of a selector."""
    found = page.locator(selector).all()
    return [each.text_content() for each in found if each.is_visible()]


def test_hostile_text_stays_text(page: Any) -> None:
    assert page.title().endswith("GAD run")
    assert page.evaluate("document.images.length") == 0
    assert page.evaluate("document.scripts.length") == 2
    # As written, in prompt, teacher's text, rollout and answers.
    texts = page.evaluate("[...document.querySelectorAll('.text')].map(e => e.textContent)")
    assert texts.count(HOSTILE) == 7
    assert page.evaluate("document.querySelectorAll('.text *:not(i[title])').length") == 0
    assert page.evaluate("document.querySelectorAll('.text i *').length") == 0
    assert page.locator("#evaluation thead th").nth(2).text_content() == HOSTILE


def test_samples_are_searched_and_chosen_by_step(page: Any) -> None:
    search, step = page.locator("#samples input"), page.locator("#samples select")
    total = page.locator("#samples .prompt").count()
    output = page.locator("#samples output")
    assert output.text_content() == f"{total} of {total} prompts"
    search.fill("NEEDLE in")
    assert output.text_content() == f"1 of {total} prompts"
    assert visible(page, "#samples .prompt .label.teacher") == ["Teacher"]
    assert "needle in the hay" in visible(page, "#samples .rollout .text")
    search.fill("")
    step.select_option("12")
    assert output.text_content() == f"3 of {total} prompts"
    assert "another prompt" in visible(page, "#samples .prompt > .text")
    search.fill("no such words")
    assert output.text_content() == f"0 of {total} prompts"
    assert visible(page, "#samples .prompt") == []
    step.select_option("")
    search.fill("")
    assert output.text_content() == f"{total} of {total} prompts"


def test_answers_of_students_stand_side_by_side_and_are_searched(page: Any) -> None:
    answers = page.locator("#evaluation .browser")
    answers.locator("summary").click()
    labels = visible(page, "#evaluation .prompt:has-text('a pin') .answers .label")
    assert labels == ["teacher", "seqkd", HOSTILE, "gad"]
    columns = answers.locator(".answers").first.locator("> div").all()
    tops = [column.bounding_box()["y"] for column in columns]
    assert len(set(tops)) == 1
    answers.locator("input").fill("a needle")
    assert visible(page, "#evaluation .prompt > .text") == ["easy"]


def assert_fits(page: Any, width: int) -> None:
    """Say that nothing scrolls sideways but what does so within a box of its own."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Nor is anything cut off.
    beyond = page.evaluate(
        """width => [...document.querySelectorAll('body *')]
            .filter(each => !each.closest('.scroll, pre, .text, svg'))
            .filter(each => each.getBoundingClientRect().right > width)
            .map(each => each.outerHTML.slice(0, 80))""",
        width,
    )
    assert beyond == []


@pytest.mark.parametrize("width", [400, 1300])
def test_no_width_scrolls_sideways(page: Any, width: int) -> None:
    assert_fits(page, width)


def test_a_comparison_of_hostile_runs_fits_every_width(page: Any, tmp_path: Path) -> None:
    folders = [write_hostile_run(tmp_path / name) for name in ("a" * 60, "b" * 60)]
    page.goto(build_comparison(folders).as_uri())
    assert page.evaluate("document.scripts.length") == 2
    assert folders[0].name in page.locator("#finals thead th").nth(1).text_content()
    for width in (400, 1300):
        assert_fits(page, width)
    # The first column leaves room for the numbers of a run.
    page.set_viewport_size({"width": 400, "height": 900})
    name = page.locator("#finals tbody th").first.bounding_box()
    assert name["width"] < 180


def luminance(color: str) -> float:
    """Return the mean of red, green and blue of "rgb(...)"."""
    return sum(map(float, color[4:-1].split(","))) / 3


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the contrast of two colours as WCAG 2.1 defines it; 4.5 is what text needs."""
    weights = (0.2126, 0.7152, 0.0722)
    lights = []
    for color in (first, second):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        lights.append(sum(w * c for w, c in zip(weights, linear, strict=True)) + 0.05)
    return max(lights) / min(lights)


def channels(color: str) -> list[float]:
    """Return red, green, blue and, if it is there, the opacity of a computed colour, 0 to 1."""
    *rgb, alpha = [*map(float, color.partition("(")[2].rstrip(")").split(",")), 1.0][:4]
    return [*(each / 255 for each in rgb), alpha]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_can_be_read_on_every_colour(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    prompt = page.locator("#samples .prompt:has-text('read by token')")
    style = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    under = channels(prompt.locator(".rollout .text").evaluate(style)[0])[:3]
    marked = prompt.locator(".rollout .text i").all()
    values = [each.get_attribute("title") for each in marked]
    sizes = ("1", "0.8", "0.6", "0.4", "0.2")
    assert values == [*(f"-{x}" for x in sizes), "+0", *(f"+{x}" for x in sizes[::-1]), "-0.5"]
    seen = []
    for each in marked:
        background, text = map(channels, each.evaluate(style))
        *over, alpha = background
        mixed = [alpha * a + (1 - alpha) * b for a, b in zip(over, under, strict=True)]
        seen.append(tuple(mixed))
        assert contrast(mixed, text[:3]) > 4.5
    # Each value has a colour of its own, bluer the higher it is; zero has none.
    assert len(set(seen[:11])) == 11
    blues = [blue - red for red, _, blue in seen[:11]]
    assert blues == sorted(blues)
    assert seen[5] == tuple(under)
    ends = prompt.locator(".scale").text_content().split()
    assert ends == ["-1", "+1"]
    # The end token is told in words.
    end = prompt.locator(".rollout .text i.end")
    assert "end" in end.evaluate("e => getComputedStyle(e, '::after').content")


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_scheme_of_the_reader(page: Any, scheme: str, is_dark: bool) -> None:
    page.emulate_media(color_scheme=scheme)
    styles = "(e => { const s = getComputedStyle(e); return [s.backgroundColor, s.color] })"
    background, text = page.evaluate(f"{styles}(document.body)")
    assert (luminance(background) < luminance(text)) == is_dark
    assert abs(luminance(background) - luminance(text)) > 150
    card, text = page.evaluate(f"{styles}(document.querySelector('.card'))")
    assert abs(luminance(card) - luminance(text)) > 150
    # The drawings follow, too.
    path = "getComputedStyle(document.querySelector('.plot path[style*=student]')).stroke"
    assert (luminance(page.evaluate(path)) > 150) == is_dark


def test_the_pointer_shows_the_numbers_of_a_step(page: Any, url: str) -> None:
    plot = page.locator("figure[data-chart='KL to the reference'] .plot")
    plot.scroll_into_view_if_needed()
    plot.hover()
    tip = plot.locator(".tip")
    assert tip.is_visible()
    assert "step 13" in tip.text_content()  # the middle of steps 11 to 15
    page.mouse.move(0, 0)
    assert not tip.is_visible()
