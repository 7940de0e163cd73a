"""Work on rows, as many at a time as memory has room for: a batch that runs out of it is halved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from repnoise.errors import RepnoiseError

T = TypeVar("T")


def as_memory_allows(work: Callable[[int, int], list[T]], count: int, size: int, advice: str) -> tuple[list[T], int]:
    """The results of `work(start, stop)` for `count` rows in their order, `size` at a time.

    Where a part runs out of memory it is done again in halves, and so are the parts after it; what was finished stays.
    Also returns the size that it came to. Raises RepnoiseError with the advice if there is no room for a single row.
    """
    import torch
    from accelerate.utils import release_memory
    from accelerate.utils.memory import should_reduce_batch_size

    found: list[T] = []
    while (start := len(found)) < count:
        rows = min(size, count - start)
        try:
            found += work(start, start + rows)
            continue
        except RuntimeError as error:
            # Not every device raises the first, and an allocator's words may change.
            if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                raise
            if rows == 1:
                raise RepnoiseError(
                    f"The device's memory has no room for a batch of one row: {advice}.", exit_code=1
                ) from error
        size = rows // 2
        release_memory()  # After the block: the error holds on to the frames that ran out of it.
    return found, size
