"""Prompts to groups through an engine, and the one path on which rollouts become text again."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from megatron_gad.data.chat import ChatCodec
from megatron_gad.data.order import State
from megatron_gad.engines.base import Engine, EngineWork, SamplingConfig
from megatron_gad.engines.replay import write_groups
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Group, Metrics, Prompt

T = TypeVar("T")


class Request(NamedTuple):
    """One sampling for the prompts of a data rank."""

    prompts: Sequence[Prompt]
    sampling: SamplingConfig


class Sampler:
    """Samples for one model-parallel group: its first rank owns the engine, all get the groups."""

    def __init__(
        self,
        engine: Engine | None,
        codec: ChatCodec,
        parallel: Parallel,
        record_folder: Path | None = None,
        scorer_codec: ChatCodec | None = None,
    ) -> None:
        """Take the engine over.

        record_folder: where every rollout is written to; None: nowhere.
        scorer_codec: of a discriminator with a tokenizer of its own.
        """
        self._engine = engine
        self._codec = codec
        self._scorer_codec = scorer_codec
        self._parallel = parallel
        self._record_folder = record_folder
        self.weights_version = -1

    @property
    def engine(self) -> Engine | None:
        """The engine, None on ranks that own none."""
        return self._engine

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> int:
        """Swap weights in; every rank of the group takes part. Returns the bytes that moved."""
        counter = _CountingWeights(weights, self._free_gathered)
        if self._engine is not None:
            self._engine.load_weights(counter, version)
        else:
            deque(counter, maxlen=0)  # holds none of them
        self.weights_version = version
        return counter.num_bytes

    def _free_gathered(self) -> None:
        """Leave no memory of gathered weights to torch: servers take their caches' room next."""
        if self._parallel.device.type == "cuda":
            torch.cuda.empty_cache()
            self._parallel.wait_for_group()

    def sample(self, requests: Sequence["Request"]) -> list[list[Group]]:
        """Return a group for every prompt; the rollouts carry text and what D reads of it."""
        sampled = self._generate(requests)
        return self._hand_out(requests, sampled)

    def start(self, requests: Sequence["Request"]) -> Callable[[], list[list[Group]]]:
        """Sample in the background; return what waits for it and gives what ``sample`` does.

        All ranks call what is returned, before the next ``load_weights``.
        """
        if self._engine is None:
            return lambda: self._hand_out(requests, None)
        future = in_background(partial(self._generate, requests))
        return lambda: self._hand_out(requests, future.result())

    def _generate(self, requests: Sequence["Request"]) -> list[list[Group]] | None:
        if self._engine is None:
            return None
        stop_ids = self._codec.stop_ids
        return [
            self.with_text(self._engine.generate(prompts, replace(sampling, stop_ids=stop_ids)))
            for prompts, sampling in requests
        ]

    def _hand_out(
        self, requests: Sequence["Request"], sampled: list[list[Group]] | None
    ) -> list[list[Group]]:
        # Ranks without an engine wait here for the group's first.
        handed = self._parallel.from_engine_rank(sampled)
        if self._record_folder is not None and self._parallel.is_engine_rank:
            # In one file for all data ranks, to be replayed on any number of them. Engine ranks are
            # the data ranks of one place in their groups; the first of them writes.
            to_others: list[list[Group]] = [[]] * (self._parallel.data_size - 1)
            for request, groups in zip(requests, handed, strict=True):
                shares = self._parallel.exchange_over_data([groups, *to_others])
                if self._parallel.is_writer:
                    name = request.sampling.name
                    write_groups(self._record_folder, name, chain.from_iterable(shares))
        return handed

    def take_metrics(self, groups: Sequence[Group], is_replayed: bool) -> Metrics:
        """Return what is worth watching in rollouts, and what the engines did since the last call.

        Means over data ranks; all ranks call it. is_replayed: engines that replay do no work.
        """
        work = self.take_work()
        sums = describe_rollouts(groups) | ({} if is_replayed else work.sums())
        return self._parallel.mean_over_data(sums)

    def take_work(self) -> EngineWork:
        """Return what the engine did since the last call; nothing without one."""
        return EngineWork() if self._engine is None else self._engine.take_work()

    def sleep(self) -> None:
        """Give the engine's memory back; it needs weights before it samples again."""
        if self._engine is not None:
            self._engine.sleep()
        self.weights_version = -1

    def device_bytes(self) -> int:
        """Return the bytes of the weights that the engine shows; servers show none."""
        held = self._engine.held_weights() if self._engine is not None else ()
        return sum(x.numel() * x.element_size() for _, x in held if x.device.type != "meta")

    def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            self._engine.close()

    def with_text(self, groups: Sequence[Group]) -> list[Group]:
        """Give rollouts that hold token ids only their text and what D reads of it."""
        return [self._read(group) for group in groups]

    def _read(self, group: Group) -> Group:
        """Decode the rollouts, and tokenise them again exactly as the teacher's text is.

        The cap counts the tokens that were sampled. Where the text has fewer, a cut rollout would
        be shorter than a cut text of the teacher; so all cut texts of a group, the teacher's too,
        are cut to the shortest of them.
        """
        codec, prompt = self._codec, group.prompt
        texts = [codec.decode_response(rollout.ids) for rollout in group.rollouts]
        read = [
            codec.encode_response(text, hit_cap=rollout.finish_reason == "length")
            for text, rollout in zip(texts, group.rollouts, strict=True)
        ]
        read = [(prompt.teacher_ids, prompt.teacher_truncated), *read]
        was_cut = [truncated for _, truncated in read]
        teacher, *responses = _equally_cut(read, codec.cut_response)
        rollouts = zip(group.rollouts, texts, responses, strict=True)
        read_group = Group(
            replace(prompt, teacher_ids=teacher),
            tuple(replace(each, text=text, text_ids=ids) for each, text, ids in rollouts),
        )
        if self._scorer_codec is None:
            return read_group
        return _as_scored(read_group, was_cut, codec, self._scorer_codec)


class Ahead:
    """The rollouts of the next step: on their way from the engine, or from a checkpoint.

    orders: of the data, from before their prompts were taken.
    """

    def __init__(self, orders: dict[str, State], take: Callable[[], list[list[Group]]]) -> None:
        """take: waits for the groups of every request; called once, on all ranks."""
        self.orders = orders
        self._take = take
        self._groups: list[list[Group]] | None = None

    def result(self) -> list[list[Group]]:
        """Wait for the rollouts and return the groups of every request. All ranks call it."""
        if self._groups is None:
            self._groups = self._take()
        return self._groups


def _equally_cut(
    responses: Sequence[tuple[tuple[int, ...], bool]],
    cut: Callable[[Sequence[int], int], tuple[int, ...]],
) -> list[tuple[int, ...]]:
    """Return the ids of responses, of which those that are truncated are cut to the shortest.

    An empty one, of which stripped reasoning left nothing, has no say.

    responses: (ids, whether they are truncated). cut: of ids, at a limit.
    """
    limit = min((len(ids) for ids, truncated in responses if truncated and ids), default=0)
    return [
        cut(ids, limit) if truncated and len(ids) > limit else ids for ids, truncated in responses
    ]


def _as_scored(group: Group, was_cut: Sequence[bool], codec: ChatCodec, scorer: ChatCodec) -> Group:
    """Give a group the ids that a discriminator with a tokenizer of its own reads.

    It reads the texts that the student's ids say, the teacher's among them: all have gone through
    the student's tokenizer once, and were cut there.

    was_cut: of the teacher's response and each rollout.
    """
    ids = [group.prompt.teacher_ids, *(rollout.text_ids for rollout in group.rollouts)]
    texts = [codec.decode_response(each) for each in ids]
    teacher, *own = _equally_cut(scorer.encode_responses(texts, was_cut), scorer.cut_response)
    rollouts = zip(group.rollouts, own, strict=True)
    return Group(
        replace(group.prompt, scorer_teacher_ids=teacher),
        tuple(replace(rollout, scorer_ids=each) for rollout, each in rollouts),
    )


def in_background(work: Callable[[], T]) -> Future[T]:
    """Run in a thread that keeps no process from ending; an error comes with the result."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)

    Thread(target=run, name="rollout", daemon=True).start()
    return future


def describe_rollouts(groups: Sequence[Group]) -> dict[str, tuple[float, float]]:
    """Return (sum, count) of what is worth watching in sampled text.

    response/length_mean and teacher/length_mean are in tokens, the end token included;
    response/retokenized_share counts rollouts whose text became other ids than were sampled, in
    what D reads of it.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    count = len(rollouts)
    reasons = Counter(rollout.finish_reason for rollout in rollouts)
    changed = sum(not _holds(each.ids, each.text_ids) for each in rollouts)
    return {
        "response/length_mean": (sum(len(rollout.ids) for rollout in rollouts), count),
        "response/truncated_share": (reasons["length"], count),
        "response/retokenized_share": (changed, count),
        "teacher/length_mean": (sum(len(g.prompt.teacher_ids) for g in groups), len(groups)),
    }


def _holds(sampled: tuple[int, ...], read: tuple[int, ...]) -> bool:
    """Return whether what D reads was sampled like that.

    Of a cut rollout it may be a beginning, and of one with reasoning that is stripped the rest.
    """
    size = len(read)
    return any(sampled[n : n + size] == read for n in range(len(sampled) - size + 1))


class _CountingWeights:
    """Passes named tensors on and counts their bytes.

    at_end: called once all were read.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]], at_end: Callable[[], None]) -> None:
        self._weights = weights
        self._at_end = at_end
        self.num_bytes = 0

    def __iter__(self):
        for name, tensor in self._weights:
            self.num_bytes += tensor.numel() * tensor.element_size()
            yield name, tensor
            del tensor
        self._at_end()
