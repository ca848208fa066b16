"""Which settings may change between a checkpoint and the run that goes on from it."""

import dataclasses
import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import pytest

from megatron_gad.__main__ import _obey
from megatron_gad.checks.resume import RULES, check_override, check_resume, rule_of, settings
from megatron_gad.config.command_line import CliOptions
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stage_section import stage_kinds
from megatron_gad.config.toml import read_toml
from megatron_gad.resume import load_latest, save
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.train import _write_config
from megatron_gad.training import parallel
from tests.stage_steps import take_step


@pytest.fixture(scope="module")
def configure(configure):
    """Return a function that makes the configuration of a run of two stages in a folder."""
    return lambda folder, *flags: configure(folder, "--stages", "warmup", "adversarial", *flags)


@pytest.fixture(scope="module")
def saved(configure, place: parallel.Parallel, tmp_path_factory) -> Path:
    """A run directory with a checkpoint amid the adversarial stage."""
    folder = tmp_path_factory.mktemp("saved")
    config = configure(folder)
    run = open_run(config, place)
    run.progress.stage_index = 1
    stage = begin_stage(run)
    take_step(run, stage)
    _write_config(run)
    save(run, stage)
    run.close()
    return folder


def test_every_setting_has_one_place_in_the_rules() -> None:
    listed = Counter(
        f"{section}.{name}".removeprefix(".")
        for keys in RULES.values()
        for section, names in keys.items()
        for name in names.split()
    )
    assert set(listed.values()) == {1}
    in_stages = {
        f"{kind.name}.{field.name}" for kind in stage_kinds() for field in dataclasses.fields(kind)
    }
    assert sorted({*listed} | in_stages) == sorted(settings(RunConfig()))
    assert not in_stages.intersection(listed)
    fixed = {f"{kind.name}.{name}" for kind in stage_kinds() for name in kind.fixed}
    assert fixed <= in_stages
    assert {key for key in in_stages if rule_of(key) == "refused"} == fixed


# Everything that decides what is learnt from what. A change of the rules has to be one here.
@pytest.mark.parametrize(
    ("flags", "key", "there", "here"),
    [
        (("--discriminator.score", "sum"), "discriminator.score", "'last_token'", "'sum'"),
        (("--rollout.temperature", "0.3"), "rollout.temperature", "1.0", "0.3"),
        (
            ("--gad.discriminator-loss", "cross_entropy"),
            "gad.discriminator_loss",
            "'bradley_terry'",
            "'cross_entropy'",
        ),
        (("--gad.advantage", "rloo"), "gad.advantage", "'grpo'", "'rloo'"),
        (("--adversarial.group-size", "2"), "adversarial.group_size", "4", "2"),
        (("--adversarial.prompts-per-step", "8"), "adversarial.prompts_per_step", "4", "8"),
        (("--data.max-response-tokens", "8"), "data.max_response_tokens", "24", "8"),
        (("--seed", "5"), "seed", "1234", "5"),
    ],
)
def test_what_changes_the_meaning_is_refused_with_both_values(
    configure, place, saved: Path, flags: tuple[str, ...], key: str, there: str, here: str
) -> None:
    config = configure(saved, *flags)
    (problem,) = check_resume(config).refused
    assert problem.startswith(f"{key} = {here}, but the checkpoint {saved / 'iter_0000001'}")
    assert f"was made with {there};" in problem
    kept = (saved / "config.toml").read_text()
    run = open_run(config, place)
    with pytest.raises(ValueError, match=f"accept the change with --override-config {key}"):
        load_latest(run)
    run.close()
    assert (saved / "config.toml").read_text() == kept
    accepted = check_resume(configure(saved, *flags, "--override-config", key))
    assert accepted.refused == []
    assert accepted.told == [f"{key} = {here}, was {there} in {saved / 'iter_0000001'}"]


def test_another_students_folder_is_refused(configure, assets: Path, saved: Path, tmp_path) -> None:
    shutil.copytree(assets / "student", tmp_path / "student")
    changes = check_resume(configure(saved, "--student.path", str(tmp_path / "student")))
    assert [problem.split(" = ")[0] for problem in changes.refused] == ["student.path"]


def test_a_rate_and_a_length_may_change_and_are_told(
    configure, place, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = (
        "--adversarial.student-lr",
        "5e-4",
        "--adversarial.steps",
        "9",
        "--micro-batch-size",
        "2",
    )
    run = open_run(configure(saved, *flags), place)
    with caplog.at_level(logging.WARNING):
        stage = load_latest(run)
    assert stage is not None
    told = [record.message for record in caplog.records if "another setting" in record.message]
    assert [line.split(": ")[1].split(" in ")[0] for line in told] == [
        "adversarial.steps = 9, was 5",
        "adversarial.student_lr = 0.0005, was 0.001",
    ]
    assert take_step(run, stage).metrics["student/lr"] == pytest.approx(5e-4)
    run.close()


def test_what_a_stage_to_come_will_use_may_still_change(configure, place, tmp_path: Path) -> None:
    """But not what the discriminator was already taught by."""
    config = configure(tmp_path)
    run = open_run(config, place)
    begin_stage(run)
    run.progress.iteration, run.progress.stage_index = 3, 1
    save(run)
    run.close()
    flags = ("--adversarial.group-size", "2", "--gad.advantage", "rloo")
    changes = check_resume(configure(tmp_path, *flags, "--rollout.temperature", "0.5"))
    assert changes.refused == [] and len(changes.told) == 3
    assert check_resume(configure(tmp_path, "--discriminator.score", "sum")).refused
    assert check_resume(configure(tmp_path, "--seed", "1")).refused


def test_a_copied_checkpoint_brings_its_settings(configure, saved: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("iter_0000001", "latest_checkpointed_iteration.txt"):
        source = saved / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copied / name)
    flags = ("--load", str(copied), "--gad.kl-in", "reward")
    (problem,) = check_resume(configure(tmp_path / "new", *flags)).refused
    assert problem.startswith(f"gad.kl_in = 'reward', but the checkpoint {copied / 'iter_0000001'}")


def test_a_checkpoint_that_a_crash_left_under_its_other_name_is_compared(
    configure, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "iter_0000001", tmp_path / "iter_0000001.old")
    shutil.copy(saved / "latest_checkpointed_iteration.txt", tmp_path)
    assert check_resume(configure(tmp_path, "--seed", "5")).refused


def test_the_command_and_its_plan_tell_before_anything_starts(
    configure, saved: Path, capsys: pytest.CaptureFixture
) -> None:
    plan = CliOptions(dry_run=True)
    assert _obey(configure(saved, "--gad.kl-coef", "0.1"), plan, rank=0) == 0
    assert "changed        gad.kl_coef = 0.1, was 0.001 in " in capsys.readouterr().out
    for options in (plan, CliOptions()):
        assert _obey(configure(saved, "--gad.kl-in", "reward"), options, rank=0) == 2
        assert "gad.kl_in = 'reward', but the checkpoint" in capsys.readouterr().err


def test_a_key_to_override_has_to_exist(configure, tmp_path: Path) -> None:
    (problem,) = check_override(configure(tmp_path, "--override-config", "data.path", "path"))
    assert "checkpoint.override_config has 'path'" in problem


def test_the_configuration_before_is_kept_beside_the_new_one(
    configure, place, tmp_path: Path
) -> None:
    runs = ((), (), ("--gad.kl-coef", "0.1"), ("--gad.kl-coef", "0.2"))
    for flags in runs:
        run = open_run(configure(tmp_path, *flags), place)
        _write_config(run)
        run.close()
    names = sorted(path.name for path in tmp_path.glob("config*"))
    assert names == ["config.toml", "config_0001.toml", "config_0002.toml"]
    coefficients = [read_toml(tmp_path / name, RunConfig).gad.kl_coef for name in names]
    assert coefficients == [0.2, 0.001, 0.1]


def test_a_setting_that_the_checkpoint_does_not_know_is_no_change(
    configure, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "run")
    file = tmp_path / "run" / "iter_0000001" / "run_state.json"
    state = json.loads(file.read_text())
    del state["settings"]["gad.kl_in"]
    file.write_text(json.dumps(state))
    file.with_name("files.json").unlink()  # older versions wrote down no digests
    config = configure(tmp_path / "run", "--gad.kl-in", "reward")
    assert rule_of("gad.kl_in") == "refused"
    assert not check_resume(config).refused
    assert dataclasses.asdict(config)["gad"]["kl_in"] == "reward"


def test_a_checkpoint_that_lost_a_file_is_named_with_the_one_before(
    configure, saved: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    config = configure(run)
    assert check_resume(config).refused == []
    newest = run / "iter_0000002"
    shutil.copytree(run / "iter_0000001", newest)
    (run / "latest_checkpointed_iteration.txt").write_text("2")
    weights = next(newest.rglob("*.distcp"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    name = weights.relative_to(newest)
    damage = f"{newest} holds {name} with {len(whole) - 1:,} of its {len(whole):,} bytes"
    loaded = configure(tmp_path / "new", "--load", str(run))
    (problem,) = check_resume(loaded).refused
    assert damage in problem
    assert f"write 1 into {run}/latest_checkpointed_iteration.txt" in problem
    # In place the run goes back by itself.
    changes = check_resume(config)
    assert changes.refused == []
    (told,) = changes.told
    assert damage in told and "goes back to iteration 1: 1 step(s) are taken again" in told

    next((run / "iter_0000001").rglob("*.distcp")).unlink()
    (problem,) = check_resume(config).refused
    assert damage in problem
    assert problem.endswith("if there is a copy, or begin anew with another --save")
