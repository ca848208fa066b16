"""What the probes make of a text, by hand."""

from megatron_gad.evaluation.probes import variants


def test_every_variant_of_a_text_of_two_paragraphs() -> None:
    found = variants("One. Two!\n\nThree?", "another answer", seed=3)
    assert found == {
        "same": "One. Two!\n\nThree?",
        "newline": "One. Two!\n\nThree?\n",
        "space": "One. Two!\n\nThree? ",
        "no_final_mark": "One. Two!\n\nThree",
        "half": "One. Two",
        "doubled": "One. Two!\n\nThree?\n\nOne. Two!\n\nThree?",
        "shuffled": "Three?\n\nOne. Two!",
        "other": "another answer",
    }


def test_the_order_changes_by_the_largest_parts_that_there_are() -> None:
    assert variants("a\nb", "", 0)["shuffled"] == "b\na"
    assert variants("a. b", "", 0)["shuffled"] == "b. a"
    assert variants("a b", "", 0)["shuffled"] == "b a"
    assert variants("a", "", 0)["shuffled"] == "a"
    assert variants("a a", "", 0)["shuffled"] == "a a"
    many = [variants("1 2 3 4 5", "", seed)["shuffled"] for seed in (1, 1, 2)]
    assert many[0] == many[1] != "1 2 3 4 5"
    assert sorted(many[0]) == sorted("1 2 3 4 5")


def test_marks_of_other_scripts_and_a_trailing_space_are_dropped() -> None:
    assert variants("ok\u3002 ", "", 0)["no_final_mark"] == "ok"
    assert variants("wait...", "", 0)["no_final_mark"] == "wait"
    assert variants("x", "", 0)["half"] == "x"
