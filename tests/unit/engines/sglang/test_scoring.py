"""A teacher behind a server, as far as its answers go. A real one: tests/engines/sglang."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from megatron_gad.engines.sglang.client import ServerFailed
from megatron_gad.engines.sglang.scoring import TeacherServer, read_logprobs
from tests.loopback_server import Request, loopback_server
from tests.tiny_tokenizer import make_tokenizer

Answer = Callable[[Request], tuple[int, Any] | None]


def scores(request: Request) -> tuple[int, Any]:
    """Answer as SGLang does: nothing for the first id, then minus a tenth of each id."""
    ids = request.body["input_ids"][request.body["logprob_start_len"] :]
    entries = [[None, ids[0], None], *([-0.1 * token, token, None] for token in ids[1:])]
    return 200, {"meta_info": {"input_token_logprobs": entries}}


def test_every_response_token_has_its_own_number() -> None:
    asked: list[Any] = []

    def answer(request: Request) -> tuple[int, Any]:
        asked.append(request.body)
        return scores(request)

    with loopback_server(answer) as url:
        rows = [([9, 8, 5, 6, 7], 2), ([9, 1], 1), ([4, 4], 2)]
        found = TeacherServer(url, 10.0).logprobs(rows)
    assert found == [pytest.approx([-0.5, -0.6, -0.7]), pytest.approx([-0.1]), []]
    first = next(body for body in asked if len(body["input_ids"]) == 5)
    assert first["sampling_params"] == {"temperature": 1.0, "max_new_tokens": 0}
    assert first["return_logprob"] and len(asked) == 2


def test_a_failure_is_tried_again_and_not_for_ever() -> None:
    calls = 0

    def failing(request: Request, last: int) -> tuple[int, Any] | None:
        nonlocal calls
        calls += 1
        return None if calls <= last else scores(request)

    with loopback_server(lambda request: failing(request, 2)) as url:
        assert TeacherServer(url, 10.0).logprobs([([9, 1], 1)]) == [pytest.approx([-0.1])]
    assert calls == 3
    calls = 0
    with loopback_server(lambda request: failing(request, 3)) as url, pytest.raises(ServerFailed):
        TeacherServer(url, 10.0).logprobs([([9, 1], 1)])
    assert calls == 3


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([[None, 9, None], [-0.5, 6, None]], "1 other ids than the 1 sent"),
        ([[None, 9, None]], "0 other ids"),
        ([[None, 9, None], [0.5, 5, None]], "positive or not finite"),
        ([[None, 9, None], [float("nan"), 5, None]], "positive or not finite"),
        ([[None, 9, None], [None, 5, None]], "broken answer"),
        (None, "broken answer"),
    ],
)
def test_an_answer_that_cannot_be_of_the_ids_is_refused(entries: Any, message: str) -> None:
    with pytest.raises(ServerFailed, match=message):
        read_logprobs({"meta_info": {"input_token_logprobs": entries}}, [5])


def tokenizer_server(tokenizer: Any, swapped: tuple[int, int] = (0, 0)) -> Answer:
    """Answer as a server with this tokenizer, in which two ids have changed places."""
    other = {swapped[0]: swapped[1], swapped[1]: swapped[0]}

    def answer(request: Request) -> tuple[int, Any]:
        if request.path == "/tokenize":
            ids = tokenizer(request.body["prompt"], add_special_tokens=False)["input_ids"]
            return 200, {"tokens": [other.get(each, each) for each in ids]}
        rows = [[other.get(token, token) for token in row] for row in request.body["tokens"]]
        return 200, {"text": [tokenizer.decode(row) for row in rows]}

    return answer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_an_equal_tokenizer_is_equal(tokenizer: Any) -> None:
    with loopback_server(tokenizer_server(tokenizer)) as url:
        assert TeacherServer(url, 10.0).find_difference(tokenizer) == ""


def test_other_ids_of_a_text_and_of_no_text_are_found(tokenizer: Any) -> None:
    in_text = tokenizer("The", add_special_tokens=False)["input_ids"][0]
    vocab = tokenizer.get_vocab()
    nowhere = vocab["\u0135"], vocab["\u0136"]  # bytes that no compared text has
    with loopback_server(tokenizer_server(tokenizer, (in_text, nowhere[0]))) as url:
        assert "other ids of the text" in TeacherServer(url, 10.0).find_difference(tokenizer)
    last = max(vocab.values())
    with loopback_server(tokenizer_server(tokenizer, (nowhere[0], last))) as url:
        assert "id " in TeacherServer(url, 10.0).find_difference(tokenizer)


def test_a_server_without_a_tokenizer_is_refused(tokenizer: Any) -> None:
    with (
        loopback_server(lambda request: (500, {"message": "no tokenizer"})) as url,
        pytest.raises(ValueError, match="start it without --skip-tokenizer-init"),
    ):
        TeacherServer(url, 10.0).find_difference(tokenizer)
