"""Who makes which trial of a search: any number of processes share one study, and one that was killed loses nothing."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.cells import KILLED
from repnoise.errors import RepnoiseError
from repnoise.runs import fingerprint

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

BEAT, PATIENCE = 60.0, 600.0
"""Seconds between two signs of life of a trial, and after how many without one on another machine it counts as lost."""

ATTEMPTS = 5
"""How often a trial is begun before it is given up: what kills its process each time would kill every other, too."""

MOST_TRIALS = 1_000
"""Trials at the most where the budget is in FLOPs: what costs none would go on for ever."""


@dataclass(frozen=True)
class Budget:
    """When no further trial is begun: after so many, or once those that ended have cost so many FLOPs."""

    trials: int
    flops: float | None = None


def open_study(folder: Path, storage: str | None, name: str) -> Study:
    """The study in the folder's journal or in a database. Raises RepnoiseError where Optuna or that is missing."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise RepnoiseError("A search needs Optuna: pip install 'repnoise[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        where = storage or JournalStorage(JournalFileBackend(str(folder / "journal.jsonl")))
        return optuna.create_study(study_name=name, storage=where, direction="maximize", load_if_exists=True)
    except Exception as error:  # Each database has exceptions of its own.
        if storage is None:
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise RepnoiseError(
            f"--storage {storage} cannot be used ({reason}): check the address and its driver."
        ) from error


def sampler(seed: int, number: int) -> Any:
    """Tree-structured Parzen estimators, and chance for every fourth trial, so that the search does not settle on the
    first kind of attack that works; seeded by the search and the trial's number.

    So no two processes draw the same, and what a search draws next depends on what it knows, not on who asks.
    """
    import warnings

    from optuna.samplers import RandomSampler, TPESampler

    own = int(fingerprint([seed, number]), 16) % 2**32
    if number % 4 == 3:
        return RandomSampler(seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That grouping what belongs to one kind of attack is experimental.
        return TPESampler(seed=own, multivariate=True, group=True)


class Queue:
    """Trials to be made by one process. Use it inside `with queue.open():`."""

    def __init__(self, study: Study, folder: Path, budget: Budget, seed: int, on_disk: bool = True) -> None:
        from filelock import FileLock

        self.study, self.budget, self.seed, self.on_disk = study, budget, seed, on_disk
        self.lock = FileLock(folder / "queue.lock")
        self.own_lock = (folder / "processes" / f"{uuid.uuid4().hex}.lock").resolve()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold a lock that ends with this process, however it ends: whose lock is free is dead."""
        from filelock import FileLock

        self.own_lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.own_lock):
            yield
        self.own_lock.unlink(missing_ok=True)

    def next(self) -> Trial | None:
        """A trial that a killed process left, or else a new one; None once the budget is spent and all have ended."""
        from optuna.trial import TrialState

        while True:
            with self.lock:
                trials = self.study.get_trials(deepcopy=False)
                running = [trial for trial in trials if trial.state == TrialState.RUNNING]
                lost = [trial for trial in running if self._is_lost(trial)]
                if lost and (taken := self._taken(lost[0])) is not None:
                    return taken
                if not lost and not self._is_spent(trials) and (asked := self._asked(len(trials))) is not None:
                    return asked
                if not running and self._is_spent(trials):
                    return None
            if not lost:
                time.sleep(1.0)  # Somebody else's trial may yet be lost.

    def _is_spent(self, trials: Sequence[FrozenTrial]) -> bool:
        made = begun(trials)
        cost = sum((trial.user_attrs.get("cost") or {}).get("flops") or 0.0 for trial in made)
        return len(made) >= self.budget.trials or (self.budget.flops is not None and cost >= self.budget.flops)

    def _asked(self, number: int) -> Trial | None:
        """A new trial; None if others on the same database were faster, and the budget is spent."""
        from optuna.trial import TrialState

        self.study.sampler = sampler(self.seed, number)
        trial = self.study.ask()
        self._own(trial, 1)
        before = [other for other in begun(self.study.get_trials(deepcopy=False)) if other.number < trial.number]
        if len(before) < self.budget.trials:
            return trial
        trial.set_user_attr("surplus", True)
        self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _taken(self, lost: FrozenTrial) -> Trial | None:
        """The same trial with the same choices; None if it was begun too often."""
        from optuna.trial import Trial, TrialState

        self.study.sampler = sampler(self.seed, lost.number)
        trial = Trial(self.study, lost._trial_id)
        attempts = lost.user_attrs.get("attempts", 0)
        if attempts < ATTEMPTS:
            self._own(trial, attempts + 1)
            return trial
        trial.set_user_attr("reason", f"its process was killed {attempts} times")
        self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _own(self, trial: Trial, attempt: int) -> None:
        trial.set_user_attr("attempts", attempt)
        trial.set_user_attr("owner", {"host": socket.gethostname(), "lock": str(self.own_lock)})

    def _is_lost(self, trial: FrozenTrial) -> bool:
        """Whether nobody makes a running trial any more."""
        from filelock import FileLock, Timeout

        owner = trial.user_attrs.get("owner")
        if owner and owner["host"] == socket.gethostname():
            if not Path(owner["lock"]).exists():
                return True
            try:
                with FileLock(owner["lock"], timeout=0):
                    return True
            except Timeout:
                return False
        if not owner and self.on_disk:
            return True  # Whoever begins a trial here holds the queue's lock until it is owned.
        started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - trial.user_attrs.get("seen", started) > PATIENCE


def begun(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count: those that were begun within the budget."""
    from optuna.trial import TrialState

    return [trial for trial in trials if trial.state != TrialState.WAITING and not trial.user_attrs.get("surplus")]


@contextmanager
def beating(trial: Trial) -> Iterator[None]:
    """Give signs of life, for other machines, which cannot see a lock."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            trial.set_user_attr("seen", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def watch(
    workers: Sequence[Future[None]], pool: ProcessPoolExecutor, study: Study, budget: Budget, title: str = "searching"
) -> None:
    """Show how far the trials are, until every process has ended. Raises what ended one of them."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=budget.trials if budget.flops is None else None)
        try:
            waiting = set(workers)
            while waiting:
                ended, waiting = wait(waiting, timeout=1.0)
                for worker in ended:
                    worker.result()
                made = [trial for trial in begun(study.get_trials(deepcopy=False)) if trial.state.is_finished()]
                progress.update(task, completed=len(made), description=made[-1].user_attrs["name"] if made else None)
        except BrokenProcessPool:
            raise RepnoiseError(KILLED) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
