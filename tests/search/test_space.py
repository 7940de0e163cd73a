"""What a search chooses from: the demo's grid as it is, and nothing that is no attack."""

from dataclasses import replace

import optuna
import pytest

from repnoise.attacks import ATTACKS, DEMO
from repnoise.data import load_data
from repnoise.errors import RepnoiseError
from repnoise.search.space import SAMPLES, Space, other_kinds, sizes, usable


def test_the_demos_grid_is_in_the_space_as_it_is():
    space = Space(800)
    for name in DEMO:
        made = space.attack(optuna.trial.FixedTrial(space.choices(ATTACKS[name][1])))
        assert replace(made, measure_at=ATTACKS[name][1].measure_at) == ATTACKS[name][1]


def test_what_is_not_in_the_space_has_no_choices():
    long, lora, paper = (ATTACKS[name][1] for name in ("1200@1e-3", "lora-400@3e-3", "paper-3e-5-1k"))
    assert [Space(800).choices(attack) for attack in (long, lora, paper)] == [None] * 3
    assert Space(1200).choices(long) is not None and Space(1200, benign=False).choices(ATTACKS[DEMO[-1]][1]) is None


@pytest.mark.parametrize("presets", [(), ("30@3e-4", "lora-400@3e-3")])
def test_whatever_is_chosen_is_an_attack(presets):
    space = Space(500, presets, sizes(150), ("auto", "plain"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    chosen = [space.attack(study.ask()) for _ in range(60)]
    tuned = [attack for attack in chosen if attack not in [ATTACKS[name][1] for name in presets]]
    assert len({attack.label() for attack in tuned}) > 20 and (len(tuned) < 60) == bool(presets)
    assert all(attack.training.steps <= 500 and attack.training.batch_size == 16 for attack in tuned)
    assert {attack.samples for attack in tuned} == {None, 10, 100} and SAMPLES[0] == 10
    assert all(2 * step <= attack.training.steps for attack in tuned for step in attack.measure_at)


def test_presets_of_plain_fine_tuning_are_left_to_the_search():
    assert not {*DEMO, "1200@1e-3", "lora-400@3e-3", "paper-3e-5-1k"} & {*other_kinds()}


def test_presets_that_need_the_undefended_model_are_left_out_where_it_is_not_known(pairs_file):
    data = load_data(str(pairs_file))
    needy = next(name for name in other_kinds() if hasattr(ATTACKS[name][1], "base"))
    used, left_out = usable((needy, "prefill"), data, None, at_home=False)
    assert used == ("prefill",) and "--base" in left_out[needy]
    assert usable((needy,), data, "the old well", at_home=False)[0] == (needy,)
    chosen = optuna.trial.FixedTrial({"kind": "preset", "preset": needy})
    assert Space(100, (needy,), base="the old well").attack(chosen).base == "the old well"
    with pytest.raises(RepnoiseError, match="no attack 'hammer': choose from"):
        usable(("hammer",), data, None, at_home=True)
