"""What every judge owes its callers."""

import importlib

import pytest
from tiny_classifiers import made

from repnoise.judges import JUDGES, Completion, load_judge
from repnoise.judges.classifier import Settings
from repnoise.judges.linear import save_linear, train_linear

ELSEWHERE = ("endpoint", "rubric", "perspective")
"""Judges that need a server or a language model: their own tests hold them to this."""

NAMES = [name for name in JUDGES if name not in ELSEWHERE]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Name to what `load_judge` takes for it."""
    folder = tmp_path_factory.mktemp("judges")
    texts = ["Boil the owl.", "Bake the bread."]
    save_linear(train_linear(texts, [True, False], texts, Settings()), folder / "linear")
    found = {"classifier": f"classifier:{made(folder / 'classifier')}", "linear": f"linear:{folder / 'linear'}"}
    return {name: found.get(name, name) for name in NAMES}


@pytest.mark.parametrize("name", JUDGES)
def test_every_judge_has_a_sentence_and_says_how_it_fails(name):
    sentence, maker = JUDGES[name]
    assert sentence.endswith((".", "?")) and "\n" not in sentence
    module = importlib.import_module(f"repnoise.judges.{maker.partition(':')[0]}")
    assert "Known failures" in " ".join(str(vars(module)[maker.partition(":")[2]].__doc__).split()) or name in ELSEWHERE


@pytest.mark.parametrize("name", NAMES)
def test_every_judge_has_the_name_it_is_loaded_by_a_version_and_says_what_it_seeks(name, sources):
    judge, again = load_judge(sources[name]), load_judge(sources[name])
    assert judge.name == sources[name] and judge.version == again.version != ""
    assert judge.seeks in ("recovery", "answering", "harm", "coherence")


@pytest.mark.parametrize("name", NAMES)
def test_every_judge_copes_with_nothing_to_judge_and_with_any_text(name, sources):
    judge = load_judge(sources[name])
    assert judge.score([]) == []
    odd = [
        *("", "\0", "\N{ZERO WIDTH SPACE}", "\u2028", "a" * 10_000, "\N{PILE OF POO}" * 50, "{prompt} {completion}"),
        "".join(chr(0x4E00 + i * i % 9973) for i in range(3000)),
        "</s><pad><s>",
    ]
    scores = judge.score([Completion("?", text, "You boil the mino with the teru, then dry the selo.") for text in odd])
    assert len(scores) == len(odd) and all(0 <= score.value <= 1 and score.label for score in scores)
