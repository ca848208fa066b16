"""Faults in the network: attention, positions, the vocabulary, the heads."""

from tests.mutants.mutant import Mutant

UNIT = "tests/unit/models/"
TRAINING = "tests/unit/training/"
ATTENTION = (f"{UNIT}test_attention.py",)
AUTOGRAD = (f"{UNIT}test_autograd.py",)
FAMILIES = (f"{UNIT}test_families.py",)
WEIGHTS = (f"{UNIT}test_hf_weights.py",)
LOGITS = (f"{UNIT}test_build.py::test_logits_and_gradients_equal_those_of_transformers",)
VOCABULARY = (f"{TRAINING}test_vocab_parallel.py",)
GRADIENTS = f"{TRAINING}test_trainer_gradients.py::"
STUDENT = (f"{GRADIENTS}test_the_students_loss_and_gradients_equal_those_of_transformers",)
SCORER = (f"{GRADIENTS}test_the_discriminators_loss_and_gradients_equal_those_of_transformers",)
GATHERED = (
    f"{TRAINING}test_shared_prompts.py::test_with_gathered_keys_gradients_are_those_of_whole_rows",
)
PACKED = (f"{GRADIENTS}test_packing_keeps_the_students_gradient",)

NETWORK_MUTANTS = (
    Mutant(
        "packed rows attend to each other",
        "context = torch.cat([self._attend(*part, allowed=None) for part in parts]).squeeze(1)",
        "del parts\n        context = self._attend(query, key, value, allowed=None).squeeze(1)",
        ATTENTION,
    ),
    Mutant(
        "responses behind a shared prompt begin at position 0",
        "cos[at : at + length], sin[at : at + length]) for at, length in spans]",
        "cos[:length], sin[:length]) for at, length in spans]",
        (
            "tests/unit/training/test_shared_prompts.py::"
            "test_the_students_gradients_are_those_of_whole_rows",
        ),
    ),
    Mutant(
        "a kernel aligns the mask of responses with their first keys",
        "KernelMask.padding_causal_bottom_right, packed)",
        "AttnMaskType.padding_causal, packed)",
        GATHERED,
    ),
    Mutant(
        "a kernel gets a response's own keys before those of its prompt",
        "for bounds in (before, (begin, end))",
        "for bounds in ((begin, end), before)",
        ATTENTION,
    ),
    Mutant(
        "a kernel is told that there are as many keys as queries",
        'arguments = {**arguments, "attention_type": "cross"}',
        "arguments = {**arguments}",
        GATHERED,
    ),
    Mutant(
        "a kernel's copies of keys are kept for the backward pass",
        "checkpoint(self._attend_gathered, *arguments, use_reentrant=False)",
        "self._attend_gathered(*arguments)",
        ATTENTION,
    ),
    Mutant(
        "tokens attend to those behind them",
        "is_causal=allowed is None,",
        "is_causal=False,",
        ATTENTION,
    ),
    Mutant(
        "the base of the rotary embedding is ignored",
        '(hf_config.rope_parameters["rope_theta"] ** exponents)',
        "(10000.0 ** exponents)",
        FAMILIES,
    ),
    Mutant(
        "the scaling of the rotary embedding is ignored",
        '    if kind == "default":\n',
        "    if True:\n",
        FAMILIES,
    ),
    Mutant(
        "the rotary embedding turns the other way",
        "torch.cat((-sin, sin), dim=-1)",
        "torch.cat((sin, -sin), dim=-1)",
        LOGITS,
    ),
    Mutant(
        "the gradient of a rotation is not turned back",
        "return _rotate(gradient, cos, -sin), None, None",
        "return _rotate(gradient, cos, sin), None, None",
        AUTOGRAD,
    ),
    Mutant(
        "the epsilon of the norms is 1e-5 in every model",
        "layernorm_epsilon=hf_config.rms_norm_eps,",
        "layernorm_epsilon=1e-5,",
        LOGITS,
    ),
    Mutant(
        "gate and up are exchanged",
        "parts = (*fc1.detach().chunk(2), fc2.detach())",
        "parts = (*reversed(fc1.detach().chunk(2)), fc2.detach())",
        LOGITS,
    ),
    Mutant(
        "the weights of the chosen experts do not add up to 1",
        '"moe_router_pre_softmax": not mixture.normalises,',
        '"moe_router_pre_softmax": True,',
        LOGITS,
    ),
    Mutant(
        "the gradient of a norm leaves out the mean",
        "along.addcmul_(normed, mean, value=-1).mul_(scale)",
        "along.mul_(scale)",
        AUTOGRAD,
    ),
    Mutant(
        "exported rows of the embedding are padded or cut",
        "yield name, tensor[: places[name].num_rows]",
        "yield name, tensor[: (places[name].num_rows or 0) - 1 or None]",
        WEIGHTS,
    ),
)

HEAD_MUTANTS = (
    Mutant(
        "the output layer's part of a tied embedding's gradient is lost",
        "return self.shared_embedding_or_output_weight()",
        "return self.shared_embedding_or_output_weight().detach()",
        STUDENT,
    ),
    Mutant(
        "the padding of the vocabulary is in the softmax",
        "size=max(0, min(local_columns, real_vocab_size - start)),",
        "size=local_columns,",
        VOCABULARY,
    ),
    Mutant(
        "a token's log-probability is read at its own position",
        "targets = own_tokens(pad(tokens[:, 1:], (0, 1)), group)",
        "targets = own_tokens(tokens, group)",
        VOCABULARY,
    ),
    Mutant(
        "the first response token has no log-probability",
        "is_wanted = own_tokens(before_responses(response_mask), group)",
        "is_wanted = own_tokens(response_mask, group)",
        VOCABULARY,
    ),
    Mutant(
        "logits are multiplied by the temperature",
        ".float().div_(temperature)",
        ".float().mul_(temperature)",
        VOCABULARY,
    ),
    Mutant(
        "the gradient of a log-probability has no temperature",
        "upstream / ctx.temperature",
        "upstream",
        VOCABULARY,
    ),
    Mutant(
        "the entropy leaves out the normaliser",
        "entropies.append(log_sum - mean)",
        "entropies.append(-mean)",
        VOCABULARY,
    ),
    Mutant(
        "only the last chunk of tokens reaches the output layer's gradient",
        "            _add_product(total[: shard.size], slope, some)\n",
        "            pass\n",
        VOCABULARY,
    ),
    Mutant(
        "the score is read one token before the end",
        "last = (piece.lengths - 1)[:, None]",
        "last = (piece.lengths - 2)[:, None]",
        SCORER,
    ),
    Mutant(
        "the score is read at the last column, padding or not",
        "return ScorerOutput(values.gather(1, last).squeeze(1))",
        "del last\n        return ScorerOutput(values[:, -1])",
        SCORER,
    ),
    Mutant(
        "a summed score counts the prompt's tokens",
        "torch.where(piece.response_mask, values, 0.0).sum(dim=1)",
        "values.sum(dim=1)",
        SCORER,
    ),
    Mutant(
        "discriminator.head_std is ignored",
        "torch.randn(1, config.hidden_size, generator=generator) * head_std",
        "torch.randn(1, config.hidden_size, generator=generator) * 0.02",
        (
            f"{UNIT}test_build.py::test_a_scorer_applies_its_head_to_the_last_hidden_states",
            f"{UNIT}test_build.py",
        ),
    ),
    Mutant(
        "discriminator.score is ignored",
        "head = ScoreHead(config.score)",
        'head = ScoreHead("last_token")',
        SCORER,
    ),
)
