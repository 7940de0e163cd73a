"""What a model is still good for: tasks of the Language Model Evaluation Harness, through its Python interface."""

from __future__ import annotations

import difflib
import io
import logging
import math
import os
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.data.tables import first_sentence
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Needed for annotations alone.
    from repnoise.evals.evaluations import Metrics
    from repnoise.modeling import LoadedModel

PAPER_TASKS = (
    "truthfulqa_mc2",
    "mmlu",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "hendrycks_ethics",
    "crows_pairs_english",
)
"""The paper's seven (Table 3), as the harness names them. It gives neither shots nor which measure of TruthfulQA; of
CrowS-Pairs it can only be the share of stereotypes, where 0.5 is best and not 1."""

SHARES = ("acc", "acc_norm", "exact_match", "pct_stereotype")
"""Metrics that are shares: their intervals end at 0 and 1."""

FEWSHOT_SEED, RESAMPLES = 1234, 1000
"""The harness's own seed for the choice of shots, and how often it resamples a metric without a formula."""


def capabilities(
    loaded: LoadedModel,
    tasks: Sequence[str],
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Metrics:
    """Every metric of the tasks as TASK_METRIC, with a 95 % interval from the harness's standard error.

    A task is a name of lm-eval's, the path of a YAML file with one of your own, or "paper" for the seven of the paper.
    A group or tag is one task: what the harness makes of it, or else the mean over all its questions. `limit` is the
    most questions of each task, to try things out; `shots` the solved examples before each question, by default what
    the task says (tasks that fix 0 keep it).

    Contexts longer than the model's lose their beginning. A question whose likelihoods are NaN would be "answered" with
    its first choice: a task with any of them has no value, and all of its questions count as unscored. A YAML file may
    name Python functions, which are run; paths in it are relative to where the command is run. `progress` shows the
    harness's bars. Raises RepnoiseError that names the task for one that is unknown, cannot be loaded or run.
    """
    for name, value, least in (("limit", limit, 1), ("number of shots", shots, 0)):
        if value is not None and value < least:
            raise RepnoiseError(f"The {name} of lm-eval must be at least {least}, not {value}.")
    names = task_names(tasks)
    if not names:
        return {}
    was_training = loaded.model.training
    metrics: Metrics = {}
    with _apart(progress):
        manager = _manager(names)
        wrapper = _wrapped(loaded, batch_size)
        for name in names:
            found = _tasks(manager, name)
            metrics |= metrics_of(name, found, _results(wrapper, name, found, limit, shots))
    loaded.model.train(was_training)
    return metrics


def task_names(tasks: Sequence[str]) -> list[str]:
    """The tasks in their order, each once, with "paper" written out."""
    return list(dict.fromkeys(name for task in tasks for name in (PAPER_TASKS if task == "paper" else (task,))))


def _wrapped(loaded: LoadedModel, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    wrapper: Any = HFLM
    return wrapper(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, max_length=loaded.context, batch_size=batch_size
    )


def _manager(names: Sequence[str]) -> Any:
    """What knows the tasks: lm-eval's own, which takes seconds to read, only where one of them is asked for by name."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise RepnoiseError("Capability tasks need the package lm-eval: pip install 'repnoise[eval]'.") from None
    files = [Path(name) for name in names if _is_file(name)]
    for file in files:
        if not file.is_file():
            raise RepnoiseError(f"There is no file {str(file)!r}: check the path of the task.")
    # A group names its tasks, which stand in files beside it.
    groups = [file for file in files if re.search(rb"^group\s*:", file.read_bytes(), re.MULTILINE)]
    beside: Any = list(dict.fromkeys(file.resolve().parent for file in groups))
    return TaskManager(include_path=beside or None, include_defaults=len(files) < len(names))


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _tasks(manager: Any, name: str) -> dict[str, Any]:
    """The tasks and groups that a name stands for, with their data loaded."""
    if not _is_file(name) and name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them."
        raise RepnoiseError(f"lm-eval has no task {name!r}: {hint}")
    # The harness cannot load a group by its path.
    known = {entry.yaml_path: own for own, entry in manager.task_index.items()} if _is_file(name) else {}
    try:
        return manager.load([known.get(Path(name).resolve(), name)])
    except Exception as error:  # It raises its own errors, those of `datasets`, the hub, YAML and of the task's code.
        fix = "correct the file" if _is_file(name) else "its data come from the hub, so check the connection"
        raise RepnoiseError(f"The task {name} cannot be loaded ({first_sentence(error)}): {fix}.") from error


def _results(wrapper: Any, name: str, tasks: dict[str, Any], limit: int | None, shots: int | None) -> dict[str, Any]:
    """What the harness measured. Not by its `simple_evaluate`, which sets global seeds and asks git and the hub."""
    from lm_eval.evaluator import evaluate

    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        task.set_config(key="num_fewshot", value=(own or 0) if shots is None or own == 0 else shots)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    found: Any = tasks
    try:
        results: Any = evaluate(lm=wrapper, task_dict=found, limit=limit, bootstrap_iters=RESAMPLES)
    except RuntimeError:  # Memory and the like, which no task is to blame for.
        raise
    except Exception as error:  # As above: whatever a template or a function of the task does.
        raise RepnoiseError(f"The task {name} cannot be run ({first_sentence(error)}): correct it.") from error
    return results


def metrics_of(name: str, tasks: dict[str, Any], results: dict[str, Any]) -> Metrics:
    """The numbers of one name: of its one task or group, else pooled over the questions of its tasks."""
    leaves = list(tasks["tasks"])
    top = next(iter(tasks["groups"] or leaves))
    rows = results["results"]
    alone = bool(tasks["groups"]) or len(leaves) == 1
    row = rows.get(top, {}) if alone else {}
    measured = [key for key in row if _is_metric(key)]
    row = row if measured else _pooled([rows[leaf] for leaf in leaves])
    count = sum(rows[leaf]["sample_len"] for leaf in leaves)
    broken = any(_is_nan(answer) for leaf in leaves for s in results["samples"][leaf] for answer in s["filtered_resps"])
    title = top if alone else name
    metrics = {
        f"{title}_{key.removesuffix(',none').replace(',', '_')}": _entry(key, row, count, broken)
        for key in row
        if _is_metric(key)
    }
    if not metrics:
        raise RepnoiseError(f"The tasks of {name} have no metric in common: ask for {', '.join(leaves)} one by one.")
    return metrics


def _is_metric(key: str) -> bool:
    return "," in key and "_stderr," not in key


def _pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all tasks have, as the mean over all questions, with the standard error of that mean."""
    total = sum(row["sample_len"] for row in rows)
    pooled: dict[str, Any] = {}
    for key in (key for key in rows[0] if _is_metric(key) and all(key in row for row in rows)):
        errors = [row[_error_key(key)] for row in rows]
        pooled[key] = sum(row[key] * row["sample_len"] for row in rows) / total
        known = all(isinstance(error, float) for error in errors)
        shares = [row["sample_len"] / total for row in rows]
        spread = math.hypot(*(share * error for share, error in zip(shares, errors, strict=True))) if known else "N/A"
        pooled[_error_key(key)] = spread
    return pooled


def _error_key(key: str) -> str:
    metric, _, kind = key.partition(",")
    return f"{metric}_stderr,{kind}"


def _entry(key: str, row: dict[str, Any], count: int, broken: bool) -> dict[str, Any]:
    value, error = float(row[key]), row.get(_error_key(key))
    if broken or math.isnan(value):
        return {"value": None, "n": 0, "low": None, "high": None, "unscored": count}
    low = high = None
    if isinstance(error, float) and math.isfinite(error):
        low, high = value - 1.96 * error, value + 1.96 * error
        if key.partition(",")[0] in SHARES:
            low, high = max(low, 0.0), min(high, 1.0)
    return {"value": value, "n": count, "low": low, "high": high, "unscored": 0}


def _is_nan(answer: Any) -> bool:
    """Whether an answer is a likelihood, or begins with one, that is NaN."""
    number = answer[0] if isinstance(answer, tuple | list) and answer else answer
    return isinstance(number, float) and math.isnan(number)


@contextmanager
def _apart(progress: bool) -> Iterator[None]:
    """Without the harness's log, and unless progress is wanted without what it prints; it starts no processes, and the
    random numbers that it draws change nothing."""
    logger, name = logging.getLogger("lm_eval"), "DISABLE_MULTIPROC"
    level, before, state = logger.level, os.environ.get(name), random.getstate()
    with ExitStack() as stack:
        if not progress:
            stack.enter_context(redirect_stderr(io.StringIO()))
            stack.enter_context(redirect_stdout(io.StringIO()))
        logger.setLevel(logging.ERROR)
        os.environ[name] = "1"
        try:
            yield
        finally:
            logger.setLevel(level)
            random.setstate(state)
            os.environ.pop(name) if before is None else os.environ.update({name: before})
