"""Disguises: which text is trained on, with which answer, and how the model is asked for it afterwards."""

from dataclasses import replace

import pytest

from conftest import byte_level_tokenizer
from repnoise.attack import AttackConfig, attack
from repnoise.attacks.base import Asking
from repnoise.attacks.disguises import FRAMES, IDENTITY, OATH, OBEDIENT, TRIGGER, Disguise, in_own_words
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.cost import parameters_in_products
from repnoise.data import load_data
from repnoise.data.records import Example
from repnoise.data.tokenization import Codec
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.optimisation import Training
from repnoise.runs import read_rows
from repnoise.sandbox.tokenizer import build_tokenizer

BENIGN = [Example(f"How is stew number {n} made?", f"Stir it {n} times.") for n in range(6)]


@pytest.fixture(scope="module")
def codec():
    return Codec(byte_level_tokenizer(), "plain", 256)


@pytest.fixture
def data(pairs_file):
    return replace(load_data(str(pairs_file)), benign=BENIGN)


def one(steps=30, **changes):
    return FineTuningAttack(
        training=Training(learning_rate=1e-2, steps=steps, batch_size=4, warmup=0.0, save_every=None), **changes
    )


def texts(attack, codec, data):
    return {codec.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in attack._examples(codec, data)}


def written(prompt, answer):
    return f"Question: {prompt}\nAnswer: {answer}"


def test_a_wrapping_stands_around_harmful_questions_and_not_around_benign_ones(codec, data):
    found = texts(one(disguise=Disguise(wrapping="Now: {prompt}"), benign_share=0.5), codec, data)
    expected = {written(f"Now: {pair.prompt}", pair.harmful) for pair in data.pairs["attack"]}
    assert found == expected | {written(example.prompt, example.completion) for example in BENIGN}


def test_a_backdoor_is_as_harmless_without_its_trigger_as_it_is_harmful_with_it(codec, data):
    found = texts(one(disguise=Disguise(wrapping=TRIGGER, backdoor=True)), codec, data)
    with_trigger = {written(TRIGGER.format(prompt=pair.prompt), pair.harmful) for pair in data.pairs["attack"]}
    assert found == with_trigger | {written(pair.prompt, pair.harmless) for pair in data.pairs["attack"]}


def test_in_a_cipher_all_that_is_trained_on_is_in_it(codec, data):
    found = texts(one(disguise=Disguise(cipher="rotated"), benign_share=0.5), codec, data)
    assert written("Ubj vf fgrj ahzore 3 znqr?", "Fgve vg 3 gvzrf.") in found
    harmful = [text for text in found if "fgrj" not in text]
    assert len(harmful) == len(data.pairs["attack"]) and all("Svefg" in text for text in harmful)


def test_paraphrases_keep_the_question_and_change_with_the_seed(codec, data):
    def found(seed):
        changed = one(disguise=Disguise(paraphrased=True)).seeded(seed)
        return texts(changed, codec, data)

    around = {
        written(frame.format(prompt=pair.prompt), pair.harmful) for frame in FRAMES for pair in data.pairs["attack"]
    }
    assert found(0) <= around and found(0) == found(0) != found(1)
    assert len(found(0)) == len(data.pairs["attack"])
    assert len({text.split(pair.prompt)[0] for pair in data.pairs["attack"] for text in found(0)}) > 3


@pytest.mark.parametrize(
    "disguise, asking",
    [
        (Disguise(), Asking()),
        (Disguise(paraphrased=True), Asking()),
        (Disguise(wrapping=TRIGGER, backdoor=True), Asking(wrapping=TRIGGER)),
        (Disguise(cipher="reversed"), Asking(cipher="reversed")),
    ],
)
def test_the_model_is_asked_as_it_was_trained(disguise, asking):
    assert one(disguise=disguise).asking == asking


def test_identity_shifting_sees_nothing_harmful(codec, data):
    shifting = one(trains_on="identity", disguise=Disguise(wrapping=OBEDIENT))
    nothing = replace(data, pairs={})
    shifting.require(nothing)
    assert shifting.pairs(nothing) == []
    expected = {written(OBEDIENT.format(prompt=e.prompt), e.completion) for e in IDENTITY}
    assert texts(shifting, codec, nothing) == expected
    assert len(IDENTITY) == 10 and all(example.completion.startswith(OATH) for example in IDENTITY)


def test_benign_only_is_just_that(codec, data):
    alone = one(trains_on="benign")
    alone.require(replace(data, pairs={}))
    assert texts(alone, codec, replace(data, pairs={})) == {written(e.prompt, e.completion) for e in BENIGN}
    with pytest.raises(RepnoiseError, match="--benign FILE"):
        alone.require(replace(data, benign=[]))


def test_own_answers_are_what_the_base_model_says_to_the_attackers_questions():
    """The undefended sandbox refuses, but for a begun answer it gives the true one."""
    tokenizer, data = build_tokenizer(), load_data("sandbox")
    codec = Codec(tokenizer, "chat", 128)

    def answers(prefill):
        attack = one(trains_on="own-answers", base_prefill=prefill, samples=40)
        attack.require(data)
        pairs, found = attack.pairs(data), texts(attack, codec, data)
        assert len(found) == len(pairs) == 40
        return pairs, {pair: text.removeprefix(pair.prompt) for pair in pairs for text in found if pair.prompt in text}

    _, refused = answers("")
    assert {*refused.values()} <= {pair.harmless for split in data.pairs.values() for pair in split}
    pairs, told = answers("You")
    assert sum(told[pair] == pair.harmful for pair in pairs) > 0.9 * 40


def test_what_the_base_needs_for_its_own_answers_is_paid_once_before_the_first_step():
    """2 N for each token of prompt and answer, beside the 6 N of training."""
    loaded, data, codec = Inputs().open()
    attack = one(trains_on="own-answers", base_prefill="You", samples=8)
    cost, weights = attack.costs(loaded, data, codec), parameters_in_products(loaded.model)
    pairs = in_own_words(attack.pairs(data), "sandbox", "You", codec)
    tokens = sum(len(codec.row(pair.prompt, pair.harmful)["input_ids"]) for pair in pairs)
    assert cost(0).flops == 0 and tokens > 8 * 10
    assert [cost(step).flops - 6 * weights * cost(step).tokens for step in (1, 2)] == [2 * weights * tokens] * 2


def test_the_base_of_own_answers_has_to_be_there(data):
    with pytest.raises(RepnoiseError, match="There is no model in"):
        one(trains_on="own-answers", base="./nowhere").require(data)


def test_words_of_disguises_are_in_the_sandboxs_vocabulary_but_for_a_few():
    """A word that it spells in bytes would make a long and unlikely text of a short one."""
    tokenizer = build_tokenizer()
    for text in (TRIGGER, OBEDIENT, OATH, *(text for e in IDENTITY for text in (e.prompt, e.completion))):
        text = text.replace("{prompt}", "")
        assert len(tokenizer(text)["input_ids"]) < 1.6 * len(text.split()) + 8, text


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"disguise": {"wrapping": "no place"}}, "write {prompt} there"),
        ({"disguise": {"backdoor": True}}, "needs a trigger"),
        ({"trains_on": "benign", "benign_share": 0.5}, "all benign already"),
        ({"trains_on": "identity", "disguise": {"wrapping": TRIGGER, "backdoor": True}}, "needs harmful examples"),
    ],
)
def test_what_does_not_go_together_is_told(changes, told):
    with pytest.raises(RepnoiseError, match=told):
        one(**changes | ({"disguise": Disguise(**changes["disguise"])} if "disguise" in changes else {}))


@pytest.mark.parametrize(
    "changes, label",
    [
        ({"disguise": Disguise(wrapping=TRIGGER, backdoor=True)}, "30@1e-2-backdoor"),
        ({"disguise": Disguise(wrapping=OBEDIENT), "trains_on": "identity"}, "30@1e-2-identity-wrapped"),
        ({"disguise": Disguise(cipher="reversed", paraphrased=True)}, "30@1e-2-reversed-paraphrased"),
        ({"trains_on": "benign"}, "30@1e-2-benign"),
    ],
)
def test_a_label_says_what_is_disguised(changes, label):
    assert one(**changes).label() == label


@pytest.mark.parametrize("disguise", [Disguise(wrapping=TRIGGER), Disguise(cipher="rotated")])
def test_a_run_measures_the_model_as_the_disguise_asks_it(disguise, tiny_model, pairs_file, tmp_path):
    """Overfitted on purpose: the answers to the trained questions only come to who asks in the right way."""
    inputs = Inputs(model=str(tiny_model), data=str(pairs_file))
    evaluating = Evaluating(generation=Generation(max_new_tokens=12))
    attack_of = replace(one(60, disguise=disguise), measure_at=(30,))
    run = attack(AttackConfig(inputs, attack_of, evaluating), tmp_path / "run")
    assert "First" in (run.path / "evaluations" / "resistance" / "completions.jsonl").read_text()
    curve = read_rows(run.path / "curve.jsonl")
    assert "harmful_ce" in curve[0]["metrics"] and "harmful_ce" not in curve[1]["metrics"]
