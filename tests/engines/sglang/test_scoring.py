"""Log-probabilities of given ids from a real SGLang server on the CPU: ``make test-sglang``."""

import pytest
import torch

from megatron_gad.engines.sglang.scoring import TeacherServer
from tests.engines.sglang.servers import BOUND, MARKS, make_prompts, reference, weights_of

pytestmark = MARKS


def test_given_ids_have_the_log_probabilities_of_transformers(engine, folders):
    engine.load_weights(weights_of(folders["new"]), version=40)
    prompts = make_prompts(5)
    rows = [((*p.ids, *range(10, 14 + p.index % 5)), len(p.ids)) for p in prompts]
    # A prompt of which the server has everything already, and one without a response.
    rows += [rows[0], (prompts[1].ids, len(prompts[1].ids))]
    found = TeacherServer(engine.replicas[0].client.url, timeout_s=120).logprobs(rows)
    model = reference(folders["new"])
    for (ids, start), logprobs in zip(rows, found, strict=True):
        whole = torch.tensor([ids])
        with torch.no_grad():
            table = torch.log_softmax(model(whole).logits[0, :-1].float(), dim=-1)
        expected = table.gather(1, whole[0, 1:, None])[start - 1 :, 0].tolist()
        assert logprobs == pytest.approx(expected, abs=BOUND)
