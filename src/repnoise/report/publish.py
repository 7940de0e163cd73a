"""`repnoise card`: the model card of a defence with the attacks on it as evidence, and the way of both to the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from repnoise.errors import RepnoiseError
from repnoise.metrics import name_of, spelled
from repnoise.report.breaking import Heat, heat_of
from repnoise.report.lineage import Lineage, kind_of
from repnoise.report.model_card import CARD, Evidence, write_card
from repnoise.report.summary import estimate, headline_of, summarise
from repnoise.report.verdicts import notes, verdicts
from repnoise.runs import Run, find_runs, load_run, plain

TOKEN = "HF_TOKEN"


@dataclass(frozen=True)
class CardOptions:
    """Write the model card of a defended model, with what attacks on it showed, and push both where that is asked for.

    Attributes:
        run: directory of the defence.
        runs: directories with the attacks on it and on the undefended model, or above them; by default the one that
            the run lies in.
        license: identifier of a licence as the hub has it; none is stated without it.
        base_model: hub id of the model that was defended, where it was read from a folder.
        push_to_hub: hub id (OWNER/NAME) to push the model and its card to; the token is read from HF_TOKEN.
        private: create that repository as a private one.
    """

    run: Annotated[Path, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    runs: tuple[Path, ...] = ()
    license: str = ""
    base_model: str = ""
    push_to_hub: str = ""
    private: bool = False


def card(options: CardOptions) -> None:
    """Write the card, say so, and push. Raises RepnoiseError for a run without one, and where the push fails."""
    run = load_run(options.run)
    if options.push_to_hub:
        require_hub(options.push_to_hub)
    evidence = evidence_of(run, find_runs(options.runs or (run.path.resolve().parent,)))
    written = write_card(run, evidence, options.license, options.base_model)
    kept = "" if written else " (changed since it was written, and left as it is: delete it to have a new one)"
    attacks = f"{len(evidence.lines)} attack{'' if len(evidence.lines) == 1 else 's'} on it found"
    print(f"Card: {run.model / CARD}{kept}; {attacks}.")
    if options.push_to_hub:
        print(f"Pushed: {push(run, options.push_to_hub, options.private)}")


def evidence_of(run: Run, runs: Sequence[Run]) -> Evidence:
    """What the finished runs among these say of a model: attacks on itself, beside those on the model it came from."""
    from repnoise.attacks import ATTACKS

    runs = [run, *(other for other in runs if other.path.resolve() != run.path.resolve())]
    lineage = Lineage(runs)
    own = [other for other in runs if _comes_from(other, run, lineage)]
    base = lineage.base(run)
    chosen = [*own, *(other for other in runs if other not in own and lineage.place(other)[0] == base)]
    rows, name = summarise(chosen), Lineage(chosen).place(run)[0]
    metric = headline_of(rows, name)
    if metric is None:
        return Evidence()
    worst = next(found["sentence"] for found in verdicts(rows) if found["defence"] == name)
    attacks = [other.record["config"]["attack"] for other in own if other.record["kind"] == "attack" and other.finished]
    tried, known = {kind_of(attack) for attack in attacks}, {kind_of(plain(attack)) for _, attack in ATTACKS.values()}
    mine = [row for row in rows if row["defence"] == name]
    heat = heat_of(mine, metric)
    columns = [metric, f"{metric.removesuffix('_uncovered')}_uncovered", *([heat.utility] if heat.utility else [])]
    columns = [column for column in dict.fromkeys(columns) if any(row["metric"] == column for row in mine)]
    lines = [
        (attack, *(spelled(estimate(mine, name, attack, column)[0], column) for column in columns))
        for attack in _strongest_first(heat, name)
    ]
    heads = tuple(f"{name_of(column)}{' after it' if column == heat.utility else ''}" for column in columns)
    told = tuple(note for note in notes(own, mine) if name in note)
    return Evidence(worst, heads, tuple(lines), tuple(sorted(known - tried)), told)


def _comes_from(run: Run, ancestor: Run, lineage: Lineage) -> bool:
    """Whether a run is the ancestor, or a copy of it, or began with what was made of it."""
    weights, parent = ancestor.record.get("weights"), lineage.parent(run)
    same = run is ancestor or (weights is not None and run.record.get("weights") == weights)
    return same or (parent is not None and _comes_from(parent, ancestor, lineage))


def _strongest_first(heat: Heat, name: str) -> list[str]:
    return [attack for attack in heat.attacks if (attack, name) in heat.mean]


def require_hub(repository: str) -> str:
    """The token to push with, from the environment and nowhere else.

    Raises RepnoiseError where there is none, where the hub is switched off, and for what is no hub id: before any work
    is done.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise RepnoiseError(f"{repository!r} is no hub id: give OWNER/NAME.") from None
    if repository.count("/") != 1:
        raise RepnoiseError(f"{repository!r} does not say whose it is: give OWNER/NAME.")
    if HF_HUB_OFFLINE:
        raise RepnoiseError("HF_HUB_OFFLINE is set, so that nothing can be pushed: unset it, or leave out the push.")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise RepnoiseError(f"There is no token to push with: set {TOKEN} to one that may write to {repository}.")
    return token


def push(run: Run, repository: str, private: bool = False, again: str = "the same command") -> str:
    """Create the repository if it is not there and upload the model with its card; returns its address.

    Raises RepnoiseError that says what tries `again`; the run stays as it is.
    """
    from huggingface_hub import HfApi

    token = require_hub(repository)
    api = HfApi(token=token)
    message = f"{run.record['name']}, by repnoise {(run.record.get('code') or {}).get('version', '')}".strip()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=run.model, commit_message=message)
    except Exception as error:  # The hub's client has many errors, those of its HTTP library included.
        reason = " ".join(str(error).split()).replace(token, "***").rstrip(".")[:300] or type(error).__name__
        finished = f"The model and its card are finished in {run.model}"
        raise RepnoiseError(
            f"Could not push to {repository} ({reason}). {finished}: {again} tries again.", exit_code=1
        ) from None
    return str(address)
