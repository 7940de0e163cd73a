"""Cost to break: crossings by hand, survival against statsmodels, operations against what PyTorch counts."""

import math

import numpy as np
import pytest
import statsmodels.duration.api as duration
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from repnoise.cost import (
    Event,
    Ratio,
    cost_to_break,
    log_rank,
    parameters_in_products,
    ratio,
    survival,
    training_flops,
)
from repnoise.errors import RepnoiseError
from repnoise.modeling import with_lora

NAN = math.nan


def broken(*costs):
    return [Event(cost, False) for cost in costs]


def held(*costs):
    return [Event(cost, True) for cost in costs]


def test_the_cost_is_the_first_measured_point_at_the_threshold():
    curve = [(400, 0.9), (0, 0.0), (30, 0.2), (100, 0.5), (200, 0.1)]
    assert cost_to_break([curve], 0.5) == [Event(100, False, 30)]
    assert cost_to_break([curve], 0.51) == [Event(400, False, 200)]
    assert cost_to_break([curve], 0.95) == [Event(400, True, 400)]


def test_a_model_that_is_over_the_threshold_before_any_attack_costs_nothing():
    (event,) = cost_to_break([[(0, 0.7), (30, 0.1)]], 0.5)
    assert (event.cost, event.censored, event.still_below, event.spelled()) == (0, False, None, "0")


def test_where_a_low_value_is_the_harm_the_cost_is_where_it_falls_low():
    refusals = [(0, 1.0), (30, 0.6), (100, 0.2)]
    assert cost_to_break([refusals], 0.25, harm=-1.0) == [Event(100, False, 30)]
    assert cost_to_break([refusals], 0.1, harm=-1.0)[0].censored


def test_unscored_points_are_counted_and_break_nothing():
    assert cost_to_break([[(0, 0.0), (30, NAN), (100, 0.8)]], 0.5) == [Event(100, False, 0, 1)]
    assert cost_to_break([[(0, 0.0), (30, NAN)], [(30, NAN)], []], 0.5) == [
        Event(0, True, 0, 1),
        Event(0, True, None, 1),
        Event(0, True, None, 0),
    ]


def test_of_a_grid_as_one_curve_the_cheapest_attack_counts():
    weak, strong = [(0, 0.0), (100, 0.1), (1000, 0.4)], [(0, 0.0), (30, 0.2), (300, 0.8)]
    assert cost_to_break([[*weak, *strong]], 0.5) == [Event(300, False, 100)]
    assert cost_to_break([[*weak, *strong]], 0.9) == [Event(1000, True, 1000)]


@pytest.mark.parametrize("cost", [-1.0, NAN, math.inf])
def test_a_cost_that_is_none_is_refused(cost):
    with pytest.raises(ValueError, match="A cost is a number from 0"):
        cost_to_break([[(0, 0.0), (cost, 0.5)]], 0.5)


def test_survival_of_four_runs_by_hand():
    # 3/4 after the first; of the three at stake at 30 one breaks, and the one given up there still counts.
    found = survival([*broken(10, 30), *held(30, 100)])
    assert (found.n, found.broken, found.costs, found.median) == (4, 2, (10, 30, 100), 30)
    assert found.share == pytest.approx((0.75, 0.5, 0.5))
    # Greenwood: 1/(4*3) + 1/(3*2) = 1/4; on the log-log scale at 0.5.
    wide = 1.959964 * math.sqrt(0.25) / math.log(0.5)
    assert (found.low[1], found.high[1]) == pytest.approx((0.5 ** math.exp(-wide), 0.5 ** math.exp(wide)), rel=1e-5)
    assert found.typical() == Event(30, False)


def test_without_a_break_there_is_no_median_and_no_certainty():
    found = survival(held(100, 1000, 1000))
    assert (found.median, found.broken, found.most_tried) == (None, 0, 1000)
    assert set(found.share) == {1.0} and set(found.low) == {None}
    assert found.typical().spelled() == "more than 1,000"
    gone = survival(broken(0, 5))
    assert (gone.share[-1], gone.low[-1], gone.high[-1], gone.median) == (0.0, None, None, 0)
    with pytest.raises(ValueError):
        survival([])


def test_survival_and_log_rank_agree_with_statsmodels():
    generator = np.random.default_rng(3)
    costs, censored = generator.integers(1, 12, size=40), generator.random(40) < 0.4
    events = [Event(float(cost), bool(c)) for cost, c in zip(costs, censored, strict=True)]
    expected = duration.SurvfuncRight(costs, ~censored)
    steps = dict(zip(expected.surv_times, expected.surv_prob, strict=True))
    found = survival(events)
    assert {c: s for c, s in zip(found.costs, found.share, strict=True) if c in steps} == pytest.approx(steps)
    assert found.median == expected.quantile(0.5)

    compared = log_rank(events[:15], events[15:])
    chi2, p = duration.survdiff(costs, ~censored, np.arange(40) < 15)
    assert (compared.statistic**2, compared.p) == pytest.approx((chi2, p))
    assert compared.n == (15, 25) and sum(compared.broken) == (~censored).sum()


def test_groups_with_nothing_to_compare_have_no_p():
    for first, second in ((held(10, 20), held(30)), (held(5), broken(10)), (broken(5), broken(5)), ([], broken(5))):
        assert math.isnan(log_rank(first, second).p)
    assert log_rank(broken(*[0.0] * 8), held(*[1000] * 8)).p < 0.001


@pytest.mark.parametrize(
    ("event", "reference", "expected", "text"),
    [
        (broken(300), broken(30), Ratio(10.0, "about"), "10 times"),
        (held(1000), broken(30), Ratio(1000 / 30, ">="), ">= 33.3 times"),
        (broken(30), held(1000), Ratio(0.03, "<="), "<= 0.03 times"),
        (broken(0), broken(30), Ratio(0.0, "about"), "0 times"),
    ],
)
def test_a_ratio_says_what_is_known_of_it(event, reference, expected, text):
    found = ratio(event[0], reference[0])
    assert found == expected and found.spelled() == text


def test_a_ratio_of_two_unbroken_models_or_to_a_free_one_is_unknown():
    for event, reference in ((held(10), held(30)), (broken(10), broken(0)), (held(10), broken(0))):
        found = ratio(event[0], reference[0])
        assert (found.bound, found.spelled()) == ("unknown", "unknown") and math.isnan(found.value)


def test_operations_of_full_training_and_of_adapters():
    assert training_flops(1000, 50) == 6 * 1000 * 50
    # 900 frozen weights and 100 of adapters.
    assert training_flops(1000, 50, trained=100) == (4 * 900 + 6 * 100) * 50
    with pytest.raises(ValueError):
        training_flops(1000, 50, trained=1001)


def llama(**changes):
    sizes = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=6, pad_token_id=0, **changes))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=32, n_layer=4, n_head=2, n_positions=64))


def adapted():
    return with_lora(llama(), 4, 8)


@pytest.mark.parametrize("make", [llama, lambda: llama(tie_word_embeddings=True), gpt2, adapted])
def test_operations_are_those_that_pytorch_counts(make):
    model = make().train()
    tokens = torch.randint(1, 90, (3, 20))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    counts = counter.get_flop_counts()["Global"]
    # Products of weights alone: attention's own are batched ones.
    counted = sum(count for operation, count in counts.items() if str(operation) in ("aten.mm", "aten.addmm"))
    trained = parameters_in_products(model, trained=True)
    expected = training_flops(parameters_in_products(model), tokens.numel(), trained)
    # Below the first layer's adapters nothing needs a gradient: a part of one layer in six.
    assert counted == pytest.approx(expected, rel=0.06 if make is adapted else 1e-6)
    assert (trained < parameters_in_products(model)) == (make is adapted)


def test_a_tied_unembedding_counts_once_and_an_embedding_not_at_all():
    layers = 6 * (4 * 32 * 32 + 3 * 32 * 48)
    assert parameters_in_products(llama()) == parameters_in_products(llama(tie_word_embeddings=True))
    assert parameters_in_products(llama()) == layers + 90 * 32


def test_operations_of_a_mixture_of_experts_are_not_guessed():
    sizes = {"vocab_size": 90, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0))
    with pytest.raises(RepnoiseError, match="mixture of experts: measure its cost in steps, samples or tokens"):
        parameters_in_products(model)
    with pytest.raises(RepnoiseError, match=r"no matrix \(weight\)"):
        parameters_in_products(torch.nn.Conv1d(2, 2, 3))
