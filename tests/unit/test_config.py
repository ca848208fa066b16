"""The configuration: what the user writes is what the run gets, and every mistake is named."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_gad.config import RunConfig, load_config, to_toml
from megatron_gad.config_file import parse_toml, read_toml, section_types
from megatron_gad.plan import describe_plan
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer

ROWS = '{"content": "face west", "teacher_response": "west"}\n' * 20


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake on one rank, its files beside it."""
    folder = tmp_path_factory.mktemp("run")
    make_hf_folder(folder / "student", vocab_size=384, max_position_embeddings=256)
    make_tokenizer(folder / "student")
    (folder / "train.jsonl").write_text(ROWS)
    text = f"""
        [checkpoint]
        save = "{folder}/out"
        [data]
        path = "{folder}/train.jsonl"
        max_prompt_tokens = 128
        max_response_tokens = 64
        [student]
        path = "{folder}/student"
        [warmup]
        prompts_per_step = 8
        [adversarial]
        prompts_per_step = 8
    """
    return parse_toml(text, RunConfig, source="good.toml")


def test_reading_back_the_written_toml_gives_an_equal_configuration(good: RunConfig) -> None:
    changed = replace(
        good,
        stages=("seqkd", "adversarial"),
        seqkd=replace(good.seqkd, steps=3, lr=2.5e-5),
        warmup=replace(good.warmup, student_lr=1e-9, stop_below=0.47),
        compute=replace(good.compute, recompute_granularity="full", bf16=True),
        checkpoint=replace(good.checkpoint, export=("student", "discriminator")),
        data=replace(good.data, prompt_column='a "quoted" \\ name\n'),
    )
    for config in (RunConfig(), good, changed):
        assert parse_toml(to_toml(config), RunConfig, source="x") == config


def test_none_is_the_default_of_every_optional_field() -> None:
    # TOML has no null: a None that is not the default could not be written down.
    for section in section_types(RunConfig).values():
        for field in dataclasses.fields(section):
            assert "None" not in str(field.type) or field.default is None, field


def test_defaults_are_the_papers_recipe() -> None:
    config = RunConfig()
    assert config.stages == ("warmup", "adversarial")
    assert (config.adversarial.prompts_per_step, config.adversarial.group_size) == (256, 8)
    assert (config.student.lr, config.discriminator.lr, config.seqkd.lr) == (1e-6, 1e-6, 5e-6)
    assert (config.gad.kl_coef, config.gad.kl_estimator, config.gad.kl_in) == (1e-3, "k3", "loss")
    assert config.rollout.temperature == 0.8
    assert config.student.clip_grad == 0.2


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 7\n[compute]\nmicro_batch_size = 2\n[student]\nlr = 1\n")
    flags = "--micro-batch-size 16 --bf16 --student.adam-beta1 0.5 --stages seqkd adversarial"
    config, options = load_config([str(file), *flags.split(), "--dry-run"])
    assert config == replace(
        RunConfig(),
        stages=("seqkd", "adversarial"),
        seed=7,
        compute=replace(RunConfig().compute, micro_batch_size=16, bf16=True),
        student=replace(RunConfig().student, lr=1.0, adam_beta1=0.5),
    )
    assert (options.dry_run, options.world_size) == (True, None)
    config, _ = load_config([str(file), "--no-bf16"])
    assert config.compute.bf16 is False


def test_every_field_is_a_flag_under_megatrons_name_or_with_its_tables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config(["--help"])
    assert stop.value.code == 0
    words = set(capsys.readouterr().out.replace(",", " ").split())
    for flag in (
        *("--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--sequence-parallel"),
        *("--micro-batch-size", "--bf16", "--fp8-format", "--use-distributed-optimizer"),
        *("--recompute-granularity", "--save", "--load", "--save-interval", "--log-interval"),
    ):
        assert flag in words, flag
    for table in ("data", "student", "discriminator", "seqkd", "warmup", "gad", "rollout"):
        for field in dataclasses.fields(section_types(RunConfig)[table]):
            assert f"--{table}.{field.name.replace('_', '-')}" in words, (table, field.name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[rollout]\ntemprature = 1.0",
            "x.toml: unknown key 'temprature' in [rollout]; the nearest name is 'temperature'",
        ),
        (
            "[student]\nbf16 = true",
            "x.toml: unknown key 'bf16' in [student]; it belongs in [compute]",
        ),
        (
            "[adversarial]\ngroup-size = 4",
            "x.toml: unknown key 'group-size' in [adversarial]; the nearest name is 'group_size'",
        ),
        (
            "[studnt]\nlr = 1.0",
            "x.toml: unknown table [studnt]; the nearest name is 'student'",
        ),
        (
            "micro_batch_size = 2",
            "x.toml: unknown key 'micro_batch_size' at the top level; it belongs in [compute]",
        ),
        (
            "[data]\nzzz = 2",
            "x.toml: unknown key 'zzz' in [data]; allowed: eval_path, max_prompt_tokens, "
            "max_response_tokens, path, prompt_column, shuffle, teacher_column",
        ),
        (
            "[parallel]\ntensor_model_parallel_size = '2'",
            "x.toml: parallel.tensor_model_parallel_size = '2' is not allowed; "
            "expected a valid integer",
        ),
        (
            "[compute]\nbf16 = 1",
            "x.toml: compute.bf16 = 1 is not allowed; expected a valid boolean",
        ),
        (
            "[gad]\nadvantage = 'ppo'",
            "x.toml: gad.advantage = 'ppo' is not allowed; expected 'grpo', 'dr_grpo' or 'rloo'",
        ),
        (
            "stages = ['warmup', 'sft']",
            "x.toml: stages = 'sft' is not allowed; expected 'seqkd', 'warmup' or 'adversarial'",
        ),
        (
            "student = 'models/a'",
            "x.toml: student = 'models/a' is not a table; write [student] and its keys below",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place_and_remedy(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_toml(text, RunConfig, source="x.toml")
    assert str(error.value) == expected


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        parse_toml("sed = 1\n[log]\nlog_intervall = 2\n[rolout]\n", RunConfig, source="x")
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(ValueError) as error:
        parse_toml("seed = 1.5\n[student]\nlr = 'x'\npath = 3\n", RunConfig, source="x")
    assert len(str(error.value).splitlines()) == 3


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml cannot be read.*relative to the folder"):
        read_toml(tmp_path / "none.toml", RunConfig)
    latin = tmp_path / "latin.toml"
    latin.write_bytes('[data]\npath = "naïve"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.toml cannot be read.*utf-8"):
        read_toml(latin, RunConfig)
    broken = tmp_path / "broken.toml"
    broken.write_text("[data\npath = 1")
    with pytest.raises(ValueError, match=r"broken\.toml is not valid TOML: .*line 1"):
        read_toml(broken, RunConfig)


def test_an_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config(["--tensor-model-paralel-size", "2"])
    assert stop.value.code == 2
    assert "--tensor-model-parallel-size" in capsys.readouterr().err


def test_only_rank_zero_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        load_config(["--no-such-flag"])
    assert capsys.readouterr() == ("", "")


def test_the_file_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 7\n")
    with pytest.raises(ValueError, match="has to be the first argument"):
        load_config(["--bf16", str(file)])


def test_a_good_configuration_has_no_violations(good: RunConfig) -> None:
    assert good.check(world_size=1) == []
    assert good.check(world_size=8) == []


def changes() -> Iterator[tuple[dict[str, dict[str, object]], str]]:
    """Yield what to change in a good configuration, and the whole message that has to follow."""
    yield (
        {"adversarial": {"group_size": 1}},
        "adversarial.group_size = 1 gives zero advantages; use 2 or more, or stages = ['seqkd']",
    )
    yield (
        {"rollout": {"temperature": 0.0}},
        "rollout.temperature = 0.0 samples greedily, so that the responses to a prompt are all "
        "equal; give a value above 0, 0.8 is the paper's",
    )
    yield (
        {"rollout": {"engine": "sglang"}},
        "rollout.engine = 'sglang' is not available yet; use 'embedded'",
    )
    yield (
        {"parallel": {"sequence_parallel": True}},
        "parallel.sequence_parallel = True shards between tensor-parallel ranks, but "
        "tensor_model_parallel_size = 1; make it 2 or more, or leave sequence_parallel out",
    )
    yield (
        {"compute": {"fp8_format": "hybrid"}},
        "compute.fp8_format = 'hybrid' needs Transformer Engine; set compute.transformer_impl = "
        "'transformer_engine', or leave fp8_format out",
    )
    yield (
        {"adversarial": {"discriminator_samples": 9}},
        "adversarial.discriminator_samples = 9 is more than the adversarial.group_size = 8 samples "
        "of a prompt; make it smaller, or 0 for all",
    )
    yield (
        {"warmup": {"stop_below": 0.7}},
        "warmup.stop_below = 0.7 is not below ln 2 = 0.693, the loss of a discriminator that "
        "guesses; take 0.4 to 0.6, or 0 to end by count",
    )
    yield (
        {"warmup": {"stop_below": 0.5, "refuse_above": 0.4}},
        "warmup.refuse_above = 0.4 is below warmup.stop_below = 0.5, so a stage that ends in time "
        "is refused; make it larger, or 0",
    )
    yield (
        {"warmup": {"steps": 10}},
        "warmup.steps = 10 ends before the student learns: warmup.discriminator_only_steps = 10; "
        "make steps larger",
    )
    yield (
        {"student": {"adam_beta2": 1.0}},
        "student.adam_beta2 = 1.0 is not allowed; give a value at least 0 and below 1",
    )
    yield (
        {"discriminator": {"lr": float("nan")}},
        "discriminator.lr = nan is not allowed; give a value above 0",
    )
    yield (
        {"student": {"min_lr": 1.0}},
        "student.min_lr = 1.0 is above student.lr = 1e-06, but the rate decays to it; "
        "make it smaller",
    )
    yield (
        {"gad": {"tis_cap": 0.5}},
        "gad.tis_cap = 0.5 would scale every ratio down; give 1 or more (2 is usual), or 0 to "
        "switch the correction off",
    )
    yield (
        {"data": {"teacher_column": "content"}},
        "data.prompt_column = data.teacher_column = 'content'; prompts and teacher responses are "
        "two columns",
    )
    yield (
        {"data": {"path": "no/such.jsonl"}},
        "data.path = 'no/such.jsonl' does not exist; name a JSONL or Parquet file, a folder of "
        "them, or hub:<name>; paths are relative to the folder the command runs in",
    )
    yield (
        {"checkpoint": {"load": "no/such"}},
        "checkpoint.load = 'no/such' holds no latest_checkpointed_iteration.txt; name the run "
        "directory of a run that saved a checkpoint, or leave it out to start anew",
    )


@pytest.mark.parametrize(("change", "message"), list(changes()))
def test_each_violation_says_key_value_what_is_allowed_and_the_remedy(
    good: RunConfig, change: dict[str, dict[str, object]], message: str
) -> None:
    sections = {name: replace(getattr(good, name), **keys) for name, keys in change.items()}
    assert replace(good, **sections).check(world_size=1) == [message]


def test_all_violations_are_reported_at_once(good: RunConfig) -> None:
    bad = replace(
        good,
        stages=("adversarial", "seqkd", "warmup"),
        parallel=replace(good.parallel, tensor_model_parallel_size=3),
        compute=replace(good.compute, micro_batch_size=0),
        seqkd=replace(good.seqkd, keep_best=True, patience=2),
        adversarial=replace(good.adversarial, group_size=1, epochs=0.0),
        gad=replace(good.gad, kl_coef=-1.0, clip_range=1.5),
    )
    keys = [message.split(" ")[0] for message in bad.check(world_size=2)]
    assert keys == [
        "stages",
        "parallel.tensor_model_parallel_size",  # does not divide the ranks
        "compute.micro_batch_size",
        "parallel.tensor_model_parallel_size",  # nor the heads
        "parallel.tensor_model_parallel_size",  # nor the key-value groups
        "gad.kl_coef",
        "gad.clip_range",
        "seqkd.patience",
        "seqkd.keep_best",
        "adversarial.epochs",
        "adversarial.group_size",
    ]


def test_a_stage_that_does_not_run_is_not_checked(good: RunConfig) -> None:
    bad = replace(good, adversarial=replace(good.adversarial, group_size=1))
    assert len(bad.check(world_size=1)) == 1
    assert replace(bad, stages=("warmup",)).check(world_size=1) == []


def test_prompts_of_a_step_have_to_be_shared_evenly_by_data_ranks(good: RunConfig) -> None:
    layout = replace(good.parallel, tensor_model_parallel_size=2)
    assert replace(good, parallel=layout).check(world_size=8) == []
    assert replace(good, parallel=layout, stages=("warmup",)).check(world_size=6) == [
        "warmup.prompts_per_step = 8 has to be a positive multiple of the 3 data-parallel rank(s); "
        "the next that is one is 9"
    ]


def test_the_layout_has_to_divide_the_model(good: RunConfig) -> None:
    layout = replace(good.parallel, tensor_model_parallel_size=4, pipeline_model_parallel_size=3)
    assert replace(good, parallel=layout).check(world_size=12) == [
        "parallel.tensor_model_parallel_size = 4 does not divide num_key_value_heads = 2 of "
        f"student.path = {good.student.path!r}; use one of 1, 2",
        "parallel.pipeline_model_parallel_size = 3 does not divide num_hidden_layers = 2 of "
        f"student.path = {good.student.path!r}; use one of 1, 2",
    ]


def test_the_lengths_have_to_fit_into_the_models_context(good: RunConfig) -> None:
    longer = replace(good, data=replace(good.data, max_response_tokens=129))
    assert longer.check(world_size=1) == [
        "data.max_prompt_tokens + data.max_response_tokens = 257 exceeds the 256 positions of "
        f"student.path = {good.student.path!r}; make one of them smaller"
    ]


def test_what_a_model_folder_lacks_is_named(good: RunConfig, tmp_path: Path) -> None:
    missing = replace(good, student=replace(good.student, path=str(tmp_path / "none")))
    assert [m.split(";")[0] for m in missing.check(world_size=1)] == [
        f"student.path = '{tmp_path}/none' is not a folder"
    ]
    empty = replace(good, discriminator=replace(good.discriminator, path=str(tmp_path)))
    assert [m.split(";")[0] for m in empty.check(world_size=1)] == [
        f"discriminator.path = '{tmp_path}' holds no config.json",
        f"discriminator.path = '{tmp_path}' holds no *.safetensors",
    ]
    make_hf_folder(tmp_path / "bare", vocab_size=97, max_position_embeddings=256)
    bare = replace(good, student=replace(good.student, path=str(tmp_path / "bare")))
    assert [m.split(" (")[0] for m in bare.check(world_size=1)] == [
        f"student.path = '{tmp_path}/bare' holds no tokenizer"
    ]
    smaller = replace(good, discriminator=replace(good.discriminator, path=str(tmp_path / "bare")))
    assert [m.split(",")[0] for m in smaller.check(world_size=1)] == [
        f"discriminator.path = '{tmp_path}/bare' has 97 token ids"
    ]


def test_the_plan_tells_layout_models_stages_and_the_whole_configuration(good: RunConfig) -> None:
    config = replace(
        good,
        stages=("warmup", "adversarial"),
        parallel=replace(good.parallel, tensor_model_parallel_size=2),
        adversarial=replace(good.adversarial, steps=5, student_lr=3e-5),
    )
    plan = describe_plan(config, world_size=8)
    assert "TP 2 x PP 1 x DP 4" in plan
    # Embedding and head 384 x 32 each; a layer 32 x 32 + 32 (q), 2 x (32 x 16 + 16) (k, v),
    # 32 x 32 (o), 3 x 32 x 48 (mlp), 2 x 32 (norms); the last norm 32.
    layer = 1024 + 32 + 2 * (512 + 16) + 1024 + 3 * 1536 + 64
    student = 2 * 384 * 32 + 2 * layer + 32
    assert f"{student:,} parameters" in plan
    assert f"{student - 384 * 32 + 32:,} parameters" in plan
    assert "num_prompts 20" in plan
    assert "3 steps (1 epoch(s)) of 8 prompts x 8 samples" in plan
    assert "5 steps of 8 prompts x 8 samples, lr 3e-05, of the discriminator 1e-06" in plan
    assert plan.endswith(to_toml(config))


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "megatron_gad", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_dry_run_prints_the_plan_and_starts_nothing(good: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(good))
    done = run_command(str(file), "--dry-run", "--world-size", "2")
    assert (done.returncode, "TP 1 x PP 1 x DP 2" in done.stdout) == (0, True), done.stderr
    assert not Path(good.checkpoint.save).exists()


def test_the_command_reports_all_violations_and_exits_with_2(
    good: RunConfig, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(good))
    done = run_command(str(file), "--adversarial.group-size", "1", "--rollout.top-p", "0")
    assert done.returncode == 2
    assert "2 problem(s)" in done.stderr
    assert "adversarial.group_size = 1" in done.stderr
    assert "rollout.top_p = 0.0" in done.stderr
    assert not Path(good.checkpoint.save).exists()
