"""What is made once is kept: whole files by the fingerprint of what they were made from, verdicts one by one."""

import json
import math

import pytest

from repnoise.errors import RepnoiseError
from repnoise.evals.kept import as_row, as_score, asked_once, kept_rows
from repnoise.judges import Completion, Judge, Score


class Owl(Judge):
    """A judge that counts what it is asked, answers backwards, and may fall asleep after so many."""

    name, version, seeks = "owl", "1", "harm"

    def __init__(self, awake=99, version="1"):
        self.asked, self.awake, self.version = [], awake, version

    def verdicts(self, completions):
        for count, index in enumerate(reversed(range(len(completions)))):
            if count == self.awake:
                raise RepnoiseError("The owl sleeps.")
            self.asked.append(completions[index].text)
            value = math.nan if completions[index].text == "4" else len(self.asked[-1]) / 10
            yield index, Score(value, "safe", "wise\u2028words")


TEXTS = [Completion("Who?", text) for text in ("1", "22", "333", "4", "22")]
VALUES = [0.1, 0.2, 0.3, None, 0.2]


def values(scores):
    return [as_row(score)["value"] for score in scores]


def test_equal_texts_are_judged_once_and_scores_are_in_their_order(tmp_path):
    for path in (None, tmp_path / "deep" / "verdicts.jsonl"):
        owl = Owl()
        assert values(asked_once(owl, TEXTS, path)) == VALUES and sorted(owl.asked) == ["1", "22", "333", "4"]


def test_verdicts_that_came_before_a_failure_are_not_asked_for_again(tmp_path):
    path, first, second = tmp_path / "verdicts.jsonl", Owl(awake=2), Owl()
    with pytest.raises(RepnoiseError):
        asked_once(first, TEXTS, path)
    assert values(asked_once(second, TEXTS, path)) == VALUES
    assert sorted(first.asked + second.asked) == ["1", "22", "333", "4"]
    assert values(asked_once(Owl(awake=0), TEXTS, path)) == VALUES


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_anywhere_costs_only_its_own_verdict(tmp_path, cut):
    path, owl = tmp_path / "verdicts.jsonl", Owl()
    asked_once(Owl(), TEXTS, path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert values(asked_once(owl, TEXTS, path)) == VALUES and len(owl.asked) <= 1
    assert values(asked_once(Owl(awake=0), TEXTS, path)) == VALUES


@pytest.mark.parametrize("line", ["", "owl", "[]", "7", '{"key": []}', '{"key": "a"}', '{"key": "a", "value": null}'])
def test_lines_that_are_no_verdicts_are_as_good_as_not_there(tmp_path, line):
    path = tmp_path / "verdicts.jsonl"
    path.write_text(line + "\n")
    assert values(asked_once(Owl(), TEXTS, path)) == VALUES


def test_another_version_of_a_judge_and_another_prompt_are_asked_anew(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    asked_once(Owl(), TEXTS, path)
    newer, elsewhere = Owl(version="2"), Owl()
    asked_once(newer, TEXTS, path)
    asked_once(elsewhere, [Completion("Why?", "1")], path)
    assert (len(newer.asked), len(elsewhere.asked)) == (4, 1)


def test_a_score_survives_being_written():
    for score in (Score(0.25, "safe", "a\nb"), Score(math.nan, "unscored")):
        found = as_score(json.loads(json.dumps(as_row(score))))
        assert (found.label, found.explanation) == (score.label, score.explanation)
        assert found.value == score.value or (math.isnan(found.value) and math.isnan(score.value))


@pytest.fixture
def rows(tmp_path):
    """(what from) to the rows, and how often they were made."""
    made = []

    def rows(made_from="a"):
        def make():
            made.append(made_from)
            return [{"text": f"{made_from}\u2028{n}"} for n in range(3)]

        return kept_rows(tmp_path / "rows.jsonl", made_from, ("text",), make), len(made)

    return rows


def test_rows_are_made_once_for_the_same_inputs_and_again_for_others(rows):
    assert (rows(), rows()[1]) == (([{"text": f"a\u2028{n}"} for n in range(3)], 1), 1)
    assert rows("b")[1] == 2 and rows("a")[1] == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"text"', '"words"', 1),
        lambda text: text.partition("\n")[2],
        lambda text: text[:0],
        lambda text: "[1]\n" + text,
        lambda text: "[" * 100_000 + text,
    ],
    ids=["cut off", "another key", "no first line", "empty", "no object", "deep"],
)
def test_a_damaged_file_is_made_anew(rows, tmp_path, damage):
    whole, _ = rows()
    path = tmp_path / "rows.jsonl"
    path.write_text(damage(path.read_text()))
    assert rows() == (whole, 2) and rows() == (whole, 2)
