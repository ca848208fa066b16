"""Weights on their way: a plan made at the first swap, memory that is bounded, exact values."""

import pickle
import threading
import weakref
from base64 import b64decode
from collections.abc import Iterator

import torch
from torch import Size, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.shared_memory import pickled
from megatron_gad.engines.sglang.streaming import stream_buckets
from megatron_gad.engines.sglang.weight_plan import WeightPlan
from tests.tiny import make_hf_folder

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.arange(5, dtype=torch.float32).neg(),
    "large": torch.randn(10, 10, generator=torch.Generator().manual_seed(0)),
    "transposed": torch.arange(12, dtype=torch.float32).view(3, 4).T,
}
SHAPES = {name: tensor.shape for name, tensor in TENSORS.items()}


def make_plan(buffer_size: int, dtype: torch.dtype = torch.float32) -> WeightPlan:
    return WeightPlan(SHAPES, dtype, buffer_size)


def test_buckets_hold_the_values_in_order_and_keep_to_their_size_in_every_swap():
    plan = make_plan(buffer_size=100)
    for offset in (0.0, 1.0):
        buckets = list(plan.buckets((name, TENSORS[name] + offset) for name in TENSORS))
        assert plan.problems() == []
        assert [b.layout.names for b in buckets] == [("a", "b"), ("large",), ("transposed",)]
        assert [bucket.flat.numel() for bucket in buckets] == [44, 400, 48]
        for bucket in buckets:
            for name, tensor in bucket.named:
                assert torch.equal(tensor, TENSORS[name] + offset)
                assert tensor.untyped_storage().data_ptr() == bucket.flat.data_ptr()


def test_everything_is_converted_before_it_travels():
    (bucket,) = make_plan(10_000, torch.bfloat16).buckets(TENSORS.items())
    assert bucket.flat.numel() == 2 * sum(tensor.numel() for tensor in TENSORS.values())
    for name, tensor in bucket.named:
        assert torch.equal(tensor, TENSORS[name].to(torch.bfloat16))


def test_later_swaps_replay_the_buckets_of_the_first():
    plan = make_plan(100)
    assert plan.layouts == ()
    list(plan.buckets(TENSORS.items()))
    planned = plan.layouts
    assert [layout.num_bytes for layout in planned] == [44, 400, 48]
    swapped = {name: TENSORS[name] for name in ("b", "a", "large", "transposed")}
    read = iter(swapped.items())
    assert list(plan.buckets(read)) == []
    assert plan.problems() == ["b came where a came at the first swap"]
    assert list(read) == []  # other ranks take part in gathering them
    again = list(plan.buckets(TENSORS.items()))
    assert plan.problems() == []
    assert tuple(bucket.layout for bucket in again) == plan.layouts == planned


def test_a_swap_with_problems_plans_nothing_and_leaves_a_plan_as_it_was():
    plan = make_plan(100)
    wrong = TENSORS | {"b": torch.ones(7)}
    for planned in ((), ("a", "b")):
        list(plan.buckets(wrong.items()))
        assert plan.problems()[0] == "b has the shape (7,), not (5,)"
        assert (plan.layouts[0].names if plan.layouts else ()) == planned
        list(plan.buckets(TENSORS.items()))
        assert plan.problems() == []


class LivingBytes(TorchDispatchMode):
    """Counts the memory of all tensors made while it is active, and its largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, int] = {}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and "empty" in str(func):
            storage = result.untyped_storage()
            self.living[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(storage, self.living.pop, storage.data_ptr())
            self.largest = max(self.largest, sum(self.living.values()))
        return result


class Reader:
    """Reads each bucket whole, as a server does."""

    def __init__(self) -> None:
        self.sums: list[float] = []

    def begin_load(self) -> None:
        """Nothing to make ready."""

    def take(self, bucket: Bucket) -> None:
        self.sums.append(sum(float(tensor.sum()) for _, tensor in bucket.named))


class Full(Reader):
    """Has no space for a second bucket."""

    def take(self, bucket: Bucket) -> None:
        super().take(bucket)
        raise OSError("no space left on device")


def test_two_buckets_at_most_are_alive():
    size, count = 1000, 40
    plan = WeightPlan({f"w{n}": Size([size]) for n in range(count)}, torch.float32, 16_000)
    source = torch.ones(size)
    for _ in range(2):
        reader, full = Reader(), Full()
        with LivingBytes() as counted:
            named = ((f"w{n}", source) for n in range(count))
            failures = stream_buckets(
                plan.buckets(named),
                [reader, full],  # pyright: ignore[reportArgumentType]
                keep=lambda bucket: None,
            )
        assert (reader.sums, full.sums) == ([4000.0] * 10, [4000.0])
        assert list(failures) == [full]
        assert 16_000 <= counted.largest <= 32_000


def test_the_next_bucket_is_gathered_while_the_last_is_on_its_way():
    gathering = {name: threading.Event() for name in TENSORS}

    class Slow(Reader):
        def take(self, bucket: Bucket) -> None:
            if "a" in bucket.layout.names:  # it stays on its way until then
                assert gathering["transposed"].wait(timeout=30)
            super().take(bucket)

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in TENSORS.items():
            gathering[name].set()
            yield name, tensor

    slow = Slow()
    failures = stream_buckets(
        make_plan(100).buckets(gathered()),
        [slow],  # pyright: ignore[reportArgumentType]
        keep=lambda bucket: None,
    )
    assert not failures
    assert len(slow.sums) == 3


def test_what_goes_wrong_on_the_way_is_returned_and_everything_is_read():
    full, other = Full(), Reader()
    read = iter(TENSORS.items())
    failures = stream_buckets(
        make_plan(100).buckets(read),
        [full, other],  # pyright: ignore[reportArgumentType]
        keep=lambda bucket: None,
    )
    assert [str(error) for error in failures.values()] == ["no space left on device"]
    assert (len(full.sums), len(other.sums)) == (1, 3)
    assert list(read) == []


def test_a_bucket_is_a_copy():
    source = torch.zeros(3)
    plan = WeightPlan({"x": Size([3])}, torch.float32, 100)
    (bucket,) = plan.buckets([("x", source)])
    source += 1
    assert torch.equal(bucket.named[0][1], torch.zeros(3))


def test_a_bucket_travels_as_one_handle_and_the_places_in_it():
    plan = WeightPlan({"x": Size([100_000]), "y": Size([3, 2])}, torch.float32, 500_000)
    (bucket,) = plan.buckets([("x", torch.arange(100_000.0)), ("y", torch.ones(3, 2))])
    data = b64decode(pickled(bucket))
    assert len(data) < 2000
    received = pickle.loads(data)
    places = {
        meta.name: received["flattened_tensor"][meta.start_idx : meta.end_idx]
        .view(meta.dtype)
        .reshape(meta.shape)
        for meta in received["metadata"]
    }
    assert torch.equal(places["x"], torch.arange(100_000.0))
    assert torch.equal(places["y"], torch.ones(3, 2))


def test_the_plan_lets_the_models_tensors_through_and_names_the_others(tmp_path):
    folder = make_hf_folder(tmp_path, "qwen2", 97, tie=True)
    plan = WeightPlan.of_folder(folder, torch.float32, 10_000)
    bias, norm = "model.layers.0.self_attn.q_proj.bias", "model.norm.weight"

    def given() -> Iterator[tuple[str, Tensor]]:
        yield bias, torch.ones(32)
        yield bias, torch.ones(32)
        yield norm, torch.ones(5)
        yield "lm_head.weight", torch.ones(97, 32)

    (bucket,) = plan.buckets(given())
    assert bucket.layout.names == (bias,)
    problems = plan.problems()
    assert problems[:3] == [
        f"{bias} came twice",
        f"{norm} has the shape (5,), not (32,)",
        "lm_head.weight is unexpected",
    ]
    assert "model.embed_tokens.weight is missing" in problems
    assert norm not in [problem.split()[0] for problem in problems[3:]]


def test_the_plan_forgets_the_problems_of_the_last_swap():
    plan = WeightPlan({"x": Size([2])}, torch.float32, 100)
    assert list(plan.buckets([("y", torch.ones(2))])) == []
    assert plan.problems() == ["y is unexpected", "x is missing"]
    assert len(list(plan.buckets([("x", torch.ones(2))]))) == 1
    assert plan.problems() == []


def test_a_bucket_cannot_be_empty():
    assert list(make_plan(100).buckets([])) == []
