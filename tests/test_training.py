"""The trainer: what it minimises, what it logs, what it keeps in which precision, and how it stops."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from repnoise.data.collators import ExampleCollator, PairCollator
from repnoise.data.tokenization import Codec
from repnoise.defences import RepNoise
from repnoise.defences.base import completion_ce
from repnoise.errors import RepnoiseError
from repnoise.modeling import load, merged, save
from repnoise.optimisation import Training
from repnoise.training import newest_checkpoint, train


def pair_objective(model, batch):
    return RepNoise().loss(model, **batch)


def line(seed=0):
    """The smallest model there is, for what does not depend on the model."""
    torch.manual_seed(seed)
    return nn.Linear(2, 1)


def squares(model, batch):
    loss = model(batch["x"]).square().mean()
    return loss, {"square": loss.detach()}


def points(count, seed=1):
    return list(torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)))


def stacked(rows):
    return {"x": torch.stack(rows)}


def fit(folder, training, model=None, objective=squares, **options):
    model = model or line()
    return train(model, points(training.examples_seen(0)), stacked, objective, training, folder, **options)


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left | right)


def by_hand(model, objective, batches, learning_rate):
    """One step of plain gradient descent on the mean of the batches' losses, and that mean."""
    losses = [objective(model, batch)[0] for batch in batches]
    mean = torch.stack(losses).mean()
    mean.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= learning_rate * parameter.grad
    return mean.item()


def assert_close(model, other):
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, other.state_dict()[name], rtol=1e-5, atol=1e-7)


PLAIN_STEP = Training(
    learning_rate=0.1, steps=1, batch_size=4, optimizer="sgd", schedule="constant", warmup=0, max_grad_norm=0
)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_accumulation_takes_the_mean_of_the_losses_of_several_batches(accumulation, tiny_model, pair_rows, tmp_path):
    ours, other = load(str(tiny_model)), load(str(tiny_model))
    training = replace(PLAIN_STEP, accumulation=accumulation)
    rows, collator = pair_rows(ours, training.examples_seen(0)), PairCollator(ours.tokenizer.pad_token_id)
    _, log = train(ours.model, rows, collator, pair_objective, training, tmp_path / "checkpoints")
    torch.manual_seed(training.seed)
    torch.empty((), dtype=torch.int64).random_()  # What a data loader draws when it starts.
    batches = [collator(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    mean = by_hand(other.model.train(), pair_objective, batches, training.learning_rate)
    assert log[0]["loss"] == pytest.approx(mean, rel=1e-5)
    assert_close(ours.model, other.model)


def test_accumulated_fine_tuning_weighs_batches_alike_however_many_tokens_they_have(tiny_model, tmp_path):
    ours, other = load(str(tiny_model)), load(str(tiny_model))
    codec, collator = Codec(ours.tokenizer, "plain"), ExampleCollator(ours.tokenizer.pad_token_id)
    rows = [codec.row("How?", "Boil it." * (1 + 10 * (number // 4))) for number in range(8)]
    training = replace(PLAIN_STEP, accumulation=2)

    def objective(model, batch):
        return completion_ce(model, batch), {}

    _, log = train(ours.model, rows, collator, objective, training, tmp_path / "checkpoints")
    batches = [collator(rows[:4]), collator(rows[4:])]
    assert log[0]["loss"] == pytest.approx(by_hand(other.model, objective, batches, 0.1), rel=1e-5)
    assert_close(ours.model, other.model)


def test_clipping_scales_the_gradient_down_to_its_limit(tmp_path):
    training = replace(PLAIN_STEP, max_grad_norm=0.01)
    start, (model, log) = line(), fit(tmp_path / "checkpoints", training)
    moved = torch.cat([(a - b).flatten() for a, b in zip(start.parameters(), model.parameters(), strict=True)]).norm()
    assert log[0]["grad_norm"] > 0.01
    assert moved.item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_bf16_computes_in_bf16_and_keeps_small_updates_in_fp32_weights(tiny_model, pair_rows, tmp_path):
    loaded = load(str(tiny_model))
    training = Training(learning_rate=1e-6, steps=2, batch_size=4, precision="bf16", warmup=0, save_every=None)
    start, dtypes = weights(loaded.model), set()

    def objective(model, batch):
        ids = batch["harmless"]["input_ids"]
        dtypes.add(model(input_ids=ids).logits.dtype)
        return pair_objective(model, batch)

    collator = PairCollator(loaded.tokenizer.pad_token_id)
    train(loaded.model, pair_rows(loaded, 8), collator, objective, training, tmp_path / "checkpoints")
    assert dtypes == {torch.bfloat16}
    for name, weight in loaded.model.state_dict().items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, start[name]), name
    # In bf16 itself, updates of a millionth would be lost: there, most weights have not moved.
    head = loaded.model.lm_head.weight.detach()
    assert (head.bfloat16() == start["lm_head.weight"].bfloat16()).float().mean() > 0.9
    assert loaded.model(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.float32


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_adapters_alone_and_the_merged_model_is_the_adapted_one(
    checkpointing, tiny_model, pair_rows, tmp_path
):
    loaded = load(str(tiny_model))
    training = Training(
        learning_rate=1e-2, steps=3, batch_size=4, lora_rank=2, gradient_checkpointing=checkpointing, save_every=None
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    before, start = loaded.model(input_ids=ids).logits, weights(loaded.model)
    collator = PairCollator(loaded.tokenizer.pad_token_id)
    model, _ = train(loaded.model, pair_rows(loaded, 12), collator, pair_objective, training, tmp_path / "checkpoints")
    model.eval()
    adapted = model(input_ids=ids).logits
    base = {name.replace(".base_layer", ""): weight for name, weight in model.get_base_model().state_dict().items()}
    assert all(torch.equal(base[name], weight) for name, weight in start.items())

    save(merged(model), loaded.tokenizer, tmp_path / "merged")
    after = load(str(tmp_path / "merged")).model(input_ids=ids).logits
    torch.testing.assert_close(after, adapted, rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_checkpointing_changes_no_term_and_no_weight_and_is_off_again_afterwards(tiny_model, pair_rows, tmp_path):
    results = []
    for checkpointing in (False, True):
        loaded = load(str(tiny_model))
        training = Training(
            learning_rate=1e-3, steps=3, batch_size=4, gradient_checkpointing=checkpointing, save_every=None
        )
        collator = PairCollator(loaded.tokenizer.pad_token_id)
        model, log = train(loaded.model, pair_rows(loaded, 12), collator, pair_objective, training, tmp_path / "c")
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        results.append((weights(model), log))
    (plain, plain_log), (recomputed, recomputed_log) = results
    assert recomputed_log == plain_log
    assert {"stability", "noise", "noise_floor", "ascent"} <= plain_log[0].keys()
    assert same(plain, recomputed)


def test_the_log_has_every_term_averaged_since_the_line_before_and_the_last_step(tmp_path):
    seen = []

    def counted(model, batch):
        seen.append(float(len(seen)))
        return squares(model, batch)[0], {"number": torch.tensor(seen[-1])}

    _, log = fit(tmp_path / "c", Training(steps=203, batch_size=2, save_every=None), objective=counted)
    steps = [row["step"] for row in log]
    assert steps == [1, *range(2, 203, 2), 203]
    for earlier, row in zip([0, *steps], log, strict=False):
        since = seen[earlier : row["step"]]
        assert row["number"] == pytest.approx(sum(since) / len(since))


def failing_at(step, spoil):
    """An objective whose loss is spoilt from a step on."""
    calls = []

    def objective(model, batch):
        calls.append(1)
        loss, terms = squares(model, batch)
        return spoil(model, loss, terms) if len(calls) >= step else (loss, terms)

    return objective


def nan_term(model, loss, terms):
    return loss, terms | {"noise": torch.tensor(float("nan"))}


def infinite_loss(model, loss, terms):
    return loss + float("inf"), terms | {"noise": torch.tensor(float("inf"))}


def nan_gradient(model, loss, terms):
    return loss + (model.weight - model.weight.detach()).abs().sum().sqrt(), terms


def overflowing_gradient(model, loss, terms):
    return loss + (model.weight * 1e30).sum(), terms


@pytest.mark.parametrize(
    "spoil, name",
    [
        (nan_term, "noise"),
        (infinite_loss, "noise"),
        (nan_gradient, "the gradient"),
        (overflowing_gradient, "the gradient"),
    ],
)
def test_what_is_not_finite_stops_training_by_name_and_step_and_the_checkpoint_stays(spoil, name, tmp_path):
    training, folder = Training(steps=8, batch_size=2, save_every=4), tmp_path / "checkpoints"
    model = line()
    with pytest.raises(RepnoiseError) as caught:
        fit(folder, training, model, failing_at(6, spoil))
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith(f"Training stopped at step 6: {name} is not finite. Lower --learning-rate")
    assert str(caught.value).endswith(f"The last good checkpoint stays in {folder / 'checkpoint-4'}.")
    assert all(weight.isfinite().all() for weight in model.parameters())
    resumed, _ = fit(folder, training, line(5), resume=True)
    whole, _ = fit(tmp_path / "whole", replace(training, save_every=None))
    assert same(weights(resumed), weights(whole))


def test_several_terms_that_are_not_finite_are_all_named(tmp_path):
    def objective(model, batch):
        loss, _ = squares(model, batch)
        return loss * float("nan"), {"noise": torch.tensor(float("inf")), "ascent": loss.detach() * float("nan")}

    with pytest.raises(RepnoiseError, match=r"step 1: noise and ascent are not finite.*start again\.$"):
        fit(tmp_path / "c", Training(steps=2, batch_size=2), objective=objective)


def test_looking_at_the_model_along_the_way_changes_nothing(tmp_path):
    model, training, steps = nn.Sequential(nn.Dropout(0.5), line()), Training(steps=5, batch_size=4), []

    def look(step, model):
        steps.append(step)
        model.eval()
        torch.manual_seed(step)
        torch.rand(7)

    watched, log = fit(tmp_path / "a", training, nn.Sequential(nn.Dropout(0.5), line()), on_step=look)
    alone, alone_log = fit(tmp_path / "b", training, model)
    assert steps == [0, 1, 2, 3, 4, 5]
    assert log == alone_log
    assert same(weights(watched), weights(alone))


def test_progress_off_a_terminal_is_a_plain_line_every_tenth(tmp_path, capsys):
    fit(tmp_path / "c", Training(steps=50, batch_size=2, save_every=None), progress="my [run]")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [int(re.match(r"my \[run\]: step (\d+) of 50, \d+ s left, loss ", text)[1]) for text in lines] == [
        1,
        *range(5, 51, 5),
    ]
    assert all("square" in text for text in lines)
    assert "flos" not in err and "train_" not in err


def test_progress_on_a_terminal_is_one_line_with_the_terms(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # What rich takes for a terminal.
    monkeypatch.setenv("COLUMNS", "150")
    fit(tmp_path / "c", Training(steps=50, batch_size=2, save_every=None), progress="my [run]")
    err = capsys.readouterr().err
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err).splitlines()[-1]
    assert last.startswith("my [run]") and "50/50" in last and "square" in last
    assert "flos" not in err and "train_" not in err


def test_training_says_nothing_unless_it_is_asked_to(tiny_model, pair_rows, tmp_path, capfd):
    loaded = load(str(tiny_model))
    collator = PairCollator(loaded.tokenizer.pad_token_id)
    training = Training(steps=2, batch_size=4, save_every=1)
    train(loaded.model, pair_rows(loaded, 8), collator, pair_objective, training, tmp_path / "c")
    assert capfd.readouterr() == ("", "")


def test_without_checkpoints_no_folder_is_left(tmp_path):
    fit(tmp_path / "none", Training(steps=2, batch_size=2, save_every=None))
    fit(tmp_path / "some", Training(steps=2, batch_size=2, save_every=1))
    assert not (tmp_path / "none").exists()
    assert newest_checkpoint(tmp_path / "some") == tmp_path / "some" / "checkpoint-2"


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"optimizer": "adamwho"}, "adamwho"),
        ({"schedule": "cosy"}, "cosy"),
        ({"schedule": "cosine_with_min_lr"}, "min_lr"),
    ],
)
def test_an_optimiser_or_schedule_that_cannot_be_used_is_one_sentence(changes, names, tmp_path):
    with pytest.raises(RepnoiseError, match=f"cannot be used: .*{names}"):
        fit(tmp_path / "c", Training(steps=2, batch_size=2, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"steps": 0},
        {"epochs": -1.0},
        {"batch_size": 0},
        {"accumulation": 0},
        {"lora_rank": 0},
        {"save_every": 0},
        {"warmup": 1.5},
        {"max_grad_norm": -1.0},
        {"weight_decay": float("nan")},
        {"seed": -1},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(changes):
    with pytest.raises(RepnoiseError, match=rf"training\.{next(iter(changes))} must be"):
        Training(**changes)


def test_epochs_become_steps_that_see_every_example():
    assert Training(epochs=2, batch_size=4, accumulation=2).total_steps(10) == 3
    assert Training(epochs=2, batch_size=4, accumulation=2).examples_seen(10) == 24
    assert Training(steps=5, batch_size=4).examples_seen(10) == 20
    assert Training(epochs=0.01).total_steps(10) == 1


def test_a_missing_tracker_is_one_sentence_before_any_training(tmp_path):
    missing = [name for name in ("wandb", "trackio", "tensorboard") if not installed(name)]
    if not missing:
        pytest.skip("every tracker is installed here")
    with pytest.raises(RepnoiseError, match=f"needs the package {missing[0]}: pip install {missing[0]}"):
        fit(tmp_path / "c", Training(steps=2, batch_size=2, report_to=(missing[0],)))
    assert not (tmp_path / "c").exists()


def installed(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_tensorboard_gets_every_term_in_files_that_outlive_the_checkpoints(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    training = Training(steps=6, batch_size=2, save_every=2, report_to=("tensorboard",))
    with pytest.raises(RepnoiseError):
        fit(tmp_path / "run" / "checkpoints", training, objective=failing_at(6, nan_term))
    fit(tmp_path / "run" / "checkpoints", training, resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/square")] == [1, 2, 3, 4, 5, 6]
