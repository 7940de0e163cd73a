"""Patching nothing changes nothing, patching everything makes the other model, on every kind of decoder."""

import copy

import pytest
import torch
from small_models import TOKENIZER, changed, fresh, hooks, rows
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from repnoise.analysis import states
from repnoise.analysis.lens import read_log_probabilities
from repnoise.analysis.patching import patching, replaced
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder
from repnoise.modeling import LoadedModel


def opt():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.0}
    return OPTForCausalLM(OPTConfig(vocab_size=len(TOKENIZER), word_embed_proj_dim=32, pad_token_id=0, **sizes))


def gpt2():
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, **ends))


MODELS = {"llama": lambda: fresh().model, "gpt2": gpt2, "opt": opt}


@pytest.fixture(params=MODELS)
def base(request):
    return LoadedModel(MODELS[request.param](), TOKENIZER, "base", 256)


@pytest.mark.parametrize("site", ["residual", "mlp", "attention"])
def test_patching_nothing_changes_nothing(base, site):
    found = patching(changed(base), base, rows(3), site, [()])
    assert found.log_probability[0] == found.receiver and found.recovered == (0.0,)


def test_patching_all_layers_restores_the_base_exactly(base, monkeypatch):
    """The two differ in their layers only, and the last state is all that the rest reads."""
    monkeypatch.setattr(states, "ROWS", 2)
    found = patching(changed(base), base, rows(5), "residual", [(0, 1), (1,)])
    assert found.donor != found.receiver
    assert found.log_probability == (found.donor, found.donor) and found.recovered == (1.0, 1.0)


@pytest.mark.parametrize("site", ["mlp", "attention"])
def test_where_only_one_part_differs_patching_its_output_is_all_it_takes(base, site):
    receiver = LoadedModel(copy.deepcopy(base.model), TOKENIZER, "receiver", 256)
    (part,) = find_decoder(receiver.model).modules_at(site, [0])
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(-2).add_(0.1)
    found = patching(receiver, base, rows(3), site)
    assert found.recovered[0] == 1 and found.recovered[1] != 1 and found.log_probability[0] == found.donor


def test_a_model_patched_into_itself_stays_as_it_is_and_has_nothing_to_recover():
    loaded = fresh()
    found = patching(loaded, loaded, rows(3))
    assert found.patched == ((0,), (1,)) and found.recovered == (None, None)
    assert set(found.log_probability) == {found.receiver} == {found.donor}


def test_an_early_patch_is_undone_by_what_lies_above_it():
    """Only layer 1 differs, so the base's state before it is the model's own, and the one after it is the base's."""
    base = fresh()
    receiver = changed(base)
    receiver.model.model.layers[0].load_state_dict(base.model.model.layers[0].state_dict())
    found = patching(receiver, base, rows(3))
    assert found.recovered == pytest.approx((0, 1), abs=1e-6)


def test_both_ends_are_the_models_own_log_probabilities():
    base, given = fresh(), rows(4)
    receiver = changed(base)
    found = patching(receiver, base, given)
    for loaded, end in ((receiver, found.receiver), (base, found.donor)):
        totals, counts = read_log_probabilities(loaded, given, [1])
        assert end.mean == pytest.approx((totals[:, 0] / counts).mean().item(), rel=1e-5)


def test_no_hook_is_left_even_when_the_pass_fails():
    loaded = fresh()
    with pytest.raises(RuntimeError), replaced([loaded.model.model.layers[0]], [torch.zeros(3, 3, 3)]):
        loaded.model(input_ids=torch.tensor([[1, 2]]))
    assert hooks(loaded.model) == 0


def test_models_of_another_shape_are_refused_in_one_sentence():
    with pytest.raises(RepnoiseError, match="--base"):
        patching(fresh(), fresh(num_hidden_layers=1), rows(2))
