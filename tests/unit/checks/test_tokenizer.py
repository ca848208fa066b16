"""A folder's tokenizer against the embedding, its own file, and the other model's tokenizer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_gad.checks.found import read_models
from megatron_gad.checks.inputs import read_codecs
from megatron_gad.checks.run import check_config
from megatron_gad.checks.tokenizer import (
    FoundTokenizer,
    check_texts,
    describe_reading,
    find_difference,
)
from megatron_gad.config.run import RunConfig
from megatron_gad.data.chat import ChatCodec
from megatron_gad.types import Prompt
from tests.tiny import make_hf_folder
from tests.tiny_run import make_run
from tests.tiny_tokenizer import make_tokenizer

WORDS = ("<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(97)))
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
WORD_TEMPLATE = "{% for turn in messages %}{{ turn.content }}<eos>{% endfor %}"


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """Return a configuration without a mistake, its files beside it."""
    return make_run(tmp_path)


def problems_of(config: RunConfig) -> list[str]:
    """Return what the checks say, without the name of the student's folder."""
    named = f"student.path = {config.student.path!r}"
    return [message.removeprefix(named).lstrip(": ") for message in check_config(config, 1)]


def tokenizer_of(folder: Path, family: str, style: str = "qwen") -> FoundTokenizer:
    """Return what is found of a tokenizer in a folder of a family."""
    make_hf_folder(folder, family, vocab_size=384)
    make_tokenizer(folder, style)
    return read_models(str(folder), "").student.tokenizer


def make_word_tokenizer(folder: Path) -> None:
    """Write a tokenizer that knows words only, and joins them by spaces."""
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)
    fast.chat_template = WORD_TEMPLATE
    fast.save_pretrained(folder)


def test_ids_beyond_the_embedding_are_refused_with_both_numbers(run: RunConfig) -> None:
    folder = Path(run.student.path)
    make_hf_folder(folder, vocab_size=385, max_position_embeddings=256)
    tokenizer = make_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(folder)
    assert problems_of(run) == []  # 384 is the last of 385 rows
    make_hf_folder(folder, vocab_size=384, max_position_embeddings=256)
    two_ranks = replace(run.parallel, tensor_model_parallel_size=2)
    for config, num_ranks in ((run, 1), (replace(run, parallel=two_ranks), 2)):
        (problem,) = check_config(config, num_ranks)
        assert "has ids up to 384 ('<|new|>'), the embedding only 384 rows (vocab_size" in problem
        assert "resize_token_embeddings" in problem


def test_a_padding_token_without_a_row_is_refused(run: RunConfig) -> None:
    file = Path(run.student.path) / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"pad_token": "<|nowhere|>"}
    file.write_text(json.dumps(settings))
    (problem,) = problems_of(run)
    assert "ids up to 384 ('<|nowhere|>'), the embedding only 384 rows" in problem


def test_a_tokenizer_that_transformers_reads_as_another_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "qwen2")
    make_word_tokenizer(Path(run.student.path))
    (problem,) = problems_of(run)
    assert problem.startswith(
        "transformers reads the folder's tokenizer as Qwen2Tokenizer, which makes no ids of the "
        "text 'w0 w1 w2 "
    )
    assert "tokenizer.json by itself makes [3, 4, 5," in problem

    # The same tokenizer is read as it stands in a folder of a family without one of its own.
    make_hf_folder(run.student.path, "qwen3", vocab_size=384, max_position_embeddings=256)
    assert problems_of(run) == []


def test_other_ids_that_give_the_text_back_are_told(tmp_path: Path) -> None:
    """Qwen2's tokenizer splits numbers into digits, whatever the file says."""
    rebuilt = tokenizer_of(tmp_path / "qwen2", "qwen2")
    told = describe_reading(rebuilt)
    assert told.startswith("transformers reads '") and "gives the student other ids" in told
    assert describe_reading(tokenizer_of(tmp_path / "qwen3", "qwen3")) == ""


def codec_of_words(folder: Path, reasoning: Literal["keep", "strip"] = "keep") -> ChatCodec:
    """Return what reads and writes by words alone."""
    make_hf_folder(folder, "qwen3", vocab_size=384)
    make_word_tokenizer(folder)
    return ChatCodec.from_folder(folder, 64, 4, reasoning=reasoning)


def row(codec: ChatCodec, text: str) -> Prompt:
    """Return a row of a data set with a response."""
    ids, is_cut = codec.encode_response(text)
    return Prompt(7, ({"role": "user", "content": "w1"},), text, (4,), ids, is_cut)


def test_responses_that_the_tokenizer_does_not_know_are_refused(tmp_path: Path) -> None:
    codec = codec_of_words(tmp_path)
    good = row(codec, " w1  w2\n")  # comes back with other white space
    cut = row(codec, "w1 w2 w3 w4 w5 w6")
    assert list(check_texts(codec, [good, cut])) == []
    unknown = row(codec, "w1 northwest")
    (problem,) = check_texts(codec, [good, unknown, unknown])
    assert problem.startswith(
        "row 7: the response 'w1 northwest' becomes [4, 2, 1], which reads 'w1 <unk>'; the "
        "student's tokenizer does not know this text"
    )
    assert list(check_texts(codec, [good] * 16 + [unknown])) == []


def test_a_response_without_ids_is_refused(tmp_path: Path) -> None:
    make_hf_folder(tmp_path, vocab_size=384)
    make_word_tokenizer(tmp_path)
    codec = ChatCodec.from_folder(tmp_path, 64, 8)
    (problem,) = check_texts(codec, [row(codec, "w1 w2")])
    assert "'w1 w2' becomes [1], which reads ''" in problem


def test_stripped_reasoning_is_no_lost_text(tmp_path: Path) -> None:
    codec = codec_of_words(tmp_path, "strip")
    assert list(check_texts(codec, [row(codec, "<think> hm </think> w1 w2")])) == []


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{}", "holds a tokenizer.json that cannot be read ("),
        ("tokenizer.json", "<html>", "holds a tokenizer.json that cannot be read ("),
        ("tokenizer_config.json", "{", "has no usable tokenizer: "),
        ("generation_config.json", "", "generation_config.json is not a JSON object (Expecting"),
        ("generation_config.json", "[1]", "generation_config.json is not a JSON object ('list'"),
        (
            "generation_config.json",
            '{"eos_token_id": "</s>"}',
            "generation_config.json: eos_token_id = '</s>', and '</s>' is no id of the tokenizer,",
        ),
        (
            "generation_config.json",
            '{"eos_token_id": [2, 384]}',
            "generation_config.json: eos_token_id = [2, 384], and 384 is no id of the tokenizer, "
            "which has 0 to 383; get the file again, or remove it",
        ),
        ("chat_template.jinja", "", "has no usable tokenizer: the tokenizer in "),
        ("chat_template.jinja", "{% if %}", "the chat template is not valid jinja: "),
        ("chat_template.jinja", "{{ raise_exception('no') }}", "the chat template refuses the "),
    ],
)
def test_a_tokenizer_or_template_that_cannot_be_used_is_named(
    run: RunConfig, file: str, content: str, said: str
) -> None:
    (Path(run.student.path) / file).write_text(content)
    (problem,) = problems_of(run)
    assert problem.startswith(said)


def test_a_tokenizer_with_code_of_its_own_is_not_run(run: RunConfig) -> None:
    folder = Path(run.student.path)
    file = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (folder / "own.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')")
    problems_of(run)
    assert not (folder / "was_run").exists()


def with_discriminator(run: RunConfig, folder: Path) -> RunConfig:
    """Return a run whose discriminator is from a copy of the student's folder."""
    shutil.copytree(run.student.path, folder)
    return replace(run, discriminator=replace(run.discriminator, path=str(folder)))


def test_a_discriminator_may_have_a_tokenizer_of_its_own(run: RunConfig, tmp_path: Path) -> None:
    other = tmp_path / "other"
    both = with_discriminator(run, other)
    assert problems_of(both) == []
    assert read_codecs(both).scorer is None
    make_hf_folder(other, "llama", vocab_size=384, max_position_embeddings=256)
    plain = make_tokenizer(other, "llama3")
    assert problems_of(both) == []
    scorer = read_codecs(both).scorer
    assert scorer is not None
    ids = plain("turn left", add_special_tokens=False)["input_ids"]
    assert scorer.encode_response("turn left")[0] == (*ids, plain.get_vocab()["<|eot_id|>"])
    # Without a stage that has a discriminator, nobody reads with it.
    assert read_codecs(replace(both, stages=("seqkd",))).scorer is None


def test_a_discriminator_that_cannot_read_by_itself_is_refused(
    run: RunConfig, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    both = with_discriminator(run, other)
    (other / "chat_template.jinja").unlink()
    assert problems_of(both) == []  # it reads as the student does, and needs no template
    make_tokenizer(other, "llama3")
    make_hf_folder(other, "llama", vocab_size=383, max_position_embeddings=256)
    (problem,) = problems_of(both)
    named = f"discriminator.path = '{other}'"
    assert problem.startswith(f"{named}: the tokenizer has ids up to 383 (")
    make_hf_folder(other, "llama", vocab_size=384, max_position_embeddings=256)
    (other / "chat_template.jinja").unlink()
    (problem,) = problems_of(both)
    assert problem.startswith(f"{named}: its tokenizer makes [")
    assert "the student's [" in problem
    assert "by itself, but it has no chat template to write the prompts with: use an" in problem


def test_a_discriminator_needs_rows_for_the_tokens_it_reads_only(
    run: RunConfig, tmp_path: Path
) -> None:
    """The rows that pad an embedding are no tokens; models of one family have more or fewer."""
    make_hf_folder(run.student.path, vocab_size=400, max_position_embeddings=256)
    both = with_discriminator(run, tmp_path / "other")
    make_hf_folder(tmp_path / "other", vocab_size=384, max_position_embeddings=256)
    assert problems_of(both) == []
    (tmp_path / "other" / "tokenizer.json").unlink()
    assert problems_of(both) == []
    make_hf_folder(tmp_path / "other", vocab_size=383, max_position_embeddings=256)
    (problem,) = problems_of(both)
    assert (
        "has 383 token ids, and reads those of the student, whose tokenizer has ids up to 383"
        in (problem)
    )


def test_a_family_that_reads_the_same_file_otherwise_is_taken_by_its_file(tmp_path: Path) -> None:
    student = tokenizer_of(tmp_path / "student", "qwen3")
    same_file = tokenizer_of(tmp_path / "discriminator", "qwen2")
    assert find_difference(student, same_file) == ""


def test_the_tokens_of_the_students_template_count_as_text(tmp_path: Path) -> None:
    student = tokenizer_of(tmp_path / "student", "qwen3")
    tokenizer_of(tmp_path / "discriminator", "qwen3")
    file = tmp_path / "discriminator" / "tokenizer.json"
    swapped = file.read_text().replace("<|im_start|>", "<|x|>")
    swapped = swapped.replace("<|im_end|>", "<|im_start|>").replace("<|x|>", "<|im_end|>")
    file.write_text(swapped)
    other = read_models(str(file.parent), "").student.tokenizer
    assert find_difference(student, other) == (
        "'<|im_start|>' of the student's chat template is id 1 there and 2 here"
    )


def test_ids_that_differ_are_read_by_their_own_tokenizer_even_if_the_text_is_the_same(
    run: RunConfig, tmp_path: Path
) -> None:
    """A model knows the ids that it was trained on, whatever they decode to."""
    other = tmp_path / "other"
    both = with_discriminator(run, other)
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"] = []  # bytes alone
    file.write_text(json.dumps(tokenizer))
    assert problems_of(both) == []
    codecs = read_codecs(both)
    assert codecs.scorer is not None
    ids = [codec.encode_response("turn left")[0] for codec in (codecs.student, codecs.scorer)]
    assert len(ids[0]) < len(ids[1]) == len("turn left") + 1
    assert codecs.student.decode_response(ids[0]) == codecs.scorer.decode_response(ids[1])
