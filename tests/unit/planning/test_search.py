"""The search: never worse with more, honest about what is impossible."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_gad.planning.devices import Assumptions, device_named, device_of
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.request import EngineUse
from megatron_gad.planning.search import find_plans, plan_layout
from megatron_gad.planning.work import Lengths
from tests.unit.planning.requests import ADVERSARIAL, TP4, make_request

ROOT = Path(__file__).parents[3]
BASE = Layout(distributed_optimizer=True)


def test_more_gpus_are_never_slower() -> None:
    for model, counts in (("7B", (2, 3, 4, 8, 12, 16, 17)), ("14B", (4, 6, 8, 16, 24))):
        seconds = []
        for num_gpus in counts:
            request = make_request(model, "h200-141g", num_gpus, split_groups=True)
            seconds.append(find_plans(request, BASE)[0].seconds)
        assert seconds == sorted(seconds, reverse=True)
        assert seconds[-1] < seconds[0] / 3


def test_a_tiny_batch_does_not_use_gpus_that_cannot_help() -> None:
    work = replace(ADVERSARIAL, num_prompts=2, num_samples=16)
    request = make_request("7B", "h200-141g", 64, stages=(work,), split_groups=True)
    best = find_plans(request, BASE)[0]
    assert best.layout.data <= 2


def test_the_best_plan_is_the_fastest_and_fits() -> None:
    request = make_request("14B", "h200-141g", 16)
    plans = find_plans(request, BASE)
    assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)
    for plan in plans:
        assert plan.layout.world <= 16
        assert all(phase.total <= phase.usable for phase in plan.memory.phases)


def test_everything_stays_where_it_fits() -> None:
    assert plan_layout(make_request("7B", "h200-141g"), TP4).memory.leaves == frozenset()


def test_what_must_leave_does_where_it_does_not_fit() -> None:
    request = make_request("32B", "h200-141g", micro_batch_size=1, split_groups=True)
    plan = plan_layout(request, TP4)
    assert plan.memory.leaves & {"student", "discriminator"}
    assert plan.memory.host_bytes > plan.memory.student.weights


def test_a_larger_device_is_never_slower_than_a_smaller_one_of_equal_arithmetic() -> None:
    seconds = [
        find_plans(make_request("14B", device, 8, split_groups=True), BASE)[0].seconds
        for device in ("h100-80g", "h200-141g")
    ]
    assert seconds[1] <= seconds[0]


def test_an_impossible_plan_says_what_is_missing() -> None:
    with pytest.raises(ValueError) as error:
        find_plans(make_request("32B", num_gpus=1), BASE)
    message = str(error.value)
    assert "nothing fits 1 x h100-80g" in message
    # Weights and gradients 6 bytes, optimizer 12, of 32,763,876,352 parameters.
    assert "student 549.2" in message
    assert "GiB are missing; use more or larger GPUs, a smaller micro_batch_size, " in message
    assert "use_distributed_optimizer" not in message, "it is on already"
    with pytest.raises(ValueError) as error:
        find_plans(make_request("32B", num_gpus=1, max_tokens_per_microbatch=8192), BASE)
    assert "a smaller max_tokens_per_microbatch" in str(error.value)
    assert "micro_batch_size" not in str(error.value)


def test_a_layout_that_divides_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="8 does not divide the 4 key-value heads"):
        plan_layout(make_request("7B"), Layout(tensor=8))
    with pytest.raises(ValueError, match="3 data ranks do not divide the 256 prompts"):
        plan_layout(make_request("7B"), Layout(data=3))
    with pytest.raises(ValueError, match="it takes 16 GPUs, there are 8"):
        plan_layout(make_request("7B"), Layout(tensor=4, data=4))


def test_engines_have_to_fit_the_gpus_of_training_unless_they_are_elsewhere() -> None:
    five = replace(TP4, engine_tensor=2, engines=5)
    with pytest.raises(ValueError, match="5 engines of 2 GPUs are on 8 GPUs"):
        plan_layout(make_request("7B", "h200-141g"), five)
    request = make_request("7B", "h200-141g", engine=EngineUse("elsewhere"))
    with pytest.raises(ValueError, match="2 data ranks do not divide the 5 engines elsewhere"):
        plan_layout(request, five)
    six = replace(five, engines=6)
    assert plan_layout(request, six).layout == six
    found = [plan.layout for plan in find_plans(request, six)]
    assert {(layout.engine_tensor, layout.engines) for layout in found} == {(2, 6)}
    assert {layout.data for layout in found} <= {1, 2, 3, 6}


def test_a_plan_is_for_who_leaves_as_configured() -> None:
    request = make_request("7B", "h200-141g")
    assert plan_layout(request, TP4, ("student", "engine")).memory.leaves == {"student", "engine"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA H200", "h200-141g"),
        ("NVIDIA B200", "b200-192g"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA L40S", None),
    ],
)
def test_a_type_is_known_by_the_name_that_its_driver_gives(name: str, found: str | None) -> None:
    device = device_named(name)
    assert (device.name if device else None) == found


def test_a_layout_of_the_discriminators_own_is_judged_by_its_own_numbers() -> None:
    def problem(own: Layout) -> str:
        with pytest.raises(ValueError) as error:
            plan_layout(make_request("7B"), replace(TP4, discriminator=own))
        return str(error.value)

    assert "; the discriminator TP 8 x PP 1 x DP 1 is impossible" in problem(Layout(tensor=8))
    assert "tensor parallel size 8 does not divide the 28 attention" in problem(Layout(tensor=8))
    assert "layout takes 2 GPUs and the student's 8; both share" in problem(Layout(data=2))
    assert "3 data ranks do not divide the 256 prompts" in problem(Layout(data=3))


def test_the_search_lays_both_models_out_alike_or_as_configured() -> None:
    two = replace(TP4, discriminator=replace(TP4, tensor=2, data=4))
    plans = find_plans(make_request("7B", "h200-141g"), two)
    own = [plan.layout.discriminator for plan in plans if plan.layout.discriminator]
    assert own == [two.discriminator] * len(own) and 1 <= len(own) < len(plans)


def test_wrong_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="'h900' is not known; use one of a100-80g"):
        device_of("h900")
    with pytest.raises(ValueError, match=r"--response-tokens 2000 is the mean length"):
        Lengths(150, 2000, 2048, 1536)
    assert Assumptions().problems() == []
    assert len(Assumptions(mfu=0.0, padding=0.5, reserved_share=1.0).problems()) == 3


def test_planning_imports_neither_torch_nor_megatron() -> None:
    code = "import sys, megatron_gad.planning.report; print({'torch', 'megatron'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
