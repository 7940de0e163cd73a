"""What a search chooses from: the demo's grid as it is, and nothing that is no attack."""

from dataclasses import replace

import optuna
import pytest
from optuna.trial import FixedTrial

from repnoise.attacks import ATTACKS, DEMO, SUITES
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.data import load_data
from repnoise.data.records import Example
from repnoise.errors import RepnoiseError
from repnoise.search.space import Fixed, Space, is_plain, needs_base, sizes, usable

TUNED = ("benign-100-then-100@1e-3", "distil-200-then-30", "dpo-30@1e-4")


@pytest.mark.parametrize("name", [*DEMO, *TUNED])
def test_what_a_search_begins_with_is_in_its_space_as_it_is(name):
    space, wanted = Space(800, TUNED), ATTACKS[name][1]
    made = space.attack(FixedTrial(space.choices(name)))
    assert replace(made, measure_at=wanted.measure_at) == wanted
    smaller = Space(800, TUNED, fixed=Fixed(batch_size=4, precision="bf16"))
    training = replace(wanted.training, batch_size=4, precision="bf16")
    made = smaller.attack(FixedTrial(smaller.choices(name)))
    assert replace(made, measure_at=wanted.measure_at) == replace(wanted, training=training)


def test_what_is_not_in_the_space_has_no_choices():
    outside = ("1200@1e-3", "lora-400@3e-3", "paper-3e-5-1k", "prefill")
    assert [Space(800).choices(name) for name in outside] == [None] * 4
    assert Space(1200).choices("1200@1e-3") is not None
    assert Space(800, benign=False).choices("100@1e-3-half-benign") is None
    assert Space(800, templates=("plain",)).choices("30@3e-4") is None


def test_guesses_are_attacks_of_the_names_that_they_have():
    assert Space(800, benign=False).guesses() == Space(100).guesses() == {}
    for name, chosen in Space(800).guesses().items():
        assert Space(800).attack(FixedTrial(chosen)).label() == name


def test_whatever_is_chosen_is_an_attack():
    space = Space(500, (*TUNED, "prefill"), sizes(150), ("auto", "plain"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    chosen = [space.attack(study.ask()) for _ in range(200)]
    assert {type(attack) for attack in chosen} == {FineTuningAttack, *(type(ATTACKS[name][1]) for name in TUNED)}
    plain = [attack for attack in chosen if isinstance(attack, FineTuningAttack)]
    assert len({attack.label() for attack in chosen}) > 180 and all(is_plain(attack) for attack in plain)
    assert all(10 <= attack.training.steps <= 500 and attack.training.batch_size == 16 for attack in chosen)
    assert {attack.samples for attack in chosen} == {None, 10, 100}
    assert all(2 * step <= attack.training.steps for attack in plain for step in attack.measure_at)


def test_adapters_and_other_optimisers_get_the_learning_rates_they_need():
    space = Space(100)
    chosen = space.choices("100@1e-3")
    rates = [
        space.attack(FixedTrial(chosen | changed)).training.learning_rate
        for changed in ({"trained": "lora"}, {"trained": "ia3"}, {"optimizer": "sgd"}, {"rate": 0.00123456})
    ]
    assert rates == [5e-3, 3e-2, 1.0, 1.23e-3]


def test_plain_fine_tuning_is_told_from_other_kinds():
    plain = [name for name in SUITES["standard"] if is_plain(ATTACKS[name][1])]
    assert plain == [*DEMO, "lora-400@3e-3"]


def test_attacks_that_need_the_undefended_model_are_told_from_others():
    needy = {name for name, (_, attack) in ATTACKS.items() if needs_base(attack)}
    assert {"distil-200-then-30", "delta-strip-8", "interpolation-0.5"} <= needy and not needy & {*DEMO, "prefill"}


def test_presets_that_cannot_be_used_are_left_out_and_the_reason_told(pairs_file):
    data = replace(load_data(str(pairs_file)), benign=[Example("How is stew made?", "Stir it.")])
    needy = "distil-200-then-30"
    used, left_out = usable((needy, "prefill"), data, None, at_home=False)
    assert used == ("prefill",) and "--base" in left_out[needy]
    assert usable((needy,), data, "the old well", at_home=False)[0] == usable((needy,), data, None, True)[0] == (needy,)
    space = Space(100, (needy, "delta-strip-8"), base="the old well")
    assert space.preset(needy).base == space.preset("delta-strip-8").edit.base == "the old well"
    without = usable((needy,), replace(data, benign=[]), None, at_home=True)
    assert without == ((), {needy: without[1][needy]}) and "--benign FILE" in without[1][needy]
    with pytest.raises(RepnoiseError, match="no attack 'hammer': choose from"):
        usable(("hammer",), data, None, at_home=True)
