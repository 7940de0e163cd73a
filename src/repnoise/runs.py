"""A run is a directory with `run.json`: what was done, to what, with what, and how it ended.

Everything is written to a temporary name and moved into place, so a file that exists is whole, and a run whose status
is "finished" has everything that it should.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from repnoise.errors import RepnoiseError

REQUIRED = ("kind", "name", "config", "status", "metrics")
PROVENANCE_PACKAGES = ("repnoise", "torch", "transformers", "peft", "datasets", "numpy")


@dataclass
class Run:
    """An open run. `path` is its directory; `record` is what run.json holds.

    Keys of the record: kind ("defence", "attack", "initialisation"), name, config (as its dataclass), parent (path and
    fingerprint of the model it started from), data (fingerprint and number of rows of each part), code, environment,
    status ("running", "finished", "failed"), error, metrics, started, seconds.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    def update(self, **changes: Any) -> None:
        """Change the record and write it."""
        self.record |= changes
        write_json(self.path / "run.json", self.record)


def open_run(path: Path, kind: str, name: str, config: Any, resume: bool = False, **facts: Any) -> Run:
    """Create the run's directory, or go on with the same run in it.

    A finished run of the same config comes back as it is. `facts` become part of the record; those of an earlier run
    must be the same, fingerprint by fingerprint. A run that failed before it had made anything makes room. Raises
    RepnoiseError if the directory holds another run, an unfinished one and `resume` is off, or files that are no run.
    """
    wanted = plain(config)
    if (path / "run.json").exists() and not _came_to_nothing(run := load_run(path)):
        _require_same(run, kind, wanted, facts)
        if not run.finished and not resume:
            raise RepnoiseError(f"{path} holds an unfinished run of this: add --resume to go on, or delete it.")
        return run
    # A process that was killed at once leaves a temporary file.
    if path.exists() and not (path.is_dir() and all(_is_nothing(file) for file in path.iterdir())):
        raise RepnoiseError(f"{path} exists and is no run of repnoise: choose another --output-dir.")
    path.mkdir(parents=True, exist_ok=True)
    run = Run(path)
    run.update(
        kind=kind,
        name=name,
        config=wanted,
        **{key: plain(value) for key, value in facts.items()},
        code=code_state(),
        environment=environment(),
        status="running",
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        metrics={},
    )
    return run


def _came_to_nothing(run: Run) -> bool:
    return run.record["status"] == "failed" and all(_is_nothing(file) for file in run.path.iterdir())


def _is_nothing(path: Path) -> bool:
    """What a run leaves that failed or was killed at its start."""
    return path.name == "run.json" or path.match(".*.tmp") or (path.is_dir() and not any(path.iterdir()))


def _require_same(run: Run, kind: str, config: Any, facts: dict[str, Any]) -> None:
    choose = "choose another --output-dir, or delete that one."
    if run.record["kind"] != kind or run.record["config"] != config:
        what = f"{run.record['kind']} {run.record['name']!r} with other settings"
        raise RepnoiseError(f"{run.path} belongs to another run ({what}): {choose}")
    for name, value in facts.items():
        if _fingerprints(run.record.get(name)) != _fingerprints(plain(value)):
            what = {"parent": "another model", "data": "other data"}.get(name, f"another {name}")
            raise RepnoiseError(f"{run.path} holds a run with the same settings, but {what}: {choose}")


def _fingerprints(value: Any) -> Any:
    """A record of inputs without the names, places and sizes of what has a fingerprint."""
    if not isinstance(value, dict):
        return value
    return value["fingerprint"] if "fingerprint" in value else {key: _fingerprints(part) for key, part in value.items()}


@contextmanager
def recording(run: Run) -> Iterator[Run]:
    """Mark the run finished when the block ends well, failed with the reason when it does not. Adds the seconds."""
    before = run.record.get("seconds", 0.0)
    start = time.perf_counter()

    def seconds() -> float:
        return round(before + time.perf_counter() - start, 2)

    run.update(status="running")
    try:
        yield run
    except BaseException as error:
        reason = str(error) or type(error).__name__
        # On a full disk the reason cannot be written either, and the error itself matters more.
        with suppressed_os_errors():
            run.update(status="failed", error=reason, seconds=seconds())
        raise
    run.record.pop("error", None)
    run.update(status="finished", seconds=seconds())


@contextmanager
def suppressed_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        pass


def load_run(path: Path) -> Run:
    """Read a run; raises RepnoiseError if there is none."""
    file = path / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RepnoiseError(f"{path} is not a run: it has no run.json.") from None
    except (ValueError, RecursionError) as error:
        raise RepnoiseError(f"{file} is damaged ({error}): delete that run and repeat it.") from None
    missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
    if missing:
        raise RepnoiseError(f"{file} is damaged (it lacks {', '.join(missing)}): delete that run and repeat it.")
    return Run(path, record)


def load_preset(file: Path) -> dict[str, Any]:
    """Kind, name and config of a preset that was written to a file; raises RepnoiseError if it holds none."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not {"kind", "name", "config"} <= {*record}:
        raise RepnoiseError(f"{file} holds no preset: give a preset.json that repnoise tune wrote, or a run.")
    return record


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """All runs in the given directories and below them, in the order of their paths."""
    found = {file.parent.resolve() for path in paths for file in path.rglob("run.json")}
    return [load_run(path) for path in sorted(found)]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(folder: Path) -> None:
    """Wait until every file below a folder is on the disk, so that what marks it as whole is never there before it."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): it also splits at characters that JSON allows inside a string, such as U+2028.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def plain(value: Any) -> Any:
    """A config as JSON has it: dataclasses as dicts with their class name, tuples as lists, paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__} | {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def restored(record: Any, examples: Iterable[Any]) -> Any:
    """The inverse of `plain` for a config; its classes are those that occur in the example configs."""
    classes: dict[str, type] = {}

    def collect(value: Any) -> None:
        if is_dataclass(value):
            classes[type(value).__name__] = type(value)  # type: ignore[assignment]
            for item in vars(value).values():
                collect(item)

    def build(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(build(item) for item in value)
        if not isinstance(value, dict):
            return value
        fields = {key: build(item) for key, item in value.items() if key != "class"}
        try:
            return classes[value["class"]](**fields)
        except (KeyError, TypeError) as error:
            raise RepnoiseError(f"This version of repnoise does not know the run's settings ({error}).") from None

    for example in examples:
        collect(example)
    return build(record)


def fingerprint(value: Any) -> str:
    """16 hex digits of any value that `plain` can turn into JSON (records included)."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_state() -> dict[str, Any]:
    """Version of repnoise, and the commit it was run from when that is known."""
    state: dict[str, Any] = {"version": metadata.version("repnoise")}
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        # Only a checkout of repnoise itself counts, not the user's repository around a virtual environment.
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode == 0:
            commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
            changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
            state |= {"commit": commit.strip(), "changed": bool(changed.strip())}
    except (OSError, subprocess.CalledProcessError):
        pass
    return state


def environment() -> dict[str, Any]:
    import torch

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {package: version(package) for package in PROVENANCE_PACKAGES},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
