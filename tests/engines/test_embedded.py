"""The embedded engine against plain transformers, and what its seeds promise."""

import inspect
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from megatron_gad.engines.base import EngineWork, SamplingConfig, request_seed
from megatron_gad.engines.decoding import decode
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.engines.kv_cache import BLOCK_TOKENS
from megatron_gad.engines.paged_attention import ATTENTION
from megatron_gad.engines.scheduling import Request
from megatron_gad.types import Group, Prompt, Rollout
from tests.tiny import make_hf_folder

VOCAB_SIZE = 17
STOP = (3, 4)


def make_prompts(lengths: list[int], seed: int = 0) -> list[Prompt]:
    """Return a prompt of random tokens per length, with indices that are not their positions."""
    rng = random.Random(seed)
    return [
        Prompt(100 + 7 * number, (), "", tuple(rng.randrange(5, VOCAB_SIZE) for _ in range(n)), ())
        for number, n in enumerate(lengths)
    ]


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def awake_engine(
    folder: Path, max_total_tokens: int = 262_144, dtype: torch.dtype = torch.float32
) -> EmbeddedEngine:
    engine = EmbeddedEngine(folder, "cpu", dtype, max_total_tokens)
    engine.load_weights(weights_of(folder), version=1)
    return engine


def weights_of(folder: Path) -> Iterable[tuple[str, Tensor]]:
    """Return the tensors of a folder as they are in its file."""
    return load_file(folder / "model.safetensors").items()


@torch.no_grad()
def reference_logits(model: PreTrainedModel, prompt: Prompt, rollout: Rollout) -> Tensor:
    """Return the logits of every response token, [T, V], from one forward without a cache."""
    ids = torch.tensor([prompt.ids + rollout.ids])
    return model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1].float()


def rows_of(groups: list[Group]) -> Iterator[tuple[Prompt, int, Rollout]]:
    for group in groups:
        for sample, rollout in enumerate(group.rollouts):
            yield group.prompt, sample, rollout


def responses_by_index(groups: list[Group]) -> dict[int, list[tuple[int, ...]]]:
    return {group.prompt.index: [r.ids for r in group.rollouts] for group in groups}


# The name that the installed transformers has for it.
IS_NEW = "cache" in inspect.signature(LlamaForCausalLM.forward).parameters
CACHE = "cache" if IS_NEW else "past_key_values"


class TakesCache(LlamaForCausalLM):
    """A model of a release of transformers that knows the new name only."""

    def forward(self, input_ids, *, attention_mask, position_ids, cache, use_cache, **rest):
        assert set(rest) <= {"logits_to_keep"}
        rest |= {"attention_mask": attention_mask, "position_ids": position_ids, CACHE: cache}
        return super().forward(input_ids, use_cache=use_cache, **rest)


class TakesPastKeyValues(LlamaForCausalLM):
    """A model of a release of transformers that knows the old name only."""

    def forward(
        self, input_ids, *, attention_mask, position_ids, past_key_values, use_cache, **rest
    ):
        assert set(rest) <= {"logits_to_keep"}
        rest |= {"attention_mask": attention_mask, "position_ids": position_ids}
        return super().forward(input_ids, use_cache=use_cache, **rest, **{CACHE: past_key_values})


class LoadedModule(EmbeddedEngine):
    """An engine that keeps the ids of every forward pass, [rows, tokens]."""

    def __init__(self, folder: Path, max_total_tokens: int) -> None:
        super().__init__(folder, "cpu", torch.float32, max_total_tokens)
        self.load_weights(weights_of(folder), version=1)
        self.seen: list[Tensor] = []
        self._model.model.embed_tokens.register_forward_pre_hook(
            lambda _, arguments: self.seen.append(arguments[0])
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("qwen2"), "qwen2", VOCAB_SIZE, tie=True)


@pytest.fixture(scope="module")
def engine(folder) -> EmbeddedEngine:
    return awake_engine(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("lengths", [[6, 6, 6], [9, 1, 4, 9]], ids=["equal", "ragged"])
def test_rollout_logprobs_equal_a_plain_forward(tmp_path, family, lengths):
    folder = make_hf_folder(tmp_path, family, VOCAB_SIZE)
    sampling = SamplingConfig(num_samples=5, temperature=0.8, max_new_tokens=20, stop_ids=STOP)
    groups = awake_engine(folder).generate(make_prompts(lengths), sampling)
    assert [len(group.rollouts) for group in groups] == [5] * len(lengths)
    assert len({len(r.ids) for _, _, r in rows_of(groups)}) >= 3  # rows leave the batch early
    model = load_reference(folder)
    for prompt, _, rollout in rows_of(groups):
        logprobs = torch.log_softmax(reference_logits(model, prompt, rollout) / 0.8, dim=-1)
        expected = logprobs.gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]
        actual = torch.tensor(rollout.rollout_logprobs)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_every_token_is_the_one_that_its_uniform_number_points_at(folder, engine):
    sampling = SamplingConfig(num_samples=6, temperature=1.3, max_new_tokens=15, seed=11)
    model = load_reference(folder)
    for prompt, sample, rollout in rows_of(engine.generate(make_prompts([4, 7, 7]), sampling)):
        philox = np.random.Philox(key=request_seed(11, prompt.index, sample))
        uniforms = np.random.Generator(philox).random(15)
        logits = reference_logits(model, prompt, rollout).double().numpy() / 1.3
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
        assert rollout.ids == tuple((cumulative < uniforms[:, None]).sum(axis=1).tolist())


def test_sampled_tokens_follow_the_softmax(folder, engine):
    prompt = make_prompts([5])[0]
    num_samples = 5000
    groups = engine.generate([prompt], SamplingConfig(num_samples=num_samples, max_new_tokens=1))
    counts = np.bincount([r.ids[0] for r in groups[0].rollouts], minlength=VOCAB_SIZE)
    logits = reference_logits(load_reference(folder), prompt, groups[0].rollouts[0])
    expected = torch.softmax(logits[0].double(), dim=-1).numpy() * num_samples
    assert expected.min() > 5
    # The 0.999 quantile of chi-square with 16 degrees of freedom is 39.3.
    assert ((counts - expected) ** 2 / expected).sum() < 39.3


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_temperature_zero_equals_greedy_generation_of_transformers(tmp_path, family):
    folder = make_hf_folder(tmp_path, family, VOCAB_SIZE, seed=3)
    prompts = make_prompts([3, 8, 8, 5])
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=30, stop_ids=STOP)
    model: Any = load_reference(folder)
    for prompt, _, rollout in rows_of(awake_engine(folder).generate(prompts, sampling)):
        ids = torch.tensor([prompt.ids])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=list(STOP),
        )
        assert rollout.ids == tuple(expected[0, len(prompt.ids) :].tolist())
        logits = reference_logits(model, prompt, rollout)
        expected_logprobs = torch.log_softmax(logits, dim=-1).amax(dim=-1)
        actual = torch.tensor(rollout.rollout_logprobs)
        torch.testing.assert_close(actual, expected_logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_class", [TakesCache, TakesPastKeyValues])
def test_models_of_older_and_newer_transformers_are_given_their_cache(tmp_path, model_class):
    folder = make_hf_folder(tmp_path, "llama", VOCAB_SIZE)
    model = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=ATTENTION
    ).eval()
    prompts = make_prompts([3, 6])
    requests = [Request(prompt.ids, seed=0) for prompt in prompts]
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=12)
    expected = awake_engine(folder).generate(prompts, sampling)
    texts = [response.ids for response in decode(model, requests, sampling, 4096)[0]]
    assert texts == [rollout.ids for _, _, rollout in rows_of(expected)]


# Blocks of the pool: room for one row, for two or three, and for most; rows take up to 4 each.
@pytest.mark.parametrize("num_blocks", [5, 8, 30])
def test_the_room_for_tokens_does_not_change_the_text(folder, num_blocks):
    prompts = make_prompts([4, 70, 4, 2, 7])
    sampling = SamplingConfig(num_samples=4, max_new_tokens=3 * BLOCK_TOKENS - 10, stop_ids=(3,))
    expected = awake_engine(folder).generate(prompts, sampling)
    assert {len(r.ids) // BLOCK_TOKENS for _, _, r in rows_of(expected)} == {0, 1, 2}
    tight = awake_engine(folder, num_blocks * BLOCK_TOKENS).generate(prompts, sampling)
    assert responses_by_index(tight) == responses_by_index(expected)
    for (_, _, one), (_, _, other) in zip(rows_of(tight), rows_of(expected), strict=True):
        assert one.rollout_logprobs == pytest.approx(other.rollout_logprobs, abs=1e-5)
        assert one.finish_reason == other.finish_reason


def test_rows_that_have_ended_make_room_at_once_and_a_prompt_is_read_once(folder):
    engine = LoadedModule(folder, 13 * BLOCK_TOKENS)
    prompts = make_prompts([5] * 6)
    sampling = SamplingConfig(num_samples=8, max_new_tokens=BLOCK_TOKENS, stop_ids=STOP)
    groups = engine.generate(prompts, sampling)
    prompt_passes = [ids for ids in engine.seen if ids.shape[1] > 1]
    assert sum(len(ids) for ids in prompt_passes) == 6
    steps = [len(ids) for ids in engine.seen if ids.shape[1] == 1]
    # The last token of a response is never read.
    assert sum(steps) == sum(len(r.ids) - 1 for _, _, r in rows_of(groups))
    # 11 or 12 blocks hold responses, of which 48 run. In batches of 12, each as long as its
    # longest, they would take this many steps; with room taken at once, the sum over places.
    lengths = [len(r.ids) - 1 for _, _, r in rows_of(groups)]
    batched = sum(max(lengths[i : i + 12]) for i in range(0, 48, 12))
    assert len(steps) < 0.8 * batched
    work = engine.take_work()
    assert work.tokens == sum(len(r.ids) for _, _, r in rows_of(groups))
    assert (work.running, work.moments) == (sum(steps), len(steps))
    assert 0 < work.waiting < 48 * len(steps)
    assert (work.prompt_tokens, work.cached_tokens) == (48 * 5, 42 * 5)
    assert work.sums()["engine/cache_hit_share"] == (42 * 5, 48 * 5)
    assert work.seconds > 0
    assert engine.take_work() == EngineWork()
    assert max(steps) <= 12


def test_order_and_other_prompts_do_not_change_the_text(engine):
    prompts = make_prompts([4, 9, 4, 2, 7])
    sampling = SamplingConfig(num_samples=3, max_new_tokens=16, stop_ids=STOP)
    expected = responses_by_index(engine.generate(prompts, sampling))
    assert list(expected) == [prompt.index for prompt in prompts]
    shuffled = engine.generate(prompts[::-1], sampling)
    assert [group.prompt for group in shuffled] == prompts[::-1]
    assert responses_by_index(shuffled) == expected
    for prompt in prompts:
        alone = responses_by_index(engine.generate([prompt], sampling))
        assert alone[prompt.index] == expected[prompt.index]


def test_fewer_samples_and_a_lower_cap_give_the_beginnings(engine):
    prompts = make_prompts([4, 6])
    many = responses_by_index(
        engine.generate(prompts, SamplingConfig(num_samples=6, max_new_tokens=20))
    )
    few = responses_by_index(
        engine.generate(prompts, SamplingConfig(num_samples=2, max_new_tokens=8))
    )
    assert few == {index: [ids[:8] for ids in rows[:2]] for index, rows in many.items()}


def test_samples_differ_and_repeat_with_the_seed(engine):
    prompts = make_prompts([5, 5])
    twin = Prompt(999, (), "", prompts[0].ids, ())
    sampling = SamplingConfig(num_samples=8, max_new_tokens=12, seed=5)
    first = responses_by_index(engine.generate([*prompts, twin], sampling))
    texts = [ids for rows in first.values() for ids in rows]
    assert len(set(texts)) == 24
    assert responses_by_index(engine.generate([*prompts, twin], sampling)) == first
    other_seed = SamplingConfig(num_samples=8, max_new_tokens=12, seed=6)
    others = responses_by_index(engine.generate(prompts, other_seed))
    assert not {ids for rows in others.values() for ids in rows} & set(texts)


def test_the_stop_id_is_kept_as_the_last_and_the_cap_cuts_without_one(engine):
    sampling = SamplingConfig(num_samples=40, max_new_tokens=9, stop_ids=STOP)
    rollouts = [r for _, _, r in rows_of(engine.generate(make_prompts([3, 5]), sampling))]
    for rollout in rollouts:
        assert len(rollout.ids) == len(rollout.rollout_logprobs) <= 9
        assert not set(rollout.ids[:-1]) & set(STOP)
        assert (rollout.finish_reason == "stop") == (rollout.ids[-1] in STOP)
        assert rollout.finish_reason == "stop" or len(rollout.ids) == 9
    assert {r.ids[-1] for r in rollouts if r.finish_reason == "stop"} == set(STOP)
    assert "length" in {r.finish_reason for r in rollouts}


def test_without_stop_ids_every_response_has_the_full_length(engine):
    groups = engine.generate(make_prompts([3, 5]), SamplingConfig(max_new_tokens=7))
    assert [(len(r.ids), r.finish_reason) for _, _, r in rows_of(groups)] == [(7, "length")] * 2


def test_prompts_beyond_one_forward_pass_and_responses_beyond_one_block_stay_exact(tmp_path):
    folder = make_hf_folder(tmp_path, "qwen2", VOCAB_SIZE, max_position_embeddings=512)
    engine = awake_engine(folder)
    model = load_reference(folder)
    prompts = make_prompts([60] * 150 + [64] * 150)  # 18600 tokens, more than one pass takes
    groups = engine.generate(prompts, SamplingConfig(max_new_tokens=2))
    for prompt, _, rollout in rows_of(groups[::10]):
        logprobs = torch.log_softmax(reference_logits(model, prompt, rollout), dim=-1)
        expected = logprobs.gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]
        assert rollout.rollout_logprobs == pytest.approx(expected.tolist(), abs=1e-5)
    long = engine.generate(prompts[148:152], SamplingConfig(max_new_tokens=290))
    for prompt, _, rollout in rows_of(long):
        logprobs = torch.log_softmax(reference_logits(model, prompt, rollout), dim=-1)
        expected = logprobs.gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]
        assert rollout.rollout_logprobs == pytest.approx(expected.tolist(), abs=2e-5)


def test_bfloat16_logprobs_are_near_a_plain_bfloat16_forward(folder):
    engine = awake_engine(folder, dtype=torch.bfloat16)
    model = load_reference(folder, torch.bfloat16)
    sampling = SamplingConfig(num_samples=6, max_new_tokens=12, stop_ids=STOP)
    for prompt, _, rollout in rows_of(engine.generate(make_prompts([4, 9, 6]), sampling)):
        logprobs = torch.log_softmax(reference_logits(model, prompt, rollout), dim=-1)
        expected = logprobs.gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]
        assert rollout.rollout_logprobs == pytest.approx(expected.tolist(), abs=0.05)


def test_new_weights_replace_the_old_and_their_version_is_on_every_rollout(tmp_path):
    old = make_hf_folder(tmp_path / "old", "qwen3", VOCAB_SIZE, seed=0)
    new = make_hf_folder(tmp_path / "new", "qwen3", VOCAB_SIZE, seed=1)
    prompts, sampling = make_prompts([4, 6]), SamplingConfig(num_samples=3, max_new_tokens=10)
    engine = awake_engine(old)
    before = engine.generate(prompts, sampling)
    engine.load_weights(load_reference(new).named_parameters(), version=8)
    after = engine.generate(prompts, sampling)
    assert {r.weights_version for _, _, r in rows_of(before)} == {1}
    assert {r.weights_version for _, _, r in rows_of(after)} == {8}
    assert responses_by_index(after) == responses_by_index(
        awake_engine(new).generate(prompts, sampling)
    )
    assert responses_by_index(after) != responses_by_index(before)


def test_an_engine_that_slept_gives_the_same_text_after_loading(folder):
    engine = awake_engine(folder)
    prompts, sampling = make_prompts([4, 6]), SamplingConfig(num_samples=3, max_new_tokens=10)
    before = engine.generate(prompts, sampling)
    engine.sleep()
    with pytest.raises(RuntimeError, match="call load_weights before generate"):
        engine.generate(prompts, sampling)
    engine.load_weights(load_reference(folder).named_parameters(), version=1)
    assert engine.generate(prompts, sampling) == before
    engine.close()


def test_after_refused_weights_nothing_can_be_generated(folder):
    engine = awake_engine(folder)
    incomplete = list(load_reference(folder).named_parameters())[:-1]
    with pytest.raises(ValueError, match=r"model\.norm\.weight is missing"):
        engine.load_weights(incomplete, version=2)
    with pytest.raises(RuntimeError, match="call load_weights"):
        engine.generate(make_prompts([3]), SamplingConfig())


def test_bad_requests_are_named(folder, engine):
    empty = Prompt(41, (), "", (), ())
    with pytest.raises(ValueError, match="prompt 41 has no token ids"):
        engine.generate([*make_prompts([3]), empty], SamplingConfig())
    with pytest.raises(ValueError, match=r"stop_ids = \[17, -1\] are not ids of this model"):
        engine.generate(make_prompts([3]), SamplingConfig(stop_ids=(17, 3, -1)))
    small = awake_engine(folder, 2 * BLOCK_TOKENS)
    with pytest.raises(ValueError, match=r"max_total_tokens = 128 has no room .*at least 192"):
        small.generate(make_prompts([3, BLOCK_TOKENS + 1]), SamplingConfig(max_new_tokens=4))
    assert engine.generate([], SamplingConfig()) == []
