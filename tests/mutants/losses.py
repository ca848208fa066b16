"""Faults in the formulas: advantages, the student's loss, the discriminator's loss."""

from tests.mutants.mutant import Mutant, oracle

FOLDER = "tests/unit/algorithms/"
ADVANTAGES = (f"{FOLDER}test_advantages.py",)
REWARDS = (f"{FOLDER}test_rewards.py",)
POLICY = (f"{FOLDER}test_policy.py",)
POLICY_KINDS = (f"{FOLDER}test_policy_kinds.py",)
KL = (f"{FOLDER}test_kl.py",)
MASKING = (f"{FOLDER}test_masking.py",)
DISCRIMINATOR = (f"{FOLDER}test_discriminator.py",)
DIVERGENCE = (f"{FOLDER}test_divergence.py",)
COMPARED = ("tests/unit/training/test_divergence.py",)
JUDGING = ("tests/unit/stages/test_judging.py",)

ADVANTAGE_MUTANTS = (
    Mutant(
        "advantages are negated",
        "centred = rewards - rewards.mean(dim=-1, keepdim=True)",
        "centred = rewards.mean(dim=-1, keepdim=True) - rewards",
        ADVANTAGES,
    ),
    Mutant(
        "advantages are centred over the batch and not over the group",
        "centred = rewards - rewards.mean(dim=-1, keepdim=True)",
        "centred = rewards - rewards.mean()",
        ADVANTAGES,
    ),
    Mutant(
        "the group's standard deviation is the biased one",
        "rewards.std(dim=-1, keepdim=True)",
        "rewards.std(dim=-1, keepdim=True, unbiased=False)",
        ADVANTAGES,
    ),
    Mutant(
        "the standard deviation has no floor",
        "rewards.std(dim=-1, keepdim=True) + STD_FLOOR",
        "rewards.std(dim=-1, keepdim=True)",
        ADVANTAGES,
    ),
    Mutant(
        "the floor of the standard deviation is 1e-4",
        "STD_FLOOR = 1e-6",
        "STD_FLOOR = 1e-4",
        ADVANTAGES,
    ),
    Mutant(
        "dr_grpo divides by the standard deviation",
        'elif kind == "dr_grpo":\n        advantages = centred',
        'elif kind == "dr_grpo":\n        advantages = centred / rewards.std(dim=-1, keepdim=True)',
        ADVANTAGES,
    ),
    Mutant(
        "rloo has its factor upside down",
        "centred * (group_size / (group_size - 1))",
        "centred * ((group_size - 1) / group_size)",
        ADVANTAGES,
    ),
    Mutant(
        "a group of equal rewards gets the advantages of its rounding",
        "torch.where(are_equal, ",
        "torch.where(are_equal & False, ",
        ADVANTAGES,
    ),
    Mutant(
        "lengths explain rewards by their number of tokens and not by its logarithm",
        "return lengths.double().clamp(min=1).log()",
        "return lengths.double().clamp(min=1)",
        ADVANTAGES,
    ),
    Mutant(
        "a group with one advantage of zero counts as one that teaches nothing",
        "is_zero = (advantages == 0).all(dim=-1)",
        "is_zero = (advantages == 0).any(dim=-1)",
        ADVANTAGES,
    ),
)

REWARD_MUTANTS = (
    Mutant(
        "rewards are clipped before they are normalized",
        '    if normalization == "group":\n        values = group_advantages(values, "grpo")',
        "    values = values.clamp(-clip, clip) if clip > 0 else values\n"
        '    if normalization == "group":\n        values = group_advantages(values, "grpo")',
        REWARDS,
    ),
    Mutant(
        "the weight of a reward is ignored",
        "return weight * values",
        "return values",
        REWARDS,
    ),
    Mutant(
        "a group whose reward failed is kept",
        "is_dropped_P |= has_failed_PG.any(dim=1)",
        "is_dropped_P |= has_failed_PG.any(dim=1) & False",
        ("tests/unit/stages/test_options.py",),
    ),
)

POLICY_MUTANTS = (
    Mutant(
        "the student descends on the objective that it should ascend",
        "losses = -objective",
        "losses = objective",
        POLICY,
    ),
    Mutant(
        "the ratio is clipped from above only",
        "ratio.clamp(*bounds)",
        "ratio.clamp(max=bounds[1])",
        POLICY,
    ),
    Mutant(
        "the ratio is clipped from below only",
        "ratio.clamp(*bounds)",
        "ratio.clamp(min=bounds[0])",
        POLICY,
    ),
    Mutant(
        "the clip takes the larger of the two objectives",
        "torch.minimum(unclipped, clipped)",
        "torch.maximum(unclipped, clipped)",
        POLICY,
    ),
    Mutant(
        "a ratio out of range counts as clipped where the clip has no effect",
        "clipped < unclipped",
        "clipped != unclipped",
        POLICY,
    ),
    Mutant(
        "clip-higher reaches below 1 as well",
        "return 1 - self.clip_range, 1 + high",
        "return 1 - high, 1 + high",
        POLICY_KINDS,
    ),
    Mutant(
        "the dual clip bounds positive advantages",
        "is_below = (advantages < 0) & (objective < least)",
        "is_below = (advantages > 0) & (objective > least)",
        POLICY_KINDS,
    ),
    Mutant(
        "a response's ratio is a product and not its geometric mean",
        "mean = (logprobs - old_logprobs).sum(dim=-1, keepdim=True) / num_tokens",
        "mean = (logprobs - old_logprobs).sum(dim=-1, keepdim=True)",
        POLICY_KINDS,
    ),
    Mutant(
        "cispo's weights carry a gradient",
        "weights = ratio.detach().clamp(max=high)",
        "weights = ratio.clamp(max=high)",
        POLICY_KINDS,
    ),
    Mutant(
        "the probability ratio is upside down",
        "(logprobs - old_logprobs).clamp(",
        "(old_logprobs - logprobs).clamp(",
        POLICY,
    ),
    Mutant(
        "importance weights have no cap",
        "probability_ratio(logprobs, rollout_logprobs).clamp(max=cap).detach()",
        "probability_ratio(logprobs, rollout_logprobs).detach()",
        POLICY,
    ),
    Mutant(
        "importance weights carry a gradient",
        ".clamp(max=cap).detach()",
        ".clamp(max=cap)",
        POLICY,
    ),
    Mutant(
        "importance weights take the student after its update",
        "_engine_weights(old_logprobs, batch, options.tis_cap)",
        "_engine_weights(logprobs.detach(), batch, options.tis_cap)",
        POLICY,
    ),
    Mutant(
        "importance weights multiply the KL as well",
        "        if options.kl_coef > 0:\n            losses = losses + options.kl_coef * kl",
        "        if options.kl_coef > 0:\n            losses = losses + options.kl_coef * kl * (\n"
        "                _engine_weights(old_logprobs, batch, options.tis_cap)\n"
        "                if options.tis_cap > 0 else 1.0)",
        POLICY,
    ),
    Mutant(
        "the KL is subtracted from the loss",
        "losses = losses + options.kl_coef * kl",
        "losses = losses - options.kl_coef * kl",
        POLICY,
    ),
    Mutant(
        "the entropy metric counts prompt tokens too",
        '"entropy": (masked_sum(output.entropy.detach(), mask), masked_count(mask)),',
        '"entropy": (output.entropy.detach().sum(), masked_count(mask | ~mask)),',
        POLICY,
    ),
    Mutant(
        "the KL is taken from the reference to the policy",
        "log_ratio = ref_logprobs - logprobs",
        "log_ratio = logprobs - ref_logprobs",
        KL,
    ),
    Mutant(
        "k1 has the wrong sign",
        "return -log_ratio",
        "return log_ratio",
        KL,
    ),
    Mutant(
        "k2 is not halved",
        "log_ratio.square() / 2",
        "log_ratio.square()",
        KL,
    ),
    Mutant(
        "k3 adds the logarithm of the ratio",
        "bounded.expm1() - bounded",
        "bounded.expm1() + bounded",
        KL,
    ),
    Mutant(
        "the KL of a response is a mean over its width and not a sum",
        "estimates.masked_fill(~response_mask, 0.0).sum(dim=-1)",
        "estimates.masked_fill(~response_mask, 0.0).mean(dim=-1)",
        KL,
    ),
    Mutant(
        "the mean over tokens divides by prompt tokens and padding too",
        "return masked_sum(token_values, response_mask), masked_count(response_mask)",
        "return masked_sum(token_values, response_mask), masked_count(response_mask | True)",
        MASKING,
    ),
    Mutant(
        "rows without a response count in the mean over sequences",
        "masked_count(num_tokens > 0)",
        "masked_count(num_tokens >= 0)",
        MASKING,
    ),
    Mutant(
        "the mean over sequences adds up tokens",
        "return (row_sums / num_tokens.clamp(min=1)).sum(), num_rows",
        "return row_sums.sum(), num_rows",
        MASKING,
    ),
    Mutant(
        "the constant of the aggregation is each response's length",
        "return row_sums.sum() / max_length, num_rows",
        "return (row_sums / num_tokens.clamp(min=1)).sum(), num_rows",
        MASKING,
    ),
    Mutant(
        "what is masked reaches the sum",
        "return torch.where(mask, values, torch.zeros_like(values))",
        "return values * mask",
        MASKING,
    ),
    Mutant(
        "cross-entropy pushes the teacher's tokens down",
        "aggregate(-output.logprobs, batch.response_mask",
        "aggregate(output.logprobs, batch.response_mask",
        (f"{FOLDER}test_supervised.py",),
    ),
)

DISCRIMINATOR_MUTANTS = (
    Mutant(
        "the discriminator prefers the student",
        "losses = softplus(student_scores - teacher_scores)",
        "losses = softplus(teacher_scores - student_scores)",
        DISCRIMINATOR,
    ),
    Mutant(
        "pairs that do not train enter the Bradley-Terry loss",
        "losses = softplus(student_scores - teacher_scores)\n"
        "    return masked_sum(losses, trained), masked_count(trained)",
        "losses = softplus(student_scores - teacher_scores)\n"
        "    return losses.sum(), masked_count(trained)",
        DISCRIMINATOR,
    ),
    Mutant(
        "the labels of the binary cross-entropy are exchanged",
        "(softplus(-teacher_scores) + softplus(student_scores)) / 2",
        "(softplus(teacher_scores) + softplus(-student_scores)) / 2",
        DISCRIMINATOR,
    ),
    Mutant(
        "the binary cross-entropy of a pair is a sum and not a mean",
        "(softplus(-teacher_scores) + softplus(student_scores)) / 2",
        "softplus(-teacher_scores) + softplus(student_scores)",
        DISCRIMINATOR,
    ),
    Mutant(
        "with split groups the score gradients are those of one pair's mean",
        "torch.autograd.grad(loss.total, leaf)",
        "torch.autograd.grad(loss.total / loss.count, leaf)",
        (*DISCRIMINATOR, *oracle("groups split, pairs")),
    ),
    Mutant(
        "the teacher's row is taken to be the last of its group",
        "return groups[:, 0], groups[:, 1:]",
        "return groups[:, -1], groups[:, :-1]",
        DISCRIMINATOR,
    ),
    Mutant(
        "a tie counts as a win of the discriminator",
        "(margins == 0).float() / 2",
        "(margins == 0).float()",
        DISCRIMINATOR,
    ),
    Mutant(
        "the margin has the wrong sign",
        "margins = teacher_scores - student_scores",
        "margins = student_scores - teacher_scores",
        DISCRIMINATOR,
    ),
    Mutant(
        "with split groups the teacher's row counts as a pair",
        "counted_R[:: 1 + pairs.group_size] = False",
        "counted_R[:: 1 + pairs.group_size] = True",
        JUDGING,
    ),
    Mutant(
        "with split groups the scores are those from after the update",
        "**output.metrics}, rows=scores_R)",
        "**output.metrics}, rows=discriminator.scores(pairs))",
        JUDGING,
    ),
)


DIVERGENCE_MUTANTS = (
    Mutant(
        "the forward KL is the reverse one, with its own gradient",
        "divergence = inner = (logq.exp() * (logq - logp)).sum(dim=1)",
        "divergence = inner = (logp.exp() * (logp - logq)).sum(dim=1)",
        COMPARED,
    ),
    Mutant(
        "the slope of a divergence is not centred",
        "return slope.sub_(inner[:, None]).mul_(logp.exp_())",
        "return slope.mul_(logp.exp_())",
        COMPARED,
    ),
    Mutant(
        "the divergence's gradient forgets the temperature",
        "parts = (taught.states, *kept, gradients[2] / ctx.temperature)",
        "parts = (taught.states, *kept, gradients[2])",
        COMPARED,
    ),
    Mutant(
        "a token that the teacher likes better is lowered",
        "gap = known - zero_outside(batch.ref_logprobs, mask)",
        "gap = zero_outside(batch.ref_logprobs, mask) - known",
        DIVERGENCE,
    ),
)
