"""`repnoise-published` against what the authors' code computed, and each fault that its docstring confesses."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from repnoise.defences import PublishedRepNoise

GOLDEN = Path(__file__).parent.parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
PROMPT, PAD = 3, 1


def golden_model(config, weights):
    # The golden models were made with pad_token_id=1, which the recorded config leaves out: nn.Embedding then gives
    # the pad token's row no gradient. Without it the gradient norm of the embedding is off by exactly that row.
    model_type = config["model_type"]
    settings = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings, pad_token_id=1))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # Tied.
    return model


@pytest.mark.parametrize("case", EXPECTED)
def test_published_loss_is_reproduced(case, monkeypatch):
    expected, tensors = EXPECTED[case], load_file(GOLDEN / f"{case}.safetensors")
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    model = golden_model(expected["config"], weights)
    batches = {
        side: {key: tensors[f"{side}/{key}"] for key in ("input_ids", "attention_mask")}
        for side in ("harmless", "harmful")
    }
    draws = iter(tensors["noise"])
    monkeypatch.setattr(torch, "randn_like", lambda activation: next(draws).to(activation))

    loss, terms = PublishedRepNoise(expected["beta"], expected["alpha"]).loss(model, **batches)
    loss.backward()

    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert terms["stability"].item() == pytest.approx(expected["harmless_ce"], rel=1e-5)
    assert terms["noise"].item() == pytest.approx(expected["noise_loss"], rel=1e-5)
    assert terms["ascent"].item() == pytest.approx(expected["harmful_term"], rel=1e-5)
    assert next(draws, None) is None
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert norms == pytest.approx(expected["gradient_norms"], rel=1e-4)


def tiny(layers=2):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            pad_token_id=PAD,
            bos_token_id=2,
            eos_token_id=PAD,
        )
    )


def batch(*rows):
    """Prompt 10 11 12 and the given completion; a 1 (pad = end of text) stands for padding and is masked."""
    ids = torch.tensor([[10, 11, 12, *row] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


HARMLESS = batch([20, 21, 22, 23], [24, 25, 26, 27])


def logit_gradients(harmful, harmless=HARMLESS):
    """Where the loss pulls on the harmless logits and on the harmful ones: (B, T) each, as booleans."""
    model, seen = tiny(), []

    def keep(_module, _inputs, logits):
        logits.retain_grad()
        seen.append(logits)

    model.lm_head.register_forward_hook(keep)
    loss, terms = PublishedRepNoise().loss(model, harmless, harmful)
    loss.backward()
    # The head is called for the harmful forward pass, for every lens, and for the harmless forward pass.
    return [logits.grad.abs().sum(-1) > 0 for logits in (seen[-1], seen[0])], terms


def test_fault_1_and_2_the_first_answer_token_has_no_gradient():
    gradients, _ = logit_gradients(batch([5, 6, 7, 8], [9, 8, 7, 6]))
    for pulled in gradients:
        assert not pulled[:, PROMPT - 1].any()  # This position decides between refusing and complying.
        assert pulled[:, PROMPT : PROMPT + 3].all()


def test_fault_1_a_coincidence_is_dropped_and_so_is_the_token_after_it():
    harmful = batch([5, 21, 7, 8], [9, 8, 7, 6])  # 21 stands in the first harmless answer at that place as well.
    gradients, _ = logit_gradients(harmful)
    for pulled in gradients:
        # 21 is no label any more; what follows it is predicted from zeroed logits.
        assert pulled[0].tolist() == [False] * 5 + [True, False]
        assert pulled[1].tolist() == [False] * 3 + [True] * 3 + [False]


def test_fault_1_padding_of_the_shorter_answer_is_trained():
    shorter = batch([5, 6, PAD, PAD], [9, 8, 7, 6])
    harmful_pulled = logit_gradients(shorter)[0][1]
    assert harmful_pulled[0, 4:6].all()  # The positions that predict its two pads.


def test_fault_2_predicting_from_zeroed_logits_costs_ln_v():
    # One answer token: its only prediction is the zeroed one.
    _, terms = logit_gradients(batch([5], [6]), batch([20], [21]))
    assert terms["stability"].item() == pytest.approx(math.log(32), rel=1e-6)


def test_fault_3_token_id_zero_is_no_label():
    with_zero = logit_gradients(batch([5, 6, 0, 8], [9, 8, 7, 6]))[0][1]
    without = logit_gradients(batch([5, 6, 7, 8], [9, 8, 7, 6]))[0][1]
    assert not with_zero[0, 4] and without[0, 4]


def test_fault_4_one_term_more_than_is_counted_and_one_added():
    """With a zero head every cross-entropy is ln V: (L + 2) of them over (L + 1), plus one."""
    for layers in (2, 3):
        model = tiny(layers)
        torch.nn.init.zeros_(model.lm_head.weight)
        _, terms = PublishedRepNoise().loss(model, HARMLESS, batch([5, 6, 7, 8], [9, 8, 7, 6]))
        expected = (layers + 2) * math.log(32) / (layers + 1) + 1
        assert terms["ascent"].item() == pytest.approx(expected, rel=1e-6)


def test_fault_6_harmless_tokens_that_the_harmful_answer_shares_are_not_kept():
    harmful = batch([20, 21, 22, 8], [24, 25, 26, 6])
    harmless_pulled = logit_gradients(harmful)[0][0]
    assert not harmless_pulled.any()
