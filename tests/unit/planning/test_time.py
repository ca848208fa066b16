"""Seconds: against the known figures of worked examples, and counted by hand."""

from dataclasses import replace

import pytest

from megatron_gad.planning.devices import Assumptions
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.occupancy import memory_plans
from megatron_gad.planning.request import EngineUse, swap_bytes
from megatron_gad.planning.rollout_time import decode_seconds, rollout_time
from megatron_gad.planning.time import (
    discriminator_seconds,
    forward_flops,
    move_seconds,
    stage_time,
    student_seconds,
    swap_seconds,
)
from megatron_gad.planning.work import StageWork, reference_work
from tests.unit.planning.requests import ADVERSARIAL, QWEN, ROWS, TP4, make_request


def training_seconds(model: str, layout: Layout, work: StageWork) -> float:
    """Return the seconds of all passes through both models."""
    request = make_request(model)
    return student_seconds(request, layout, work) + discriminator_seconds(request, layout, work)


@pytest.mark.parametrize("layout", [TP4, Layout(data=8), Layout(tensor=2, data=4)])
@pytest.mark.parametrize(("model", "ours", "theirs"), [("7B", 40, 65), ("14B", 78, 126)])
def test_training_takes_the_known_seconds_on_eight_h100(
    layout: Layout, model: str, ours: float, theirs: float
) -> None:
    assert training_seconds(model, layout, ADVERSARIAL) == pytest.approx(ours, rel=0.15)
    reference = training_seconds(model, layout, reference_work(ADVERSARIAL))
    assert reference == pytest.approx(theirs, rel=0.15)


def test_the_passes_add_up_to_the_known_units() -> None:
    """In units of parameters x student tokens the reference spends 24 and fused scoring 14.75."""

    def units(work: StageWork) -> float:
        forwards = work.student_forwards + work.discriminator_forwards
        return (2 * forwards + 6 * (work.student_trained + work.discriminator_trained)) / ROWS

    assert units(ADVERSARIAL) == 14.75
    assert units(reference_work(ADVERSARIAL)) == 24


def test_a_forward_pass_costs_two_operations_a_matrix_entry_and_attention() -> None:
    shape = QWEN["7B"]
    matrices = shape.num_parameters() - 152_064 * 3584 - 28 * (2 * 3584 + 4608) - 3584
    attention = 2 * 28 * 28 * 128 * 550
    assert forward_flops(shape, 550, is_scorer=False) == 2 * matrices + attention


def test_each_model_takes_the_time_of_its_own_layout() -> None:
    request, alone = make_request("7B"), replace(TP4, discriminator=Layout(data=8))
    assert student_seconds(request, alone, ADVERSARIAL) == student_seconds(
        request, TP4, ADVERSARIAL
    )
    # 2304 rows of 550 tokens, three passes at 2 operations an entry and causal attention.
    entries = 28 * (2 * 3584 * 128 * (28 + 4) + 3 * 3584 * 18944) + 3584
    one = 2 * entries + 2 * 28 * 28 * 128 * 550
    compute = 3 * one * 2304 * 550 / (8 * 0.4 * 989.4e12)
    # Eight copies sum all gradients in float32 and spread them again, 7 / 8 of them over NVLink.
    parameters = entries + 152_064 * 3584 + 28 * (4608 + 2 * 3584) + 3584
    summed = 8 * parameters * 7 / 8 / (450e9 * 0.8)
    found = discriminator_seconds(request, alone, ADVERSARIAL)
    assert found == pytest.approx(compute + summed, rel=1e-9)


def test_a_shared_prompt_is_paid_for_once() -> None:
    """Groups of 8: a row has 150 / 8 + 400 tokens, of which a microbatch has those of 16 rows."""
    shared = make_request("7B", shares_prompts=True, micro_batch_size=16)
    whole = make_request("7B", micro_batch_size=16)
    forward = replace(ADVERSARIAL, student_trained=0)
    entries = QWEN["7B"].multiplied_parameters()
    # 2 operations for each pair of a token and one before it, and width: 4 L a (p^2 / 2 / 8 + ...).
    pairs = 150 * 150 / 2 / 8 + 400 * 150 + 400 * 400 / 2
    one = 2 * entries * (150 / 8 + 400) + 4 * 28 * 28 * 128 * pairs
    speed = 8 * 0.4 * 989.4e12
    layout = Layout(data=8)
    assert student_seconds(shared, layout, forward) == pytest.approx(ROWS * one / speed)
    # Half a group has it if 150 + 4 x 400 tokens fit; each row if one fits, or under context
    # parallelism.
    half = replace(shared, max_tokens_per_microbatch=150 + 4 * 400)
    more = 2 * entries * 150 / 8 + 4 * 28 * 28 * 128 * 150 * 150 / 2 / 8
    assert student_seconds(half, layout, forward) == pytest.approx(ROWS * (one + more) / speed)
    context = Layout(data=4, context=2)
    one_row = replace(shared, max_tokens_per_microbatch=150 + 400)
    for request, each in ((one_row, layout), (shared, context)):
        assert student_seconds(request, each, forward) == student_seconds(
            replace(request, shares_prompts=False), each, forward
        )
    # The reference implementation has whole rows.
    plans = [next(iter(memory_plans(request, TP4))) for request in (shared, whole)]
    times = [
        stage_time(request, TP4, plan, ADVERSARIAL)
        for request, plan in zip((shared, whole), plans, strict=True)
    ]
    assert times[0].reference == pytest.approx(times[1].reference)
    assert times[0].discriminator < times[1].discriminator


def test_recompute_adds_a_forward_pass_and_a_pipeline_its_bubble() -> None:
    request, train = make_request("7B"), replace(ADVERSARIAL, student_forwards=0)
    plain = student_seconds(request, Layout(), train)
    assert student_seconds(request, Layout(recompute="full"), train) == pytest.approx(plain * 4 / 3)
    # 512 microbatches through two stages, of which the last has the head too.
    entries = QWEN["7B"].multiplied_parameters()
    head = 152_064 * 3584
    imbalance = ((entries - head) / 2 + head) / (entries / 2)
    piped = student_seconds(request, Layout(pipeline=2), train)
    assert piped == pytest.approx(plain / 2 * imbalance * (1 + 1 / 512))
    # A bound of 5500 tokens holds 10 rows of 550, so that there are 205 microbatches.
    bound = make_request("7B", max_tokens_per_microbatch=5500)
    by_tokens = student_seconds(bound, Layout(pipeline=2), train)
    assert by_tokens == pytest.approx(plain / 2 * imbalance * (1 + 1 / 205))
    halved = student_seconds(request, Layout(pipeline=2, virtual=2), train)
    assert halved == pytest.approx(plain / 2 * imbalance * (1 + 1 / 1024))


def test_decoding_reads_the_weights_or_multiplies_whichever_takes_longer() -> None:
    assume = Assumptions(mfu=1.0, hbm_efficiency=1.0, decode_seconds=0.0)
    request = make_request("7B", assume=assume)
    few = decode_seconds(request, Layout(), batch=1, context=100)
    assert few == pytest.approx((2 * 7_615_616_512 + 100 * 57_344) / 3.35e12)
    many = decode_seconds(request, Layout(), batch=4096, context=0)
    assert many == pytest.approx(2 * QWEN["7B"].multiplied_parameters() * 4096 / 989.4e12)


def test_a_cache_too_small_for_all_rows_takes_turns() -> None:
    request = make_request("7B")
    ample = rollout_time(request, Layout(data=8), ADVERSARIAL, 10**9)
    scarce = rollout_time(request, Layout(data=8), ADVERSARIAL, 550 * 64)
    assert (ample.batch, scarce.batch) == (256, 64)
    assert scarce.body == pytest.approx(
        4 * 400 * decode_seconds(request, Layout(data=8), 64, 150 + 200)
    )
    assert scarce.body > ample.body


def test_a_swap_moves_all_weights_once() -> None:
    request = make_request("7B")
    assert swap_bytes(request) == 2 * 7_615_616_512
    # 29 buckets of 512 MiB at 20 ms, half a second, three quarters over NVLink, loading.
    expected = 0.5 + 29 * 0.02 + swap_bytes(request) * 0.75 / (450e9 * 0.8)
    expected += 2 * swap_bytes(request) / (3.35e12 * 0.75)
    assert swap_seconds(request, TP4) == pytest.approx(expected)


def test_who_leaves_is_copied_out_and_in_once_a_step() -> None:
    work = replace(ADVERSARIAL, has_reference=False)
    request = make_request("7B", stages=(work,))
    nobody, *others = memory_plans(request, TP4)
    assert move_seconds(request, nobody, work) == 0.0
    away = next(plan for plan in others if plan.leaves == {"student"})
    moved = 2 * (away.student.weights + away.student.optimizer)
    assert move_seconds(request, away, work) == pytest.approx(moved / (64e9 * 0.4))


def test_a_reference_costs_three_copies_of_the_weights_and_one_where_the_student_leaves() -> None:
    request = make_request("7B")
    nobody, *others = memory_plans(request, TP4)
    away = next(plan for plan in others if plan.leaves == {"student"})
    speed, weights = 64e9 * 0.4, nobody.student.weights
    assert move_seconds(request, nobody, ADVERSARIAL) == pytest.approx(3 * weights / speed)
    moved = 3 * weights + 2 * away.student.optimizer
    assert move_seconds(request, away, ADVERSARIAL) == pytest.approx(moved / speed)


def test_with_overlap_a_step_takes_the_longer_of_rollout_and_training() -> None:
    work = replace(ADVERSARIAL, overlaps=True)
    request = make_request("7B", "h200-141g", stages=(work,))
    memory, *_ = memory_plans(request, TP4)
    short = replace(memory, cache_tokens=550)
    for each, longer in ((memory, "training"), (short, "rollout")):
        time = stage_time(request, TP4, each, work)
        training = time.discriminator + time.student + time.moves
        assert time.step == time.swap + max(time.rollout.total, training)
        assert (training > time.rollout.total) == (longer == "training")
        # The reference implementation has no overlap.
        assert time.reference == stage_time(request, TP4, each, ADVERSARIAL).reference


def test_the_engines_that_there_are_share_the_samples() -> None:
    request = make_request("7B", engine=EngineUse(max_rows=128))
    two = rollout_time(request, Layout(data=8, engines=2), ADVERSARIAL, 10**9)
    assert two.batch == 128
    # 1024 rows each, 128 at a time for 400 tokens.
    one = decode_seconds(request, Layout(), 128, 150 + 200)
    assert two.body == pytest.approx(8 * 400 * one)


def test_a_replay_takes_no_time_to_sample_and_gathers_the_weights() -> None:
    request = make_request("7B", engine=EngineUse("replay", 0))
    assert rollout_time(request, TP4, ADVERSARIAL, 0).total == 0.0
    gathered = 2 * 7_615_616_512 * 0.75 / (450e9 * 0.8)
    assert swap_seconds(request, TP4) == pytest.approx(gathered)


def test_an_epoch_is_its_steps() -> None:
    request = make_request("7B", num_data_prompts=2560)
    memory, *_ = memory_plans(request, TP4)
    time = stage_time(request, TP4, memory, replace(ADVERSARIAL, epochs=2.0))
    parts = time.swap + time.rollout.total + time.discriminator + time.student + time.moves
    assert time.step == parts
    assert time.epoch == pytest.approx(10 * parts)
    assert time.epoch_by_phase is not None
    assert time.epoch_by_phase["student"] == pytest.approx(10 * time.student)
    assert sum(time.epoch_by_phase.values()) == pytest.approx(time.epoch)
    assert time.total == pytest.approx(20 * parts)
    assert stage_time(make_request("7B"), TP4, memory, ADVERSARIAL).epoch is None
