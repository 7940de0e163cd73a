"""Batches by literal tensors, and the order of examples by its properties."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from repnoise.data.collators import ExampleCollator, PairCollator
from repnoise.data.mixtures import epochs, mixed
from repnoise.losses import IGNORE

X = IGNORE
SHORT = {"input_ids": [5, 6], "labels": [X, 6]}
LONG = {"input_ids": [5, 7, 8, 2], "labels": [X, X, 8, 2]}


def test_pairs_are_padded_apart_and_keep_their_rows():
    batch = PairCollator(pad_id=1)([{"harmless": SHORT, "harmful": LONG}, {"harmless": LONG, "harmful": LONG}])
    assert set(batch) == {"harmless", "harmful"}
    assert batch["harmless"]["input_ids"].tolist() == [[5, 6, 1, 1], [5, 7, 8, 2]]
    assert batch["harmless"]["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["harmless"]["labels"].tolist() == [[X, 6, X, X], [X, X, 8, 2]]
    assert batch["harmful"]["labels"].tolist() == [[X, X, 8, 2]] * 2
    apart = PairCollator(pad_id=1)([{"harmless": SHORT, "harmful": LONG}])
    assert apart["harmless"]["input_ids"].shape == (1, 2) and apart["harmful"]["input_ids"].shape == (1, 4)


def test_retain_rows_are_a_third_batch():
    batch = PairCollator(pad_id=1)([{"harmless": SHORT, "harmful": LONG, "retain": SHORT}])
    assert batch["retain"]["input_ids"].tolist() == [[5, 6]]


def test_examples_are_one_batch_of_integers():
    batch = ExampleCollator(pad_id=0)([SHORT, LONG])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 0, 0], [5, 7, 8, 2]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 1]],
        "labels": [[X, 6, X, X], [X, X, 8, 2]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 100))
def test_epochs_show_every_item_equally_often(size, count, seed):
    order = epochs(range(size), count, seed)
    assert len(order) == count
    for start in range(0, count - size + 1, size):
        assert sorted(order[start : start + size]) == list(range(size))
    counts = Counter(order)
    assert count == 0 or max(counts.values()) - min(counts[i] for i in range(size)) <= 1


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 30), st.integers(0, 100))
def test_a_longer_run_begins_like_a_shorter_one(size, count, more, seed):
    assert epochs(range(size), count + more, seed)[:count] == epochs(range(size), count, seed)


def test_another_seed_gives_another_order():
    assert epochs(range(20), 20, 0) == epochs(range(20), 20, 0) != epochs(range(20), 20, 1)
    assert epochs(range(20), 40, 0)[:20] != epochs(range(20), 40, 0)[20:]


@given(st.floats(0, 1), st.integers(0, 80), st.integers(0, 100))
def test_a_mixture_draws_each_side_in_epochs(share, count, seed):
    order = mixed(range(7), range(100, 105), share, count, seed)
    assert len(order) == count
    for size, side in ((7, [i for i in order if i < 100]), (5, [i for i in order if i >= 100])):
        for start in range(0, len(side) - size + 1, size):
            assert len(set(side[start : start + size])) == size


def test_a_mixture_has_about_the_share_that_was_asked_for():
    order = mixed(range(7), range(100, 105), 0.3, 2000, 0)
    assert abs(sum(i >= 100 for i in order) / 2000 - 0.3) < 0.04
    assert order == mixed(range(7), range(100, 105), 0.3, 2000, 0)


def test_no_share_needs_no_other_items():
    assert mixed(range(7), [], 0.0, 20, 3) == epochs(range(7), 20, 3)
    assert all(i >= 100 for i in mixed(range(7), range(100, 105), 1.0, 20, 3))
