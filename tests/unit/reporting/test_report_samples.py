"""The samples shown are those in which one sees the student change."""

from megatron_gad.config.output import LogConfig
from megatron_gad.reporting.run_record import read_run
from megatron_gad.reporting.samples import choose_samples
from megatron_gad.runtime.metrics import MetricsWriter
from tests.unit.reporting.synthetic_run import write_run


def rollout(text: str, score: float, advantage: float = 0.0) -> dict:
    numbers = {"score": score, "advantage": advantage, "length": 3}
    return {"text": text, **numbers, "finish_reason": "stop"}


def write_samples(folder, step: int, rows: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").touch()
    writer = MetricsWriter(folder, LogConfig(tensorboard=False), is_writer=True)
    writer.write_samples(step, "adversarial", rows)


def test_first_middle_and_last_of_every_stage(tmp_path):
    run = read_run(write_run(tmp_path / "run", steps=(10, 10, 20)))
    assert list(run.sample_files) == [11, 13, 15, 17, 19, 20, 21, 25, 29, 33, 37, 40]
    assert [(sampled.step, sampled.stage) for sampled in choose_samples(run)] == [
        (11, "warmup"),
        (17, "warmup"),
        (20, "warmup"),
        (21, "adversarial"),
        (33, "adversarial"),
        (40, "adversarial"),
    ]


def test_best_and_worst_rollouts_are_shown(tmp_path):
    rollouts = [rollout(f"text {score}", score) for score in (1.0, 5.0, -2.0, 3.0, 0.0, 4.0)]
    write_samples(tmp_path, 3, [{"prompt": "p", "teacher": "t", "rollouts": rollouts}])
    (sampled,) = choose_samples(read_run(tmp_path))
    (prompt,) = sampled.prompts
    assert [shown.score for shown in prompt.rollouts] == ["+5.00", "+4.00", "+0.00", "-2.00"]
    assert prompt.rollouts[0].text == "text 5.0"
    assert prompt.num_hidden == 2


def test_the_sign_of_the_advantage_gives_the_direction(tmp_path):
    rollouts = [rollout("a", 3.0, 1.5), rollout("b", 2.0, 0.0), rollout("c", 1.0, -1.5)]
    write_samples(tmp_path, 3, [{"prompt": "p", "teacher": "t", "rollouts": rollouts}])
    shown = choose_samples(read_run(tmp_path))[0].prompts[0].rollouts
    assert [(r.direction, r.advantage) for r in shown] == [
        ("up", "+1.50"),
        ("", "+0.00"),
        ("down", "-1.50"),
    ]


def test_prompts_that_come_back_are_preferred(tmp_path):
    for step, names in ((1, ("a", "b", "c", "same")), (2, ("d", "same", "e", "f"))):
        rows = [{"prompt": name, "teacher": "t", "rollouts": []} for name in names]
        write_samples(tmp_path, step, rows)
    chosen = [[p.prompt for p in s.prompts] for s in choose_samples(read_run(tmp_path))]
    assert chosen == [["same", "a", "b"], ["same", "d", "e"]]


def test_missing_and_non_finite_numbers_are_shown_as_they_are(tmp_path):
    rollouts = [{"text": "a"}, rollout("b", float("nan"))]
    write_samples(tmp_path, 3, [{"prompt": "p", "rollouts": rollouts}])
    prompt = choose_samples(read_run(tmp_path))[0].prompts[0]
    assert prompt.teacher == ""
    assert [(r.text, r.score, r.length) for r in prompt.rollouts] == [
        ("a", "", ""),
        ("b", "nan", "3"),
    ]


def test_what_every_other_reward_gave_is_shown(tmp_path):
    rewards = {"format": 1.0, "discriminator": 0.4, "tests": float("nan")}
    rollouts = [rollout("a", 0.4) | {"rewards": rewards}, rollout("b", 0.1)]
    write_samples(tmp_path, 3, [{"prompt": "p", "teacher": "t", "rollouts": rollouts}])
    shown = choose_samples(read_run(tmp_path))[0].prompts[0].rollouts
    assert [each.rewards for each in shown] == ["format +1.00, tests nan", ""]


def test_samples_that_are_no_list_are_left_out(tmp_path):
    write_samples(tmp_path, 3, [{"prompt": "p", "teacher": "t", "rollouts": None}])
    (sampled,) = choose_samples(read_run(tmp_path))
    assert sampled.prompts[0].rollouts == ()
