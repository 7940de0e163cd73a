"""What every defence owes the trainer, for each one in the dict."""

import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from repnoise.data.tokenization import right_padded
from repnoise.defences import DEFENCES, Defence
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE
from repnoise.runs import plain, restored

# PEFT asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LAYERS = 3


@pytest.fixture(params=DEFENCES)
def defence(request):
    return DEFENCES[request.param][1]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=3,
        )
    )


def batch(seed, rows=4):
    generator = torch.Generator().manual_seed(seed)
    prompt = [10, 11, 12]

    def row(index):
        completion = torch.randint(4, 48, (3 + index % 3,), generator=generator).tolist()
        return {"input_ids": prompt + completion, "labels": [IGNORE] * 3 + completion}

    return right_padded([row(index) for index in range(rows)], 1)


def loss_of(defence, model, seed=0):
    torch.manual_seed(seed)
    return defence.loss(model, batch(1), batch(2), batch(3))


def test_dict_has_a_sentence_and_a_value(defence):
    sentences = [sentence for sentence, _, _ in DEFENCES.values()]
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in sentences)
    assert isinstance(defence, Defence)


def test_loss_is_a_finite_scalar_with_detached_named_terms(defence, model):
    loss, terms = loss_of(defence, model)
    assert loss.shape == () and loss.isfinite() and loss.requires_grad
    assert "stability" in terms
    assert all(term.shape == () and term.isfinite() and not term.requires_grad for term in terms.values())


def test_every_weight_gets_a_finite_gradient(defence, model):
    loss_of(defence, model)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_seed_fixes_the_loss_and_another_changes_it_where_there_is_noise(defence, model):
    assert torch.equal(loss_of(defence, model, seed=5)[0], loss_of(defence, model, seed=5)[0])
    loss, terms = loss_of(defence, model, seed=6)
    assert torch.equal(loss_of(defence, model, seed=5)[0], loss) == ("noise" not in terms)


def test_only_torchs_default_generator_is_used(defence, model):
    state = torch.get_rng_state()
    first = defence.loss(model, batch(1), batch(2))[0]
    torch.set_rng_state(state)
    assert torch.equal(defence.loss(model, batch(1), batch(2))[0], first)


def test_no_hook_is_left(defence, model):
    def hooks():
        return sum(len(module._forward_hooks) for module in model.modules())

    model(**{name: batch(1)[name] for name in ("input_ids", "attention_mask")}, output_hidden_states=True)
    before = hooks()  # Transformers has hooks of its own, put there once.
    loss_of(defence, model)
    assert hooks() == before


def test_lora_trains_the_adapters_of_every_layer_and_nothing_else(defence, model):
    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    loss_of(defence, wrapped)[0].backward()
    trained = {name for name, p in wrapped.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert all("lora_B" in name for name in trained)  # A has no gradient while B is zero.
    assert len([name for name in trained if "mlp.down_proj" in name]) == LAYERS


def test_bf16_model_gives_a_finite_loss(defence, model):
    loss, _ = loss_of(defence, model.to(torch.bfloat16))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_descending_the_loss_lowers_it(defence, model):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = loss_of(defence, model)[0].item()
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(defence, model)[0].backward()
        optimizer.step()
    assert loss_of(defence, model)[0].item() < before


def test_what_a_run_stores_gives_the_same_defence_back(defence):
    assert restored(plain(defence), [type(defence)()]) == defence
    assert set(plain(defence)) == {"class", *asdict(defence)}


def test_a_negative_weight_is_refused(defence):
    for field in fields(defence):
        if field.name.endswith("_weight"):
            for wrong in (-1.0, float("nan"), float("inf")):
                with pytest.raises(RepnoiseError, match=f"{field.name} must be 0 or more"):
                    replace(defence, **{field.name: wrong})


def test_importing_the_method_needs_torch_and_transformers_alone():
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('peft', 'datasets', 'accelerate', 'tyro', 'rich', 'scipy', 'matplotlib', 'jinja2'):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import repnoise.losses, repnoise.hidden_states, repnoise.defences
assert 'transformers.trainer' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
