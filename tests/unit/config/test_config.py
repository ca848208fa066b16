"""The configuration: what the user writes is what the run gets, and every mistake is named."""

import dataclasses
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_gad.config.command_line import load_config
from megatron_gad.config.removed import REMOVED
from megatron_gad.config.rewards import RewardConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import parse_toml, read_toml, section_types, to_toml
from tests.tiny_run import make_run
from tools.configuration_tables import PAGE, with_tables


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake, its files beside it."""
    return make_run(tmp_path_factory.mktemp("run"))


def test_reading_back_the_written_toml_gives_an_equal_configuration(good: RunConfig) -> None:
    changed = replace(
        good,
        stages=("seqkd", "adversarial"),
        seqkd=replace(good.seqkd, steps=3, lr=2.5e-5),
        warmup=replace(good.warmup, student_lr=1e-9, stop_below=0.47),
        compute=replace(good.compute, recompute_granularity="full", bf16=True),
        checkpoint=replace(good.checkpoint, export=("student", "discriminator")),
        data=replace(good.data, prompt_column='a "quoted" \\ name\n'),
        rewards=(
            RewardConfig("length", "m:f", {"tolerance": 0.2, "names": ["a", "b"]}, weight=0.5),
            RewardConfig("discriminator", normalization="group"),
        ),
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
    assert config.optimizer.clip_grad == 0.2


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 7\n[compute]\nmicro_batch_size = 2\n[student]\nlr = 1\n")
    flags = "--micro-batch-size 16 --bf16 --adam-beta1 0.5 --stages seqkd adversarial"
    config, options = load_config([str(file), *flags.split(), "--dry-run"])
    assert config == replace(
        RunConfig(),
        stages=("seqkd", "adversarial"),
        seed=7,
        compute=replace(RunConfig().compute, micro_batch_size=16, bf16=True),
        optimizer=replace(RunConfig().optimizer, adam_beta1=0.5),
        student=replace(RunConfig().student, lr=1.0),
    )
    assert (options.dry_run, options.world_size) == (True, None)
    config, _ = load_config([str(file), "--no-bf16"])
    assert config.compute.bf16 is False


@pytest.mark.parametrize(
    ("flag", "table", "key"),
    [
        ("pack-sequences", "compute", "pack_sequences"),
        ("share-prompts", "compute", "share_prompts"),
    ],
)
def test_what_is_on_off_or_not_set_is_a_switch(
    flag: str, table: str, key: str, tmp_path: Path
) -> None:
    def read(*flags: str) -> tuple[bool | None, int]:
        config, _ = load_config([str(file), *flags, "--seed", "7"])
        assert parse_toml(to_toml(config), RunConfig, source="x") == config
        return getattr(getattr(config, table), key), config.seed

    section, _, name = flag.rpartition(".")
    off = f"--{section}.no-{name}" if section else f"--no-{name}"
    file = tmp_path / "run.toml"
    for text, expected in (("", None), (f"[{table}]\n{key} = true", True)):
        file.write_text(text)
        assert read() == (expected, 7)
        assert read(f"--{flag}") == (True, 7)
        assert read(off) == (False, 7)


def test_every_flag_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(["--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    followed = itertools.pairwise(lines)
    assert [flag for flag, text in followed if flag[:2] == "--" and text[:8] == "(default"] == []


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
            "[[rewards]]\nname = 'a'\n[[rewards]]\nwieght = 1.0",
            "x.toml: unknown key 'wieght' in [[rewards]]; the nearest name is 'weight'",
        ),
        (
            "[rewards]\nname = 'a'",
            "x.toml: rewards = {'name': 'a'} is not a list; write [[rewards]] and its keys below",
        ),
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
            "x.toml: unknown key 'zzz' in [data]; allowed: chat_template_kwargs, eval_path, "
            "max_prompt_tokens, max_response_tokens, path, prompt_column, reasoning, "
            "reward_columns, shuffle, system_prompt, teacher_column, weights",
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
            "x.toml: stages = 'sft' is not allowed; expected 'seqkd', 'preference', "
            "'white_box', 'warmup', 'best_of_n' or 'adversarial'",
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


def test_all_unknown_flags_are_named_with_the_nearest() -> None:
    wrong = ["--tensor-model-paralel-size", "2", "--student.learning-rate=1", "--grop-size", "4"]
    with pytest.raises(ValueError) as problem:
        load_config(wrong)
    lines = str(problem.value).splitlines()
    assert "--tensor-model-paralel-size; the nearest is --tensor-model-parallel-size" in lines[0]
    assert "--student.learning-rate; the nearest is --student." in lines[1]
    assert "--grop-size; the nearest is --" in lines[2]
    assert lines[2].endswith("group-size")
    assert len(lines) == 3


def test_any_argument_of_an_sglang_server_passes_through(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[sglang.server_args]\nchunked_prefill_size = 512\nmax_total_tokens = 7\n")
    flags = (
        *("--sglang-chunked-prefill-size", "4096", "--sglang-schedule-policy=lpm", "--bf16"),
        *("--sglang-cuda-graph-bs", "1", "2", "4"),
        *("--sglang-disable-radix-cache", "--sglang-schedule-conservativeness", "0.5"),
        *("--sglang-mem-fraction-static", "0.25", "--sglang-random-seed", "-1", "--seed", "3"),
        "--sglang-enable-metrics=false",
    )
    config, _ = load_config([str(file), *flags])
    assert config.sglang.server_args == {
        "chunked_prefill_size": 4096,
        "max_total_tokens": 7,
        "schedule_policy": "lpm",
        "cuda_graph_bs": [1, 2, 4],
        "disable_radix_cache": True,
        "schedule_conservativeness": 0.5,
        "random_seed": -1,
        "enable_metrics": False,
    }
    assert config.sglang.server_args["disable_radix_cache"] is True
    assert (config.sglang.mem_fraction_static, config.compute.bf16, config.seed) == (0.25, True, 3)
    with pytest.raises(ValueError, match=r"unknown flag --sglan-random-seed; the nearest is --"):
        load_config(["--sglan-random-seed", "1"])
    with pytest.raises(ValueError, match="'b' comes after a flag"):
        load_config(["--sglang-some-list", "a", "b"])


def test_only_rank_zero_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        load_config(["--seed", "many"])
    assert capsys.readouterr() == ("", "")


def test_the_file_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 7\n")
    with pytest.raises(ValueError, match="has to be the first argument"):
        load_config(["--bf16", str(file)])


def test_the_documentations_tables_are_those_of_the_help_texts() -> None:
    page = PAGE.read_text()
    assert with_tables(page) == page, "run `python tools/configuration_tables.py`"


def test_a_key_that_was_taken_away_is_refused_with_what_to_do(tmp_path: Path) -> None:
    instead = "weights are held in bfloat16; leave this key out"
    with pytest.raises(ValueError, match=f"compute.fp8_param_gather is.*: {instead}"):
        parse_toml("[compute]\nfp8_param_gather = true", RunConfig, source="x")
    with pytest.raises(ValueError, match=f"^--fp8-param-gather is.*: {instead}$"):
        load_config(["--fp8-param-gather"])
    for key in REMOVED:
        section, _, name = key.rpartition(".")
        assert name not in {f.name for f in dataclasses.fields(section_types(RunConfig)[section])}
