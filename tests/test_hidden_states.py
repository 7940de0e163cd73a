"""Every architecture is read as it reads itself; what cannot be read is refused in one sentence."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel, T5Config
from transformers import T5ForConditionalGeneration as T5

from repnoise import hidden_states, losses
from repnoise.defences import RepNoise
from repnoise.defences.base import completion_ce
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import captured, check_lens, fill, find_decoder, positions_to_read, require_gradient
from repnoise.losses import IGNORE

LAYERS, WIDTH, ROWS, LENGTH = 3, 16, 2, 6
IDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
BASE = dict(
    vocab_size=64,
    hidden_size=WIDTH,
    intermediate_size=24,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    **IDS,
)
OPT = BASE | dict(ffn_dim=24, word_embed_proj_dim=WIDTH)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
MODELS = {
    "llama": BASE,
    "llama tied": BASE | dict(tie_word_embeddings=True),
    "mistral": BASE,
    "qwen2": BASE,
    "qwen2 tied": BASE | dict(tie_word_embeddings=True),
    "qwen3": BASE | dict(head_dim=4),
    "gemma2": BASE | dict(head_dim=4, final_logit_softcapping=0.5),
    "gemma3_text": BASE | dict(head_dim=4),
    "phi3": BASE,
    "gpt2": dict(vocab_size=64, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=32, **IDS),
    "gpt2 untied": dict(
        vocab_size=64, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=32, tie_word_embeddings=False, **IDS
    ),
    "gpt_neox": BASE,
    "opt": OPT,
    "opt projected": OPT | dict(word_embed_proj_dim=8),
    "opt post-norm": OPT | dict(word_embed_proj_dim=8, do_layer_norm_before=False),
    "bloom": BASE | dict(n_layer=LAYERS, n_head=4),
    "falcon": BASE,
    "falcon sequential": BASE | dict(parallel_attn=False, new_decoder_architecture=False, alibi=True, bias=True),
    "olmo2": BASE,
    "mixtral": BASE | EXPERTS,
    "qwen3_moe": BASE | dict(head_dim=4, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=4),
    "llama4_text": BASE | dict(head_dim=4, intermediate_size_mlp=24, num_local_experts=4),
    "gpt_oss": BASE | EXPERTS | dict(head_dim=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "cohere": BASE | dict(logit_scale=0.3),
    "granite": BASE | dict(logits_scaling=3.0, residual_multiplier=0.5),
    "mpt": dict(vocab_size=64, d_model=WIDTH, n_layers=LAYERS, n_heads=4, max_seq_len=32),
    "xglm": dict(
        vocab_size=64, d_model=WIDTH, num_layers=LAYERS, attention_heads=4, ffn_dim=24, max_position_embeddings=32
    ),
}
DROPOUTS = (
    *("attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop"),
    *("resid_pdrop", "dropout", "activation_dropout"),
)


def build(name, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **(MODELS[name] | changes))
    for key in DROPOUTS:
        if hasattr(config, key):
            setattr(config, key, 0.0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # Norms at 1 and tiny weights would hide a norm that is left out or used twice.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1))
    return model


def batch():
    ids = torch.randint(3, 60, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return build(request.param)


def test_lens_at_the_last_state_equals_the_logits(model):
    decoder, inputs = find_decoder(model), batch()
    check_lens(model, **inputs)
    with captured(decoder.modules_at("residual", [-1])) as states, torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    with torch.no_grad():
        for detached in (False, True):
            ours = decoder.read_out(states[0], detached=detached)
            torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_lens", [False, True])
def test_reading_out_only_what_is_predicted_changes_neither_the_loss_nor_its_gradient(model, monkeypatch, by_lens):
    inputs = batch()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE)
    labels[:, :2] = labels[1, :3] = IGNORE  # Prompts of two lengths.
    inputs["labels"] = labels

    def computed():
        model.zero_grad()
        loss = completion_ce(model, inputs, by_lens)
        loss.backward()
        return [loss.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]

    whole = computed()
    assert positions_to_read(model, labels != IGNORE) is None
    monkeypatch.setattr(hidden_states, "FEW_LOGITS", 0)
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 2)
    some = positions_to_read(model, labels != IGNORE)
    assert some is None or some.tolist() == [2, 3, 4, 5]
    torch.testing.assert_close(computed(), whole, rtol=1e-4, atol=1e-6)
    model.zero_grad()  # Other tests have the same model.


def test_detached_lens_moves_states_and_nothing_else(model):
    decoder = find_decoder(model)
    states = torch.randn(3, WIDTH, requires_grad=True)
    decoder.read_out(states, detached=True).square().sum().backward()
    assert states.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("last", [1, 2])
def test_noise_alone_reaches_every_mlp_up_to_the_last_chosen_layer(model, last):
    decoder, inputs = find_decoder(model), batch()
    model.zero_grad()
    with captured(decoder.modules_at("mlp", [last]), rows=ROWS) as states:
        fill(model, **inputs)
    require_gradient(states, "mlp activations")
    noise, _ = RepNoise()._noise(states, inputs["input_ids"])
    noise.backward()
    for index, mlp in enumerate(decoder.modules_at("mlp", range(LAYERS))):
        reached = [p.grad is not None and p.grad.abs().sum() > 0 for p in mlp.parameters()]
        # OPT's last linear map stands for its MLP; a gate of experts may be unreached, the experts may not.
        assert any(reached) if index <= last else not any(reached)
        if index <= last and not any("expert" in name for name, _ in mlp.named_parameters()):
            assert all(reached)


@pytest.mark.parametrize("site", ["mlp", "attention", "residual"])
def test_every_site_gives_one_state_a_token(model, site):
    decoder = find_decoder(model)
    before = hooks(model)
    with captured(decoder.modules_at(site, range(LAYERS)), rows=ROWS) as states, torch.no_grad():
        fill(model, **batch())
    assert [tuple(state.shape) for state in states] == [(ROWS, LENGTH, WIDTH)] * LAYERS
    assert hooks(model) == before


def test_captured_mlp_is_the_module_output_and_flattened_rows_come_back_in_order():
    model, inputs = build("opt").eval(), batch()
    inputs["attention_mask"].fill_(1)
    mlp = find_decoder(model).modules_at("mlp", [1])
    with torch.no_grad():
        with captured(mlp, rows=ROWS) as together:
            fill(model, **inputs)
        with captured(mlp, rows=1) as alone:
            fill(model, **{name: tensor[1:] for name, tensor in inputs.items()})
    torch.testing.assert_close(together[0][1:], alone[0], rtol=1e-4, atol=1e-5)


def test_hooks_are_gone_after_an_exception():
    model = build("llama")
    modules = find_decoder(model).modules_at("mlp", range(LAYERS))
    with pytest.raises(IndexError), captured(modules):
        model(input_ids=torch.tensor([[10**6]]))
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen2 tied", "mixtral", "gpt_neox"])
@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # PEFT asks transformers by the old name,
    "ignore:The following (rank|alpha)_pattern keys:RuntimeWarning",  # and speaks of Mixtral's fused experts,
    "ignore:fan_in_fan_out is set to False:UserWarning",  # and of GPT-2's transposed linear maps.
)
def test_decoder_is_found_inside_lora_and_parallel_wrappers(name):
    model = build(name)
    bare = find_decoder(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for outer in (wrapped, nn.DataParallel(model), nn.DataParallel(wrapped)):
        decoder = find_decoder(outer)
        assert decoder.layers == bare.layers
        assert decoder.final_norm is bare.final_norm
        assert decoder.architecture == bare.architecture
    check_lens(wrapped, **batch())


@pytest.mark.parametrize(
    "model",
    [
        BertLMHeadModel(BertConfig(**BASE, is_decoder=True)),
        T5(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)),
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model("mamba", vocab_size=64, hidden_size=16, num_hidden_layers=2)
        ),
        nn.Linear(2, 2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_no_decoder_is_refused_by_name(model):
    with pytest.raises(RepnoiseError, match=type(model).__name__) as refusal:
        find_decoder(model)
    assert "\n" not in str(refusal.value)


def test_an_unknown_way_of_making_logits_is_refused(monkeypatch):
    model = build("llama")
    original = model.forward

    def scaled(*args, **kwargs):
        outputs = original(*args, **kwargs)
        outputs.logits = outputs.logits * 1.5
        return outputs

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(RepnoiseError, match="cannot read LlamaForCausalLM"):
        check_lens(model, **batch())


@pytest.mark.parametrize("hidden", ["final_norm", "logit_scale", "logit_softcap"])
def test_a_part_that_was_not_found_is_noticed(monkeypatch, hidden):
    model = build({"final_norm": "llama", "logit_scale": "cohere", "logit_softcap": "gemma2"}[hidden])
    nothing = {"final_norm": None, "logit_scale": 1.0, "logit_softcap": None}[hidden]
    without = dataclasses.replace(find_decoder(model), **{hidden: nothing})
    monkeypatch.setattr(hidden_states, "find_decoder", lambda _model: without)
    with pytest.raises(RepnoiseError, match="its logits are not"):
        check_lens(model, **batch())


def test_layers_may_be_counted_from_the_end_and_must_exist():
    decoder = find_decoder(build("llama"))
    assert decoder.choose(None) == [0, 1, 2]
    assert decoder.choose([-1, 0, 2]) == [0, 2]
    for wrong in (3, -4):
        with pytest.raises(RepnoiseError, match="layers 0 to 2"):
            decoder.choose([wrong])


def test_a_missing_site_is_named():
    decoder = find_decoder(build("llama"))
    del decoder.layers[1].self_attn
    with pytest.raises(RepnoiseError, match="LlamaForCausalLM keeps the attention of layer 1"):
        decoder.modules_at("attention", [0, 1])


def test_frozen_layers_are_told_and_evaluation_is_left_alone():
    model = build("llama")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with captured(find_decoder(model).modules_at("mlp", [0])) as states:
        fill(model, **batch())
    with pytest.raises(RepnoiseError, match="frozen layers"):
        require_gradient(states, "mlp activations")
    with torch.no_grad():
        require_gradient(states, "mlp activations")
