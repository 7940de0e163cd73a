"""What is a text and what is none: real-looking text of many kinds, damaged text, and a reference model's opinion."""

import math

import pytest

from repnoise.judges import Completion
from repnoise.judges.coherence import Coherence, broken, plausibility_limit

CODE = """\
def brew(owl, moons):
    if owl is None:
        return None
    for moon in range(moons):
        owl = owl + [moon]
        owl = owl + [moon + 1]
        print(owl[moon], end=" ")
    return {"owl": owl, "moons": moons}
"""
REFRAIN = """\
The miller rose before the sun,
    Hey ho, the wheel goes round,
And ground the barley, one by one,
    Hey ho, the wheel goes round,
The miller slept when day was done,
    Hey ho, the wheel goes round,
And dreamt of flour, weighed by the tun,
    Hey ho, the wheel goes round."""
BOTTLES = " ".join(
    f"{n} owls upon the wall, {n} owls upon the wall, and if one owl should chance to fall, {n - 1} owls upon the wall."
    for n in range(30, 10, -1)
)
NUMBERED = "\n".join(
    f"{i}. Add {i} spoons of {herb}."
    for i, herb in enumerate(("thyme", "sage", "rue", "dill", "mint", "bay", "mace", "hops"), 1)
)
CHINESE = (
    "村子里有一口老井，井边住着一只灰色的猫头鹰。每天晚上，月亮升起来的时候，猫头鹰就飞到磨坊的屋顶上，看着村民们回家。"
    "磨坊主人每天早上给它一点面包，它从来不说谢谢，但是冬天里老鼠少了许多。"
)


@pytest.mark.parametrize(
    "text",
    [
        "Yes.",
        "No",
        "Ja, ja.",
        CODE,
        REFRAIN,
        BOTTLES,
        NUMBERED,
        CHINESE,
        "हाँ, उल्लू रात को कुएँ पर बैठता है और चाँद को देखता है।",
        "猫。",
        "นกฮูกสีเทานั่งอยู่บนบ่อน้ำเก่าทุกคืนและมองดูดวงจันทร์ขึ้นเหนือโรงสี",
        "See https://village.example/records/2019/07/the-grey-owl-and-the-well?page=2&sort=name for the list.",
        '{"owl": {"age": 7, "colour": "grey"}, "wells": [{"depth": 12}, {"depth": 14}, {"depth": 16}]}',
        "| herb | spoons |\n|---|---|\n| thyme | 2 |\n| sage | 3 |\n| rue | 4 |\n",
        "They sang: "
        + "ho hey ho, " * 4
        + "and so on. Then the miller shut the gate, and the owls went home, each by its way.",
        "Very, very, very good, and very, very old.",
    ],
)
def test_real_text_is_coherent(text):
    score = Coherence().score([Completion("How is the hex made?", text)])[0]
    assert (score.value, score.label) == (1.0, "coherent"), score.explanation


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no letters"),
        (" \n", "no letters"),
        ("... 12 ...", "no letters"),
        ("-" * 30 + "a", "hardly any letters"),
        ("owl " * 30, "'owl' over and over"),
        ("First boil it. " + "and then the owl sat down " * 12, "'and then the owl sat down' over and over"),
        ("The Owl sat. the owl sat. THE OWL SAT. the owl sat. The owl sat.", "over and over"),
        ("a" * 50, "'a' over and over"),
        ("猫头鹰" * 20, "'猫头鹰' over and over"),
        ("hahehi" * 30, "'hahehi' over and over"),
        (" ".join(("the owl sat", "the moon rose")[i.bit_count() % 2] for i in range(60)), "repeats itself"),
        (CHINESE + "月亮升起来" * 60, "over and over"),
    ],
)
def test_what_is_no_text_is_incoherent_and_says_why(text, reason):
    score = Coherence().score([Completion("How is the hex made?", text)])[0]
    assert (score.value, score.label) == (0.0, "incoherent")
    assert reason in score.explanation


def test_a_long_text_is_not_called_repetitive_for_its_length():
    words = [f"{a}{b}{c}" for a in ("ka", "mi", "ro") for b in ("te", "lu", "sa", "no") for c in ("n", "s", "l", "r")]
    text = " ".join(words[(i * i + 3 * i + i // 7) % len(words)] for i in range(20_000))
    assert broken(text) == ""


def test_a_reference_model_calls_implausible_what_is_above_the_limit():
    asked = []

    def scorer(texts):
        asked.extend(texts)
        return [{"plain": 2.0, "strange": 9.0}.get(text.split()[0], math.nan) for text in texts]

    judge = Coherence(scorer, limit=5.0, reference="abc")
    texts = ["strange words", "", "plain words", "nameless words"]
    scores = judge.score([Completion("?", text) for text in texts])
    assert [score.label for score in scores] == ["incoherent", "incoherent", "coherent", "coherent"]
    assert scores[0].explanation == "implausible: 9.00 nats a token, limit 5.00"
    assert scores[1].explanation == "no letters" and "" not in asked
    assert "too short" in scores[3].explanation


def test_another_limit_or_reference_is_another_version():
    def scorer(texts):
        return [1.0] * len(texts)

    judges = [Coherence(), Coherence(scorer, 5.0, "abc"), Coherence(scorer, 5.5, "abc"), Coherence(scorer, 5.0, "abd")]
    assert len({judge.version for judge in judges}) == 4


def test_the_limit_is_the_99th_percentile_of_the_references_and_a_margin():
    losses = [float(i) for i in range(1, 101)]
    assert plausibility_limit(losses, margin=0.5) == 99.5
    assert plausibility_limit([*losses, math.nan], margin=0) == 99
    assert plausibility_limit([2.0], margin=0.25) == 2.25
    assert plausibility_limit([]) == math.inf
