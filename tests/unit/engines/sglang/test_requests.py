"""What is asked of a server, and which of its answers are believed."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from megatron_gad.engines.base import SamplingConfig, request_seed
from megatron_gad.engines.sglang.client import ServerFailed
from megatron_gad.engines.sglang.requests import cached_tokens, make_requests, read_answer
from megatron_gad.types import Prompt

SAMPLING = SamplingConfig(num_samples=2, temperature=0.7, max_new_tokens=4, stop_ids=(3,), seed=9)
ANSWER: dict[str, Any] = {
    "output_ids": [16, 28, 3],
    "meta_info": {
        "finish_reason": {"type": "stop", "matched": 3},
        "output_token_logprobs": [[-0.7, 16, None], [-1.6, 28, None], [-2.5, 3, None]],
        "weight_version": "12",
    },
}


def test_a_response_is_one_request_with_its_own_seed_and_every_setting():
    prompts = [Prompt(4, (), "", (5, 6), ()), Prompt(8, (), "", (7,), ())]
    requests = list(make_requests(prompts, SAMPLING))
    assert [r["input_ids"] for r in requests] == [[5, 6], [5, 6], [7], [7]]
    assert [r["sampling_params"]["sampling_seed"] for r in requests] == [
        request_seed(9, index, sample) for index in (4, 8) for sample in (0, 1)
    ]
    assert len({r["rid"] for r in requests}) == 4
    shared = {k: v for k, v in requests[0]["sampling_params"].items() if k != "sampling_seed"}
    assert shared == {
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": -1,
        "max_new_tokens": 4,
        "stop_token_ids": [3],
        "ignore_eos": False,
    }


def test_an_answer_becomes_a_rollout():
    rollout = read_answer(ANSWER, SAMPLING, version=12)
    assert rollout.ids == (16, 28, 3)
    assert rollout.rollout_logprobs == (-0.7, -1.6, -2.5)
    assert (rollout.finish_reason, rollout.weights_version) == ("stop", 12)


def test_a_stop_id_as_the_last_allowed_token_is_a_stop():
    answer = copy.deepcopy(ANSWER)
    answer["meta_info"]["finish_reason"] = {"type": "length", "length": 3}
    full = replace(SAMPLING, max_new_tokens=3)
    assert read_answer(answer, full, version=12).finish_reason == "stop"
    other = replace(full, stop_ids=(28,))  # sampled before the last token, so not what ended it
    assert read_answer(answer, other, version=12).finish_reason == "length"


def test_a_server_may_say_what_it_had_of_a_prompt():
    assert cached_tokens({"meta_info": {"cached_tokens": 5}}) == 5
    assert cached_tokens(ANSWER) == 0
    assert cached_tokens({"meta_info": None}) == 0


SPOILT = {
    "holds weights_version 11": ("weight_version", "11"),
    "finish reason is 'abort'": ("finish_reason", {"type": "abort"}),
    "broken answer": ("finish_reason", None),
    "2 log-probabilities for 3": ("output_token_logprobs", [[-0.7, 16, None], [-1.6, 28, None]]),
    "log-probabilities that are none": (
        "output_token_logprobs",
        [[float("nan"), 16, None], [-1.6, 28, None], [-2.5, 3, None]],
    ),
}


@pytest.mark.parametrize("message", SPOILT)
def test_an_answer_that_no_working_server_gives_is_a_failure_of_the_server(message):
    key, value = SPOILT[message]
    answer = copy.deepcopy(ANSWER)
    answer["meta_info"][key] = value
    with pytest.raises(ServerFailed, match=message):
        read_answer(answer, SAMPLING, version=12)


def test_an_end_token_that_was_not_asked_for_is_named():
    other = SamplingConfig(max_new_tokens=4, stop_ids=(5,))
    # Sent again it would come with another response, and those that end so would be missing.
    with pytest.raises(ValueError, match="stopped at id 3, which is none of the run's stop ids"):
        read_answer(ANSWER, other, version=12)


def test_more_tokens_than_asked_for_are_a_failure():
    with pytest.raises(ServerFailed, match="3 token ids, asked for 2 at most"):
        read_answer(ANSWER, SamplingConfig(max_new_tokens=2, stop_ids=(3,)), version=12)
