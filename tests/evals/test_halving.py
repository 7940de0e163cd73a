"""Work on rows where memory runs out, with an allocator that really has none left."""

import pytest
import torch

from repnoise.errors import RepnoiseError
from repnoise.evals.halving import as_memory_allows


def working(done, room=2):
    """Asks for more than any process can address where there are more rows than `room`."""

    def work(start, stop):
        torch.empty(2**62 if stop - start > room else 16, dtype=torch.uint8)
        done.append((start, stop))
        return list(range(start, stop))

    return work


def test_a_part_that_runs_out_of_memory_is_done_again_in_halves_and_so_are_the_others():
    done = []
    assert as_memory_allows(working(done), 9, 8, "wait") == (list(range(9)), 2)
    assert done == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]


def test_where_memory_is_enough_nothing_is_cut_and_the_size_stays():
    done = []
    assert as_memory_allows(working(done, room=8), 9, 8, "wait") == (list(range(9)), 8)
    assert done == [(0, 8), (8, 9)]
    assert as_memory_allows(working(done), 0, 8, "wait") == ([], 8)


def test_no_room_for_a_single_row_is_told_with_what_to_do():
    with pytest.raises(RepnoiseError, match=r"^The device's memory has no room for a batch of one row: wait\.$"):
        as_memory_allows(working([], room=0), 9, 8, "wait")


def test_another_error_is_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shape"):
        as_memory_allows(lambda _start, _stop: torch.ones(3).view(2), 9, 8, "wait")
