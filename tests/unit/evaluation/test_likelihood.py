"""The likelihood of a text against plain transformers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_gad.evaluation.likelihood import Likelihood, likelihoods, per_unit
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer

QUESTION = [{"role": "user", "content": "Where is Paris?"}]


@pytest.mark.parametrize("tie", [False, True])
def test_the_likelihood_of_a_response_is_that_of_transformers(tmp_path: Path, tie: bool) -> None:
    make_hf_folder(tmp_path, vocab_size=384, tie=tie)
    make_tokenizer(tmp_path)
    texts = ["In France, on the Seine.", "élan"]
    found = likelihoods(tmp_path, [QUESTION] * 2, texts)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for text, each in zip(texts, found, strict=True):
        rendered = tokenizer.apply_chat_template(
            QUESTION, tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        response = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([prompt + response])
        labels = torch.tensor([[-100] * len(prompt) + response])
        mean = model(input_ids=ids, labels=labels).loss.item()
        assert each.nats == pytest.approx(mean * len(response), rel=1e-5)
        assert each.num_tokens == len(response)
        assert each.num_bytes == len(text.encode())


def test_a_response_that_is_too_long_is_cut_and_has_no_end_token(tmp_path: Path) -> None:
    make_hf_folder(tmp_path, vocab_size=384)
    make_tokenizer(tmp_path)
    (cut,) = likelihoods(tmp_path, [QUESTION], ["qzxjqzxjqzxj"], max_response_tokens=4)
    assert (cut.num_tokens, cut.num_bytes) == (4, 4)


def test_the_mean_is_over_tokens_and_its_interval_over_prompts() -> None:
    short, long = Likelihood(10.0, 5, 10), Likelihood(30.0, 10, 60)
    found = per_unit([short, long] * 20, np.random.default_rng(0))
    assert found.mean == pytest.approx(40 / 15)
    assert 2.0 < found.low < 40 / 15 < found.high < 3.0
    by_bytes = per_unit([short, long], np.random.default_rng(0), "num_bytes")
    assert by_bytes.mean == pytest.approx(40 / 70)
    assert math.isnan(per_unit([short], np.random.default_rng(0)).low)
