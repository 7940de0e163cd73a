"""What lm-eval's own command measured elsewhere: its results_*.json, as the metrics that `capability` would give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.errors import RepnoiseError

if TYPE_CHECKING:
    from repnoise.evals.evaluations import Metrics
    from repnoise.modeling import LoadedModel


@dataclass(frozen=True)
class Elsewhere:
    """Numbers from files.

    Attributes:
        metrics: TASK_METRIC to value and interval.
        sources: by path, which tasks a file has, what it says of the model, of lm-eval and of the settings, and the
            fingerprint of the file.
    """

    metrics: Metrics = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def require_of(self, loaded: LoadedModel) -> None:
        """Raises RepnoiseError where a file is plainly of another model: one with another number of parameters. An
        adapter beside the model would be counted, so nothing is said of those."""
        counted = loaded.model.num_parameters()
        for path, source in self.sources.items():
            parameters = source["parameters"]
            if parameters not in (None, counted) and not source["adapter"]:
                raise RepnoiseError(
                    f"{path} is of another model ({source['model']}, with {parameters:,} parameters, and this one has "
                    f"{counted:,}): give the file that lm-eval wrote of this one."
                )

    def require_apart(self, names: Iterable[str]) -> None:
        """Raises RepnoiseError where a task or a number of these is in a file, too."""
        tasks = {task for source in self.sources.values() for task in source["tasks"]}
        if both := sorted({*names} & {*self.metrics, *tasks}):
            raise RepnoiseError(f"There are two results of lm-eval for {', '.join(both)}: leave one of them out.")


def read_results(paths: Sequence[Path]) -> Elsewhere:
    """The numbers of all files, each group as one task, as `capability.capabilities` has it.

    The files do not say whether likelihoods were NaN: a broken model counts as right wherever the first choice is.
    Raises RepnoiseError for what is no such file, and for two results of one task.
    """
    found = Elsewhere()
    for path in dict.fromkeys(paths):
        try:
            content = path.read_bytes()
            results = json.loads(content)
            tasks, source = _tasks_of(results), _source(results)
        except OSError:
            raise RepnoiseError(f"There is no file {str(path)!r}: check the path of lm-eval's results.") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ZeroDivisionError):
            raise RepnoiseError(
                f"{path} has no results that can be read: give the results_*.json that `lm-eval run --output_path` "
                "(0.4 or later) wrote."
            ) from None
        found.require_apart(tasks)
        for metrics in tasks.values():
            found.metrics.update(metrics)
        digest = hashlib.sha256(content).hexdigest()[:16]
        found.sources[str(path)] = {"fingerprint": digest, "tasks": list(tasks), **source}
    return found


def _tasks_of(results: Mapping[str, Any]) -> dict[str, Metrics]:
    """The metrics of each task that is in no group, and of each group that is in no other."""
    from repnoise.evals.capability import metrics_of

    counts = {task: count["effective"] for task, count in results["n-samples"].items()}
    rows = {task: row | {"sample_len": counts.get(task, 0)} for task, row in results["results"].items()}
    groups = {name: below for name, below in (results.get("group_subtasks") or {}).items() if below}
    inner = {name for below in groups.values() for name in below}
    found: dict[str, Metrics] = {}
    for name in dict.fromkeys([*groups, *rows]):
        if name in inner or not (leaves := [leaf for leaf in _leaves(name, groups) if leaf in counts]):
            continue
        tasks = {"tasks": leaves, "groups": [name] if name in groups else []}
        found[name] = metrics_of(name, tasks, {"results": rows, "samples": dict.fromkeys(leaves, ())})
    if not found:
        raise ValueError("no metrics")
    return found


def _leaves(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group, and of the groups in it, each once."""
    if name not in groups:
        return [name]
    return list(dict.fromkeys(leaf for below in groups[name] for leaf in _leaves(below, groups)))


def _source(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of its model and settings; raises ValueError where it names no model."""
    config = results["config"]
    arguments = config.get("model_args") or {}
    named = results.get("model_name") or (arguments.get("pretrained") if isinstance(arguments, dict) else arguments)
    if not named:
        raise ValueError("no model")
    return {
        "model": named,
        "parameters": config.get("model_num_parameters"),
        "adapter": "peft" in arguments or "delta" in arguments,
        "lm_eval": results.get("lm_eval_version"),
        "shots": results.get("n-shot"),
        "limit": config.get("limit"),
    }
