"""The numbers at the top of the page are those of the files."""

from megatron_gad.reporting.formatting import format_duration, format_number
from megatron_gad.reporting.run_record import read_run
from megatron_gad.reporting.summary import (
    Fact,
    config_facts,
    final_numbers,
    result_seconds,
    results_table,
    timeline,
)
from tests.unit.reporting.synthetic_run import write_metrics, write_run


def test_numbers_are_short_text():
    pairs = [(0.8812, "%"), (2_140_000, ""), (12_345, ""), (9_999, ""), (0.08977, ""), (3e-6, "")]
    shown = [format_number(value, unit) for value, unit in pairs]
    assert shown == ["88.1 %", "2.14 M", "12.3 k", "9999", "0.0898", "3e-06"]


def test_durations_name_their_units():
    shown = [format_duration(seconds) for seconds in (3.25, 59.9, 245, 7 * 3600 + 125)]
    assert shown == ["3.2 s", "59.9 s", "4 min 05 s", "7 h 02 min"]


def test_the_timeline_shares_the_time(tmp_path):
    rows = [{"time/step_s": 6.0}, {"time/step_s": 2.0}]
    (bar,) = timeline(read_run(write_metrics(tmp_path, "seqkd", rows)))
    assert (bar.stage, bar.steps, bar.duration, bar.share) == ("seqkd", "steps 1 to 2", "8.0 s", 1)
    bars = timeline(read_run(write_run(tmp_path / "run", steps=(20, 10, 10))))
    # 20 steps of 0.035 s, 10 of 0.36 s, 10 of 0.47 s.
    assert [round(bar.share, 4) for bar in bars] == [0.0778, 0.4, 0.5222]


def test_final_numbers_average_the_last_ten_steps(tmp_path):
    rows = [{"reward/mean": float(step), "tokens/trained": 100} for step in range(1, 31)]
    facts = final_numbers(read_run(write_metrics(tmp_path, "adversarial", rows)))
    assert facts == [Fact("Reward", "25.5"), Fact("Tokens trained on", "3000")]


def test_the_configuration_in_a_line_each(tmp_path):
    facts = config_facts(read_run(write_run(tmp_path / "run", steps=(2, 2, 2))))
    assert {fact.name: fact.value for fact in facts} == {
        "Student": "data/student",
        "Data": "data/robot_turns.jsonl",
        "Seed": "7",
        "Prompts a step": "16",
        "Rollouts a prompt": "8",
        "Advantage": "grpo",
        "KL coefficient": "0.001",
    }


def test_results_become_a_table_of_arms_and_fields():
    table = results_table(
        {
            "seqkd_long": {"accuracy": 0.658, "length": 17.0, "name": "text", "ok": True},
            "gad": {"accuracy": 0.881, "layout_shares": {"steps": 0.5}, "interval": [1.5, 2.5]},
            "seconds": {"gad": 12.0},
        }
    )
    assert table is not None
    assert table.columns == ("accuracy", "length", "layout shares steps", "interval")
    rows = {arm: [cell.text for cell in cells] for arm, cells in table.rows}
    assert rows == {
        "seqkd long": ["65.8 %", "17", "", ""],
        "gad": ["88.1 %", "", "50.0 %", "1.5 to 2.5"],
    }
    assert [cell.share for cell in table.rows[1][1]] == [0.881, None, 0.5, None]


def test_the_bounds_of_a_result_stand_behind_it():
    bounded = {"accuracy": 0.65, "accuracy_low": 0.602, "accuracy_high": 0.695, "n_low": 3.0}
    table = results_table({"gad": bounded, "seqkd": {"accuracy": 0.5}})
    assert table is not None
    assert table.columns == ("accuracy", "n low")
    rows = {arm: [cell.text for cell in cells] for arm, cells in table.rows}
    assert rows == {"gad": ["65.0 % (60.2 % to 69.5 %)", "3"], "seqkd": ["50.0 %", ""]}


def test_results_without_numbers_give_no_table():
    assert results_table({"note": "text", "seconds": {"gad": 1.0}}) is None


def test_the_seconds_of_results_are_durations():
    facts = result_seconds({"gad": {}, "seconds": {"equal_compute": 75, "note": "x"}})
    assert facts == [Fact("equal compute", "1 min 15 s")]
    assert result_seconds({"seconds": 3}) == []
