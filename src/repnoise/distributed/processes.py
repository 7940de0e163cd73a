"""Which of several processes does what: who writes and speaks, what each computes, and how all end together.

A launcher (`accelerate launch -m repnoise defend ...`) starts one process a device. All of them train. The first one
alone writes the run, measures, judges and prints; the others wait for it, for as long as it takes. In a process that
no launcher started, everything here is as if it were not there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training
from repnoise.runs import Run, recording

PATIENCE = timedelta(days=7)
"""How long the others wait while the first measures; a process that ends ends the wait at once."""

ENDED = (
    "Another process of this training ended, or the launcher stopped it; if it left a message, that is above. "
    "The same command with --resume goes on from the newest checkpoint."
)
_SIGNS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


@dataclass
class _Joined:
    store: Store
    waiting: dist.ProcessGroup
    sharded: bool


_joined: _Joined | None = None


def launched() -> int:
    """How many processes a launcher started, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", 1)) if {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= {*os.environ} else 1


def processes() -> int:
    """How many processes have joined for what is being done."""
    return dist.get_world_size() if _joined else 1


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return launched() == 1 or int(os.environ["RANK"]) == 0


def sharded() -> bool:
    """Whether the weights are to be divided among the processes."""
    return _joined is not None and _joined.sharded


@dataclass(frozen=True)
class Share:
    """What each of several processes does in an optimiser step, so that the step is that of one process.

    Attributes:
        processes: how many share the work.
        batch_size: rows of a batch that a process holds.
        accumulation: losses that it computes in a step.
        pooled: whether these are parts of batches, the rows of all processes making one, or whole batches.
        sharded: whether each holds a part of the weights, or all.
    """

    processes: int = 1
    batch_size: int = 1
    accumulation: int = 1
    pooled: bool = False
    sharded: bool = False


def share_of(training: Training) -> Share:
    """Give each process as many of a step's losses, or else as many rows of each batch.

    The loss of a batch is not the mean of those of its parts (MMD of a sample, logarithm of a mean), so no process is
    given a smaller batch of its own. Raises RepnoiseError if neither losses nor rows can be divided, and for weights
    in 4 bits.
    """
    count, batch, losses = processes(), training.batch_size, training.accumulation
    if count > 1 and training.four_bit:
        raise RepnoiseError("Weights in 4 bits were never tried in several processes: start one, or drop --four-bit.")
    if losses % count == 0:
        return Share(count, batch, losses // count, pooled=False, sharded=sharded())
    if batch % count == 0:
        return Share(count, batch // count, losses, pooled=True, sharded=sharded())
    raise RepnoiseError(
        f"{count} processes can share neither {losses} losses a step (--accumulation) nor the {batch} rows of a batch "
        f"(--batch-size): start a number of processes that divides one of the two, or change one to a multiple of "
        f"{count}."
    )


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that a launcher started for the block: all end well, or all end, and one says why."""
    if _joined is not None:
        yield
        return
    shards = _wants_shards()
    if launched() == 1:
        yield
        return
    joined = _join(shards)
    try:
        with stopped_explained():
            yield
            wait()
    except RepnoiseError as error:
        if _nobody_spoke(joined.store):
            raise
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        if _nobody_spoke(joined.store):
            raise
        raise SystemExit(1) from None
    else:
        _leave()


def on_first(made: Callable[[], Any]) -> Any:
    """What the first process makes, in all of them; the others wait for it."""
    if processes() == 1:
        return made()
    result = [made() if first() else None]
    with stopped_explained():
        dist.broadcast_object_list(result, 0, group=_group())
    return result[0]


def alone(made: Callable[[], Any]) -> Any:
    """What the first process makes for itself; None in the others, which do not wait."""
    return made() if first() else None


@contextmanager
def recorded(run: Run, training: Training | None) -> Iterator[None]:
    """`runs.recording` by the first process, with how the work is shared, once for every time it is begun."""
    with recording(run) if first() else nullcontext():
        if training and first() and processes() > 1:
            run.update(shared=[*run.record.get("shared", []), asdict(share_of(training))])
        yield


def wait() -> None:
    """Until all processes have come here."""
    if processes() > 1:
        with stopped_explained():
            dist.barrier(_group())


def mean_of(values: torch.Tensor) -> torch.Tensor:
    """The mean over processes."""
    if processes() > 1:
        dist.all_reduce(values)
        values /= processes()
    return values


@contextmanager
def stopped_explained() -> Iterator[None]:
    """Turn what a communication raises whose other end is gone into a sentence."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS)
        if _joined is None or not lost:
            raise
        raise RepnoiseError(ENDED, exit_code=1) from error


def only_first_goes_on() -> None:
    """End every process but the first, well."""
    if not first():
        raise SystemExit(0)


def _join(shards: bool) -> _Joined:
    global _joined
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    store, rank, size = next(iter(rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    waiting: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    _joined = _Joined(store, waiting, shards)
    return _joined


def _wants_shards() -> bool:
    """Whether the launcher's configuration asks for FSDP; from then on, only repnoise knows of it.

    accelerate and transformers would wrap the model itself, which may let go of its weights before the lens, outside of
    the model's own forward pass, reads them (see `repnoise.distributed.sharding`). Raises RepnoiseError for what is
    asked for and cannot be done.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise RepnoiseError("repnoise does not train with DeepSpeed: take a launch configuration with FSDP.")
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        raise RepnoiseError("Say --precision bf16 to repnoise, and mixed_precision: 'no' in the launch configuration.")
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RepnoiseError("repnoise shards with FSDP2 only: say fsdp_version: 2 in the launch configuration.")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise RepnoiseError("repnoise keeps shards on their devices: say fsdp_offload_params: false.")
    return True


def _terminated(_signal: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It is ending already.
    raise RepnoiseError(ENDED, exit_code=1)


def _nobody_spoke(store: Store) -> bool:
    """Whether this is the first process to say why all of them end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        store.set_timeout(timedelta(seconds=5))
        return store.add("repnoise/ended", 1) == 1
    except RuntimeError:  # The store has ended, too.
        return True


def _leave() -> None:
    global _joined
    _joined = None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    dist.destroy_process_group()


def _group() -> Any:
    assert _joined is not None
    return _joined.waiting
