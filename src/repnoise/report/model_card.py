"""The model card of a defended model: what was done to it, what was measured, how it fell, and what nobody tested.

The form is Hugging Face's: YAML with what is known for certain, then Markdown. Numbers stand in the text and not in the
metadata, which has no place for an interval. Nothing of this machine is in it: paths are cut to their last part.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repnoise.errors import RepnoiseError
from repnoise.metrics import limits, name_of, number, recorded
from repnoise.report.pages import rendered
from repnoise.runs import Run, fingerprint, load_run, write_text

CARD = "README.md"
_MARK = re.compile(r"\n<!-- repnoise ([0-9a-f]{16}): [^\n]* -->\n\Z")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Evidence:
    """What attacks on a model showed, and on the undefended one beside it.

    Attributes:
        worst: the verdict on the best attack, in a sentence or two.
        columns: what the table of attacks has beside the attack.
        lines: of that table, the strongest attack first.
        untried: kinds of attacks that repnoise has and nobody ran on this model.
        notes: what these numbers should be read with.
    """

    worst: str = ""
    columns: tuple[str, ...] = ()
    lines: tuple[tuple[str, ...], ...] = ()
    untried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def write_card(run: Run, evidence: Evidence | None = None, license: str = "", base_model: str = "") -> bool:
    """Write README.md beside the weights of a defence's run; whether that was done.

    A card that somebody has changed since is left as it is. Raises RepnoiseError for a run that is no defence, or has
    no model.
    """
    if run.record["kind"] != "defence":
        raise RepnoiseError(
            f"{run.path} is a run of kind {run.record['kind']!r}: only the model of a defence has a card."
        )
    if not run.model.is_dir():
        raise RepnoiseError(f"{run.path} has no model: finish it with --resume, or repeat it.")
    path = run.model / CARD
    if path.exists() and _edited(path.read_text(encoding="utf-8")):
        return False
    write_text(path, card_text(run, evidence or Evidence(), license, base_model))
    return True


def card_text(run: Run, evidence: Evidence, license: str = "", base_model: str = "") -> str:
    """The card; its last line tells whether it was changed since."""
    record = run.record
    base = base_model or hub_id(run)
    text = rendered(
        "card.md.j2",
        {
            "metadata": _metadata(record, base, license),
            "name": record["name"],
            "defence": record["config"]["defence"]["class"],
            "base": base or _short(str((record.get("parent") or {}).get("name") or "a model")),
            "on_hub": bool(base),
            "license": license,
            "data": _short(str(record["config"]["inputs"]["data"])),
            "parts": {name: part["rows"] for name, part in (record.get("data") or {}).items() if _counted(part)},
            "settings": settings_of(record["config"]),
            "measured": _measured(record.get("metrics") or {}),
            "evidence": evidence,
            "config": record["config"],
            "code": record.get("code") or {},
            "packages": (record.get("environment") or {}).get("packages") or {},
            "weights": record.get("weights"),
            "parent": (record.get("parent") or {}).get("fingerprint"),
        },
    )
    told = "made by `repnoise card`, which leaves a card alone that was changed since"
    return f"{text}\n<!-- repnoise {fingerprint(text)}: {told} -->\n"


def hub_id(run: Run) -> str:
    """The hub id of the model that a chain of runs began with; "" where it was a folder."""
    seen = {run.path.resolve()}
    while (path := (run.record.get("parent") or {}).get("path")) and (Path(path) / "run.json").exists():
        if (resolved := Path(path).resolve()) in seen:
            break
        seen.add(resolved)
        run = load_run(resolved)
    model = str(((run.record.get("config") or {}).get("inputs") or {}).get("model") or "")
    return model if _HUB_ID.fullmatch(model) and not Path(model).exists() else ""


def _edited(text: str) -> bool:
    found = _MARK.search(text)
    return found is None or fingerprint(text[: found.start()]) != found[1]


def _metadata(record: dict[str, Any], base: str, license: str) -> str:
    """What the hub reads: only what is known."""
    from huggingface_hub import ModelCardData

    known: dict[str, Any] = {"base_model": base, "license": license}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["repnoise", "tamper-resistance", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", _class(record)).lower()],
        **{name: value for name, value in known.items() if value},
    ).to_yaml()


def _class(record: dict[str, Any]) -> str:
    return str(record["config"]["defence"]["class"])


def _counted(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("rows"), int)


def settings_of(config: Any, name: str = "") -> dict[str, str]:
    """All settings by their dotted names, paths cut to their last part."""
    if not isinstance(config, dict):
        shown = ", ".join(_short(str(item)) for item in config) if isinstance(config, list) else _short(str(config))
        return {name: "none" if config is None or not shown else shown}
    found: dict[str, str] = {}
    for key, value in config.items():
        if key != "class" or name == "defence":
            found |= settings_of(value, f"{name}.{key}" if name else key)
    return found


def _short(text: str) -> str:
    """A hub id as it is; of a path, its last part: where it lay is nobody's business."""
    kind, colon, place = text.rpartition(":") if re.match(r"[\w-]{2,}:", text) else ("", "", text)
    parts = re.split(r"[/\\]", place.rstrip("/"))
    return text if len(parts) == 1 or _HUB_ID.fullmatch(place) else f"{kind}{colon}{parts[-1]}"


def _measured(metrics: dict[str, Any]) -> list[tuple[str, str, str, int]]:
    """Every metric but those of single categories: name, value, interval, how many prompts."""
    lines = []
    for metric, found in metrics.items():
        interval = recorded(found)
        if "@" not in metric and not math.isnan(interval.mean):
            shown = (name_of(metric), number(interval.mean, metric), limits(interval, metric) or "–", interval.n)
            lines.append(shown)
    return lines
