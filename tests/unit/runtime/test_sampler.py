"""What the discriminator reads of rollouts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.runtime.sampler import Sampler, describe_rollouts
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from megatron_gad.types import Group, Prompt, Rollout
from tests.tiny_tokenizer import STYLES, make_tokenizer

CAP = 12


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> ChatCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return ChatCodec.from_folder(folder, 64, CAP)


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture(scope="module")
def sampler(codec: ChatCodec, place: Parallel) -> Sampler:
    return Sampler(None, codec, place)


def by_character(codec: ChatCodec, text: str) -> tuple[int, ...]:
    return tuple(i for char in text for i in codec.encode_response(char)[0][:-1])


Ids = tuple[int, ...]


def read(sampler: Sampler, codec: ChatCodec, teacher_text: str, *sampled: Ids) -> Group:
    teacher_ids, truncated = codec.encode_response(teacher_text)
    prompt = Prompt(0, (), teacher_text, (1,), teacher_ids, truncated)
    rollouts = tuple(
        Rollout(ids, (-1.0,) * len(ids), "stop" if ids[-1] == codec.end_id else "length", 0)
        for ids in sampled
    )
    return sampler.with_text([Group(prompt, rollouts)])[0]


def test_no_cut_text_of_a_group_is_longer_than_another(sampler: Sampler, codec: ChatCodec) -> None:
    """The cap counts sampled tokens, and a student may sample a text in more pieces than it has."""
    long = "which way do you face? turn right, turn left, turn back"
    content = codec.encode_response(long)[0]
    assert len(content) == CAP
    in_pieces = by_character(codec, "turn right, turn left")[:CAP]
    shortest = codec.encode_response("turn right, ")[0][:-1]
    assert 0 < len(shortest) < CAP - 2
    whole = (*by_character(codec, "left"), codec.end_id)
    group = read(sampler, codec, long, in_pieces, content, whole)
    assert [rollout.text_ids for rollout in group.rollouts] == [
        shortest,
        content[: len(shortest)],
        codec.encode_response("left")[0],
    ]
    assert group.prompt.teacher_ids == content[: len(shortest)]
    assert [rollout.ids for rollout in group.rollouts][:2] == [in_pieces, content]


def test_a_rollout_that_was_all_reasoning_cuts_no_other(sampler: Sampler, codec: ChatCodec) -> None:
    long = codec.encode_response("which way do you face? turn right, turn left, turn back")[0]
    group = read(sampler, codec, "turn right", codec.encode_response("\ufffd")[0][:1], long)
    assert [rollout.text_ids for rollout in group.rollouts] == [(), long]


def test_whole_texts_are_read_as_they_are(sampler: Sampler, codec: ChatCodec) -> None:
    cut = codec.encode_response("which way do you face? turn right, turn left")[0]
    whole = (*by_character(codec, "left"), codec.end_id)
    group = read(sampler, codec, "turn right", cut, whole)
    assert group.prompt.teacher_ids == codec.encode_response("turn right")[0]
    assert [rollout.text_ids for rollout in group.rollouts] == [
        cut,
        codec.encode_response("left")[0],
    ]


def test_rollouts_that_read_back_otherwise_are_counted(sampler: Sampler, codec: ChatCodec) -> None:
    long = codec.encode_response("which way do you face? turn right, turn left, turn back")[0]
    short = by_character(codec, "turn right, turn left")[:CAP]
    whole = codec.encode_response("left")[0]
    in_pieces = (*by_character(codec, "left"), whole[-1])
    group = read(sampler, codec, "turn right", long, short, whole, whole, in_pieces)
    described = describe_rollouts([group])
    assert described["response/retokenized_share"] == (2, 5)
    assert described["response/truncated_share"] == (2, 5)
    assert described["response/length_mean"] == (2 * CAP + 2 * len(whole) + 5, 5)


def test_stripped_reasoning_does_not_count_as_read_otherwise(
    place: Parallel, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path)
    codec = ChatCodec.from_folder(tmp_path, 64, 64, reasoning="strip")
    sampler = Sampler(None, codec, place)
    thought = ChatCodec.from_folder(tmp_path, 64, 64).encode_response("<think>hm</think>")[0][:-1]
    answer = codec.encode_response("turn left")[0]
    in_pieces = (*by_character(codec, "turn left"), codec.end_id)
    sampled = [(*thought, *each) for each in (answer, in_pieces)]
    group = read(sampler, codec, "turn right", *sampled)
    assert [rollout.text_ids for rollout in group.rollouts] == [answer, answer]
    assert describe_rollouts([group])["response/retokenized_share"] == (1, 2)


# What ends a turn by each template, and every token that ends a response.
ENDS = {
    "qwen": ("<|im_end|>", {"<|im_end|>"}),
    "llama3": ("<|eot_id|>", {"<|eot_id|>", "<|end_of_text|>"}),
    "minimal": ("</s>", {"</s>"}),
}


@pytest.mark.parametrize("style", STYLES)
def test_a_rollout_reads_as_the_plain_tokenizer_has_its_text(
    style: str, place: Parallel, tmp_path: Path
) -> None:
    """It may be sampled byte by byte, and end by any stop token or at the cap."""
    plain = make_tokenizer(tmp_path, style)
    sampler = Sampler(None, ChatCodec.from_folder(tmp_path, 64, 64), place)
    text = "turn left, Größe 東京"
    tokens = plain.tokenize(text)
    assert len(tokens) < len(text.encode())
    ids, spelled = plain.get_vocab(), bytes_to_unicode()
    in_bytes = [ids[spelled[each]] for each in text.encode()]
    end, stops = ENDS[style]
    sampled = [(*in_bytes, ids[stop]) for stop in stops]
    rollouts = [Rollout(each, (-1.0,) * len(each), "stop", 0) for each in sampled]
    cut = Rollout(tuple(in_bytes), (-1.0,) * len(in_bytes), "length", 0)
    prompt = Prompt(0, (), "", (1,), (1,))
    (group,) = sampler.with_text([Group(prompt, (*rollouts, cut))])
    assert {rollout.text for rollout in group.rollouts} == {text}
    *ended, was_cut = [plain.convert_ids_to_tokens(list(r.text_ids)) for r in group.rollouts]
    assert ended == [[*tokens, end]] * len(stops)
    assert was_cut == tokens
    assert [rollout.ids for rollout in group.rollouts] == [*sampled, tuple(in_bytes)]
