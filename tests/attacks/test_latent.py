"""A latent perturbation: where it is added, how long it may be, and that no weight changes."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import CHAT_TEMPLATE, byte_level_tokenizer, tiny_llama
from repnoise.attack import AttackConfig, attack
from repnoise.attacks.latent import LatentPerturbation, attach, bound
from repnoise.cost import parameters_in_products
from repnoise.data import load_data
from repnoise.data.collators import ExampleCollator
from repnoise.data.tokenization import Codec, left_padded
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation, generate
from repnoise.evaluate import Evaluating
from repnoise.hidden_states import captured, find_decoder
from repnoise.inputs import Inputs
from repnoise.losses import IGNORE
from repnoise.modeling import LoadedModel
from repnoise.optimisation import Training
from repnoise.runs import plain, read_rows, restored

TOKENIZER = byte_level_tokenizer(CHAT_TEMPLATE)
CODEC = Codec(TOKENIZER, "chat", 256)


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(TOKENIZER),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=256,
        initializer_range=0.5,
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    return GPT2LMHeadModel(config)


# Weights so large that what stands at one token matters at the others.
MODELS = {"llama": lambda: tiny_llama(TOKENIZER, initializer_range=0.5), "gpt2": tiny_gpt2}


@pytest.fixture(params=MODELS)
def loaded(request):
    return LoadedModel(MODELS[request.param](), TOKENIZER, "model", 256)


@pytest.fixture
def data(pairs_file):
    return load_data(str(pairs_file))


def quick(**changes):
    return Training(**{"learning_rate": 3e-2, "steps": 3, "batch_size": 4, "warmup": 0.0, "save_every": None} | changes)


def batch_of(pairs):
    return ExampleCollator(TOKENIZER.pad_token_id)([CODEC.row(pair.prompt, pair.harmful) for pair in pairs])


def states(model, layer, batch):
    with torch.no_grad(), captured(find_decoder(model).modules_at("residual", [layer]), len(batch["input_ids"])) as out:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return out[0]


@pytest.mark.parametrize("padded", ["right", "left"])
def test_it_is_added_to_the_first_tokens_that_are_no_padding(loaded, padded, data):
    """In units of the mean length of the states at a position, worked out here from the states of the bare model."""
    pairs = sorted(data.pairs["attack"], key=lambda pair: len(pair.prompt + pair.harmful))[::4]
    sample = batch_of(pairs)
    ids = [row[mask.bool()].tolist() for row, mask in zip(sample["input_ids"], sample["attention_mask"], strict=True)]
    assert len({len(own) for own in ids}) > 1, "some rows have to be padded"
    batch = sample if padded == "right" else left_padded(ids, TOKENIZER.pad_token_id)
    loaded.model.eval()
    usual = states(loaded.model, 0, sample)[:, :2].norm(dim=-1).mean(0)
    before = states(loaded.model, 0, batch)
    perturbation = attach(loaded.model, 0, 2, sample)
    with torch.no_grad():
        perturbation[0, 3], perturbation[1, 5] = 0.5, -2.0
    moved = states(loaded.model, 0, batch) - before
    expected = torch.zeros_like(moved)
    for row, own in enumerate(ids):
        first = 0 if padded == "right" else batch["input_ids"].shape[1] - len(own)
        expected[row, first, 3], expected[row, first + 1, 5] = 0.5 * usual[0], -2.0 * usual[1]
    seen = batch["attention_mask"].bool()
    assert torch.allclose(moved[seen], expected[seen], atol=1e-5)


def test_text_is_generated_with_the_perturbation_where_it_was_trained(loaded, data):
    """Token by token with a cache, alone and in a padded batch, as by the most likely token of full forward passes."""
    pairs = sorted(data.pairs["attack"], key=lambda pair: len(CODEC.prompt_ids(pair.prompt)))
    prompts = [pairs[0].prompt, pairs[-1].prompt]
    bare = generate(loaded, CODEC, prompts, Generation(max_new_tokens=5))
    perturbation = attach(loaded.model, 0, 3, batch_of(pairs[:4]))
    with torch.no_grad():
        torch.manual_seed(1)
        perturbation.normal_(std=10.0)
    found = generate(loaded, CODEC, prompts, Generation(max_new_tokens=5))
    assert found != bare
    for prompt, text in zip(prompts, found, strict=True):
        ids = CODEC.prompt_ids(prompt)
        start = len(ids)
        for _ in range(5):
            with torch.no_grad():
                ids = [*ids, loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()]
        assert text == TOKENIZER.decode(ids[start:], skip_special_tokens=True)
        assert generate(loaded, CODEC, [prompt], Generation(max_new_tokens=5)) == [text]


def test_the_weights_stay_bit_for_bit_and_the_loss_falls(loaded, data, tmp_path):
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    every_pair = len(data.pairs["attack"])
    way = LatentPerturbation(training=quick(steps=20, learning_rate=0.1, batch_size=every_pair), epsilon=2.0)
    seen = []
    found = way.apply(loaded, data, CODEC, tmp_path / "c", on_step=lambda step, model: seen.append((step, type(model))))
    after = found.model.state_dict()
    assert after.keys() - before.keys() == {"latent_perturbation"}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert [step for step, _ in seen] == list(range(21))
    assert found.log[-1]["step"] == 20 and found.log[-1]["loss"] < found.log[0]["loss"] - 0.05
    assert not (tmp_path / "c").exists(), "no checkpoints"


def test_no_vector_is_ever_longer_than_epsilon(data, tmp_path):
    loaded, longest = LoadedModel(tiny_llama(TOKENIZER), TOKENIZER, "model", 256), []

    def measure(step, model):
        longest.append(model.latent_perturbation.norm(dim=-1).max().item())

    LatentPerturbation(training=quick(steps=10), epsilon=0.1).apply(loaded, data, CODEC, tmp_path / "c", False, measure)
    assert longest[0] == 0 and max(longest) <= 0.1 + 1e-6 and longest[-1] > 0.09


def test_only_vectors_that_are_too_long_are_scaled_down():
    vectors = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    bound(vectors, 1.0)
    assert torch.allclose(vectors, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_no_token_of_an_answer_is_perturbed(data, tmp_path):
    loaded = LoadedModel(tiny_llama(TOKENIZER), TOKENIZER, "model", 256)
    rows = [CODEC.row(pair.prompt, pair.harmful) for pair in data.pairs["attack"]]
    shortest = min(row["labels"].count(IGNORE) for row in rows)
    model = LatentPerturbation(training=quick(), tokens=500).apply(loaded, data, CODEC, tmp_path / "c").model
    assert len(model.latent_perturbation) == shortest


def test_the_same_seed_gives_the_same_perturbation_and_another_does_not(data, tmp_path):
    def found(seed):
        loaded = LoadedModel(tiny_llama(TOKENIZER), TOKENIZER, "model", 256)
        way = LatentPerturbation(training=quick()).seeded(seed)
        return way.apply(loaded, data, CODEC, tmp_path / "c").model.latent_perturbation

    assert torch.equal(found(0), found(0)) and not torch.equal(found(0), found(1))


def test_the_cost_is_that_of_forward_and_backward_without_gradients_of_weights(loaded, data):
    way = LatentPerturbation(training=quick(batch_size=2))
    cost = way.costs(loaded, data, CODEC)(2)
    tokens = sum(len(row["input_ids"]) for row in way._examples(CODEC, data)[:4])
    assert (cost.steps, cost.samples, cost.tokens) == (2, 4, tokens)
    assert cost.flops == 4 * parameters_in_products(loaded.model) * tokens


def test_an_attack_measures_the_perturbed_model_along_the_way(tiny_chat_model, pairs_file, tmp_path):
    way = LatentPerturbation(training=quick(steps=6), epsilon=2.0, measure_at=(3,))
    evaluating = Evaluating(generation=Generation(max_new_tokens=4))
    run = attack(
        AttackConfig(Inputs(model=str(tiny_chat_model), data=str(pairs_file)), way, evaluating), tmp_path / "r"
    )
    assert not run.model.exists()
    curve = read_rows(run.path / "curve.jsonl")
    assert [row["step"] for row in curve] == [0, 3, 6]
    losses = [row["metrics"]["harmful_ce"]["value"] for row in curve]
    assert losses[2] < losses[1] < losses[0], "likelihoods are those of the perturbed model, too"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tokens": 0}, "tokens"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"training": quick(lora_rank=2)}, "leave --lora-rank out"),
    ],
)
def test_impossible_settings_are_told(settings, message):
    with pytest.raises(RepnoiseError, match=message):
        LatentPerturbation(**settings)


def test_what_is_missing_is_told(data, tmp_path):
    assert LatentPerturbation(split="defence").pairs(data)[0] in data.pairs["defence"]
    with pytest.raises(RepnoiseError, match="no pairs for the attacker"):
        LatentPerturbation().require(replace(data, pairs=data.pairs | {"attack": []}))
    loaded = LoadedModel(tiny_llama(TOKENIZER), TOKENIZER, "model", 256)
    with pytest.raises(RepnoiseError, match="no layer 5: this model has layers 0 to 1"):
        LatentPerturbation(training=quick(), layer=5).apply(loaded, data, CODEC, tmp_path / "c")


def test_a_label_says_how_strong_it_is():
    way = LatentPerturbation(training=quick(), epsilon=0.5, layer=-2)
    assert way.label() == "latent-3-epsilon-0.5-layer--2"
    assert restored(plain(way), [way]) == way


@pytest.mark.slow
def test_it_recovers_most_answers_of_the_undefended_sandbox(tmp_path):
    evaluating = Evaluating(evaluations=("resistance",), likelihood=False)
    run = attack(AttackConfig(Inputs("sandbox"), LatentPerturbation(layer=1, tokens=4), evaluating), tmp_path / "run")
    assert run.record["metrics"]["recovered"]["value"] > 0.7
