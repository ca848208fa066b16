"""One queue over the servers of several ranks: two engines with a real HTTP server each."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import float32
from torch.distributed import HashStore
from transformers import AutoModelForCausalLM

from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.engines.base import SamplingConfig, request_seed
from megatron_gad.engines.sglang.client import CallRefused
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.sharing import Places, Sharing
from megatron_gad.engines.sglang.site import ServerSite
from megatron_gad.types import Group, Prompt
from tests.answering_server import AnsweringServer, answering_server, sampled_ids
from tests.tiny import make_hf_folder

SAMPLING = SamplingConfig(num_samples=4, max_new_tokens=2, seed=3)
# Requests that a server works on at a time.
PLACES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("student"), "qwen2", 17)


def make_prompts(count: int, first: int = 0) -> list[Prompt]:
    return [Prompt(first + number, (), "", (5, 6 + number), ()) for number in range(count)]


@contextmanager
def engines(
    folder: Path, tmp_path: Path, *servers: AnsweringServer, places: int = PLACES
) -> Iterator[list[SGLangEngine]]:
    """Yield the engines of as many ranks, each at its server, with weights of version 7."""
    sharing = Sharing(HashStore(), len(servers))
    made: list[SGLangEngine] = []
    try:
        for number, server in enumerate(servers):
            config = SGLangConfig(
                urls=(server.url,),
                weight_transport="disk",
                max_running_requests=places,
                verify_interval=0,
            )
            site = ServerSite(folder=tmp_path / f"run{number}", sharing=sharing)
            made.append(SGLangEngine(config, folder, "cpu", float32, site))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=float32)
        for engine in made:
            engine.load_weights(model.named_parameters(), version=7)
        yield made
    finally:
        for engine in made:
            engine.close()


def generate(made: list[SGLangEngine], *prompts: list[Prompt]) -> list[Future[list[Group]]]:
    """Sample on all ranks at once."""
    with ThreadPoolExecutor(len(made)) as pool:
        return [
            pool.submit(engine.generate, own, SAMPLING)
            for engine, own in zip(made, prompts, strict=True)
        ]


def check(groups: list[Group], prompts: list[Prompt]) -> None:
    """Every response is there once, in order, and was sampled with its own seed."""
    assert [group.prompt for group in groups] == prompts
    for group in groups:
        seeds = [request_seed(SAMPLING.seed, group.prompt.index, sample) for sample in range(4)]
        assert [list(rollout.ids) for rollout in group.rollouts] == [*map(sampled_ids, seeds)]
        assert {rollout.weights_version for rollout in group.rollouts} == {7}


def test_the_server_of_a_rank_that_is_done_takes_what_waits_on_another(folder, tmp_path):
    with (
        answering_server() as busy,
        answering_server() as idle,
        engines(folder, tmp_path, busy, idle) as made,
        ThreadPoolExecutor() as pool,
    ):
        # The busy server answers nothing before the other has answered all that waits.
        busy.before = lambda body: idle.wait_until_served(12 - PLACES)
        prompts = make_prompts(3)
        mine = pool.submit(made[0].generate, prompts, SAMPLING)
        assert made[1].generate([], SAMPLING) == []
        # Not before all are answered, since its next step would take the server away.
        assert (len(busy.served), len(idle.served)) == (PLACES, 12 - PLACES)
        check(mine.result(timeout=60), prompts)
        work = made[0].take_work()
        assert (work.tokens, work.prompt_tokens) == (24, 24)


def test_places_are_lent_anew_in_every_sampling_and_to_either_side(folder, tmp_path):
    with (
        answering_server() as first,
        answering_server() as second,
        engines(folder, tmp_path, first, second) as made,
    ):
        for number in range(3):
            prompts = [make_prompts(2 + number, 10), make_prompts(4 - number, 20)]
            for future, own in zip(generate(made, *prompts), prompts, strict=True):
                check(future.result(), own)
        second.before = lambda body: first.wait_until_served(num_served + 8 - PLACES)
        num_served = len(first.served)
        own = make_prompts(2)
        nothing, mine = generate(made, [], own)
        check(mine.result(), own)
        assert nothing.result() == []


def test_requests_come_back_from_a_borrowed_server_that_fails(folder, tmp_path):
    hung_up = threading.Event()

    def hang_up(body: dict[str, Any]) -> bool:
        hung_up.set()
        return False

    with answering_server() as working, answering_server(before=hang_up) as failing:
        working.before = lambda body: hung_up.wait(timeout=60)
        prompts = make_prompts(4)
        with engines(folder, tmp_path, working, failing) as made:
            mine, others = generate(made, prompts, [])
            check(mine.result(), prompts)
            assert others.result() == []
        assert failing.served == []
        assert len(working.served) == 16


def test_others_leave_a_server_that_its_owner_brings_back(folder, tmp_path):
    own = make_prompts(1, first=50)
    visited, told, visitors = threading.Event(), threading.Event(), set[str]()

    def before(body: dict[str, Any]) -> bool:
        """Hold the visitors until they are told to stop; then fail the owner's first request."""
        if tuple(body["input_ids"]) != own[0].ids and not told.is_set():
            visitors.add(body["rid"])
            visited.set()
            return told.wait(timeout=60) and False
        return visited.wait(timeout=60) and told.is_set()

    with (
        answering_server() as working,
        answering_server(before=before) as failing,
        engines(folder, tmp_path, working, failing, places=8) as made,
    ):
        usual = failing.answer

        def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            if path == "/abort_request" and body["rid"] in visitors:
                told.set()
            # A server refuses to empty its cache while it has requests.
            is_refused = path == "/flush_cache" and not told.is_set()
            return (400, {}) if is_refused else usual(path, body)

        failing.answer = answer
        working.before = lambda body: told.wait(timeout=60)
        prompts = make_prompts(4)
        mine, others = generate(made, prompts, own)
        check(mine.result(), prompts)
        check(others.result(), own)
        rids = {body["rid"] for body in working.served}
        assert not rids & set(failing.aborted)  # what was stopped has another id elsewhere
        assert failing.aborted


def test_answers_from_other_weights_of_a_borrowed_server_are_not_used(folder, tmp_path):
    asked = threading.Event()

    def tell(body: dict[str, Any]) -> bool:
        asked.set()
        return True

    stale = answering_server(version="6", takes_versions=False, before=tell)
    with answering_server() as current, stale as old:
        current.before = lambda body: asked.wait(timeout=60)
        prompts = make_prompts(3)
        with engines(folder, tmp_path, current, old) as made:
            mine, _ = generate(made, prompts, [])
            check(mine.result(), prompts)
        assert old.served
        assert len(current.served) == 12


def test_a_rank_that_gives_up_ends_the_others_that_wait_for_it(folder, tmp_path):
    with answering_server() as working, answering_server() as refusing:
        refusing.answer = refuse_to_generate(refusing)
        with engines(folder, tmp_path, working, refusing) as made:
            mine, others = generate(made, [], make_prompts(1))
            with pytest.raises(CallRefused, match="answers 400"):
                others.result()
            with pytest.raises(RuntimeError, match=r"failed on another rank: .*answers 400"):
                mine.result()


def refuse_to_generate(server: AnsweringServer):
    usual = server.answer

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return (400, {}) if path == "/generate" else usual(path, body)

    return answer


def test_places_go_to_those_that_asked_first_and_none_goes_twice():
    sharing = Sharing(HashStore(), 3)
    one, two, three = (Places(sharing, "step 1") for _ in range(3))
    later = Places(sharing, "step 2")
    assert list(two.borrow(1)) == []
    assert list(one.borrow(2)) == []
    three.lend("http://a:1")
    three.lend("http://b:2", 5)
    three.lend("http://a:1", 0)  # is no place
    assert list(later.borrow(8)) == []
    assert list(one.borrow(2)) == [("http://b:2", 5)]
    assert list(two.borrow(1)) == [("http://a:1", 1)]
    three.lend("http://c:3")
    assert list(one.borrow(0)) == [("http://c:3", 1)]  # it had asked for two
    assert not one.is_withdrawn("http://b:2")
    three.withdraw("http://b:2")
    assert one.is_withdrawn("http://b:2") and not one.is_withdrawn("http://a:1")
    for number, places in enumerate((one, two, three)):
        assert places.have_all_finished() == (number == 3)
        places.finish()
    assert one.have_all_finished() and not later.have_all_finished()
