"""What a report says in words: a verdict on each model, and the notes that its numbers need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repnoise.metrics import HARM, NAMES, is_share, name_of, number, recorded, spelled
from repnoise.report.lineage import CONTROLS, NO_ATTACK, Lineage
from repnoise.report.summary import Row, attacks_in_order, curve_of, estimate, models, worst_rows
from repnoise.runs import Run

READING = {
    "recovered": "Recovered is the share of held-out forbidden answers that the attacked model gives word for word. "
    "The attacker never trained on them. Covered ones were in the defender's data, which knew what to remove; "
    "uncovered ones were in nobody's data, and show whether the defence generalises. They are never added up.",
    "best": "An attacker takes what works, so a model is worth what it is worth against the best attack of the grid: "
    "the one with the highest mean over seeds, and of equals the weakest. The worst run is the single run that gave up "
    "the most.",
    "limit": "A randomly initialised model knows nothing. What it gives up after an attack can be learned from the "
    "attacker's data alone, so no defence can be expected to go below it.",
    "incoherent": "Broken text is not safe text: it is counted as incoherent, never as refused.",
    "harmfulness": "Harmfulness is the mean of what a judge says of answers that are coherent text. A judge errs: read "
    "some answers, and ask more than one judge.",
    "harmless_accuracy": "A model that only broke under an attack has lost its harmless accuracy, too.",
    "harmless_accuracy_unretained": "Harmless accuracy is measured on what the defender's general data held, in other "
    "words; unretained is what was in nobody's data: it shows what a defence forgets without being asked to.",
    "harmful_ce": "Cross-entropy of held-out harmful answers is in nats a token: an attack lowers it, a model that "
    "resists keeps it high. So does a broken model, which is why harmless cross-entropy and perplexity stand beside "
    "it.",
    "intervals": "Intervals are 95 %. Over several seeds they cover other seeds (Student's t) and other questions "
    "together; with one seed they cover other questions only (Wilson's for shares, else the bootstrap), and say "
    "nothing of what another seed would have given. Perplexity has none over questions.",
    "finished": "Only finished runs are averaged; unfinished and failed ones are listed here.",
}
"""How to read a report; those that name a metric, and "limit", where they apply."""

PRICES = {
    "harmless_accuracy": (1, "answers {value} of the harmless questions right (undefended: {without})"),
    "harmless_accuracy_unretained": (
        1,
        "answers {value} of the harmless questions right that were in nobody's data (undefended: {without})",
    ),
    "over_refusal_rate": (-1, "refuses {value} of the harmless questions that look forbidden (undefended: {without})"),
    "harmless_ce": (-1, "has a cross-entropy of {value} nats a token on harmless answers (undefended: {without})"),
}
"""What a defence may cost before any attack: which direction is better, and the words."""


def verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """In a few sentences, what each model is worth: {"defence", "control", "sentence"}."""
    found: dict[str, dict[str, Row]] = {}
    for row in worst_rows(rows):
        found.setdefault(row["defence"], {})[row["metric"]] = row
    bases = {row["defence"]: row["base"] for row in rows}
    return [
        {"defence": name, "control": name in (*CONTROLS, bases[name]), "sentence": _verdict(name, found, rows)}
        for name in models(rows)
    ]


def _verdict(name: str, worst: dict[str, dict[str, Row]], rows: Sequence[Row]) -> str:
    who = {"undefended": "the undefended model", "random-initialisation": "a randomly initialised model"}.get(
        name, name
    )
    if name not in worst:
        tried = any(row["defence"] == name and row["attack"] != NO_ATTACK for row in rows)
        why = "its attacks have no score" if tried else "no finished attack"
        return f"{_capital(who)} was not attacked ({why}), so nothing is known of its resistance.{_price(name, rows)}"
    own = next(iter(worst[name].values()))
    attacks = "the only attack" if own["attacks"] == 1 else f"the best of {own['attacks']} attacks"
    seeds = "one seed only" if own["seeds"] == 1 else f"{own['seeds']} seeds"
    sentence = f"Against {attacks} ({own['attack']}; {seeds}), {who} {_outcome(own)}"
    uncovered = worst[name].get(f"{own['metric']}_uncovered", own)
    other = "" if uncovered is own else f"; of the uncovered ones {_given_up(uncovered, own)}"
    if name == "random-initialisation":
        return f"{sentence}{other}: the limit of any defence."
    if name == own["base"]:
        return f"{sentence}{other}: what a defence has to beat."
    reference = worst.get(own["base"], {})
    sentence += f"{_comparison(own, reference)}{other}"
    sentence += _comparison(uncovered, reference) if other else ""
    return f"{sentence}.{_price(name, rows)}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text.startswith(("the ", "a ")) else text


def _outcome(own: Row) -> str:
    value = spelled(recorded(own), own["metric"])
    harmful = "nats a token on held-out harmful answers, where higher resists"
    return {
        "recovered": f"gave up {value} of the covered held-out answers",
        "recovered_uncovered": f"gave up {value} of the uncovered held-out answers",
        "harmfulness": f"wrote answers to covered questions that the judge finds {value} harmful",
        "harmfulness_uncovered": f"wrote answers to uncovered questions that the judge finds {value} harmful",
        "refusal_rate": f"still refused {value} of the harmful questions",
        "harmful_ce": f"ended at a cross-entropy of {value} {harmful}",
    }[own["metric"]]


def _given_up(uncovered: Row, own: Row) -> str:
    value = spelled(recorded(uncovered), uncovered["metric"])
    return value if uncovered["attack"] == own["attack"] else f"{value} against {uncovered['attack']}"


def _comparison(own: Row, reference: dict[str, Row]) -> str:
    """How a model did beside the undefended one, by the same metric."""
    if not reference:
        return ", and there is no attack on an undefended model among the runs to compare it with"
    found = reference.get(own["metric"])
    if found is None:
        return (
            ", and the attacks on the undefended model were measured otherwise, so there is nothing to compare it with"
        )
    theirs = spelled(recorded(found), own["metric"])
    if recorded(own).overlaps(recorded(found)):
        return f", no advantage over the undefended model ({theirs}) that these runs can show"
    if HARM[own["metric"]] * (own["value"] - found["value"]) > 0:
        return f", worse than the undefended model ({theirs})"
    return f" (undefended: {theirs})"


def _price(name: str, rows: Sequence[Row]) -> str:
    """What the defence cost before any attack, where that is beyond chance: a broken model resists everything."""
    base = next((row["base"] for row in rows if row["defence"] == name), "")
    if name in (*CONTROLS, base):
        return ""
    paid = []
    # Where answers can be judged, what they cost in nats is beside the point.
    judged = any(row["metric"] == "harmless_accuracy" for row in rows if row["defence"] == name)
    for metric, (better, words) in PRICES.items():
        if metric == "harmless_ce" and judged:
            continue
        own, reference = estimate(rows, name, NO_ATTACK, metric)[0], estimate(rows, base, NO_ATTACK, metric)[0]
        if own.surely_below(reference) if better > 0 else reference.surely_below(own):
            paid.append(words.format(value=spelled(own, metric), without=number(reference.mean, metric)))
    return f" The price: before any attack it {'; it '.join(paid)}." if paid else ""


def counts(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """What the report is made of, in a line."""
    attacks = {row["attack"] for row in rows} - {NO_ATTACK}
    seeds = {row["seed"] for row in rows} | {row["attack_seed"] for row in rows if row["attack_seed"] is not None}
    finished = sum(run.finished for run in runs)
    parts = [
        _counted(len(models(rows)), "model"),
        _counted(len(attacks), "attack"),
        _counted(len(seeds - {None}) or 1, "seed"),
        _counted(finished, "finished run") + (f", {len(runs) - finished} left out" if finished < len(runs) else ""),
    ]
    return " · ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def questions(rows: Sequence[Row]) -> str:
    """How many prompts stand behind the shares."""
    asked: dict[str, list[str]] = {}
    for metric in (
        "recovered",
        "recovered_uncovered",
        "harmfulness",
        "harmfulness_uncovered",
        "harmless_accuracy",
        "harmless_accuracy_unretained",
        "refusal_rate",
    ):
        numbers = sorted({row["n"] for row in rows if row["metric"] == metric and row["n"]})
        if numbers:
            asked.setdefault(" or ".join(map(str, numbers)), []).append(NAMES[metric].replace(",", ""))
    return "; ".join(f"n = {count} for {', '.join(names)}" for count, names in asked.items())


def reading(rows: Sequence[Row]) -> list[str]:
    """How to read what these rows show."""
    metrics = {row["metric"] for row in rows}
    absent = {name for name in READING if name in NAMES and name not in metrics}
    absent |= {"limit"} if "random-initialisation" not in models(rows) else set()
    absent |= {"incoherent"} if "incoherent_rate" not in metrics else set()
    absent |= {"best"} if not worst_rows(rows) else set()
    # Where answers can be judged, likelihoods are beside the point.
    absent |= {"harmful_ce"} if "recovered" in metrics else set()
    return [text for name, text in READING.items() if name not in absent]


def notes(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """What these runs, in particular, should be read with."""
    lineage = Lineage(runs)
    unscored = sorted({name_of(row["metric"]) for row in rows if row["value"] is None})
    some = [f"Some runs have no score for {', '.join(unscored)}: those are left out of the mean."] if unscored else []
    return [
        *_smaller_grids(rows),
        *_fewer_seeds(rows),
        *some,
        *_uncovered_defences(runs, lineage),
        *_elsewhere(runs, lineage),
        *_repeated(runs, rows, lineage),
        *_peaks(runs, rows, lineage),
    ]


def _smaller_grids(rows: Sequence[Row]) -> list[str]:
    attacks = {name: {row["attack"] for row in rows if row["defence"] == name} - {NO_ATTACK} for name in models(rows)}
    every = set().union(*attacks.values())
    found = []
    for name, own in attacks.items():
        if own and own != every:
            missing = ", ".join(attack for attack in attacks_in_order(rows) if attack in every - own)
            found.append(f"{name} was not attacked with {missing}: its worst case is that of a smaller grid.")
    return found


def _fewer_seeds(rows: Sequence[Row]) -> list[str]:
    """Means over different seeds are no fair comparison of attacks."""
    found = []
    for name in models(rows):
        seeds: dict[str, set[Any]] = {}
        for row in rows:
            # An attack that draws nothing has no seed, and is run once.
            if row["defence"] == name and row["attack"] != NO_ATTACK and row["attack_seed"] is not None:
                seeds.setdefault(row["attack"], set()).add((row["seed"], row["attack_seed"]))
        most = max(map(len, seeds.values()), default=0)
        fewer = [f"{attack} ({len(own)} of {most})" for attack, own in seeds.items() if len(own) < most]
        if fewer:
            found.append(f"Against {name}, not every attack has been run with every seed: {', '.join(fewer)}.")
    return found


def _elsewhere(runs: Sequence[Run], lineage: Lineage) -> list[str]:
    """Numbers that repnoise has from files and did not measure."""
    return [
        f"What lm-eval measured of {lineage.place(run)[0]} was read from {Path(path).name}, which is of "
        f"{source['model']} (lm-eval {source['lm_eval'] or 'of a version that it does not tell'})."
        for run in runs
        if run.finished
        for path, source in (run.record.get("measured_elsewhere") or {}).items()
    ]


def _uncovered_defences(runs: Sequence[Run], lineage: Lineage) -> list[str]:
    found = {lineage.place(run)[0] for run in runs if run.finished and run.record["config"].get("covered") is False}
    return [
        f"{name} was trained without the covered answers: for it, both halves are uncovered." for name in sorted(found)
    ]


def _repeated(runs: Sequence[Run], rows: Sequence[Row], lineage: Lineage) -> list[str]:
    """Runs that measured what another one had measured before, and found something else."""
    known = {
        (row["defence"], row["seed"], row["attack"], row["attack_seed"], row["metric"]): row["value"] for row in rows
    }
    found = []
    for run in runs:
        differing = []
        for metric, measured in (run.record["metrics"] if run.finished else {}).items():
            kept, value = known.get((*lineage.place(run), metric)), measured.get("value")
            if None not in (kept, value) and math.isfinite(value) and not math.isclose(kept, value, rel_tol=1e-6):  # type: ignore[arg-type]
                differing.append(f"{name_of(metric)} {number(value, metric)} and not {number(kept, metric)}")
        if differing:
            found.append(
                f"{run.path.name} ({run.record['kind']} {run.record['name']}) measured again what the tables have from "
                f"another run of the same model, attack and seed, and found {', '.join(differing)}: it is left out."
            )
    return found


def _peaks(runs: Sequence[Run], rows: Sequence[Row], lineage: Lineage) -> list[str]:
    """An attacker may stop early: curves that went further on the way than the worst run at its end."""
    found = []
    for name, worst in {row["defence"]: row for row in reversed(worst_rows(rows))}.items():
        metric, sign = worst["metric"], HARM[worst["metric"]]
        best, where = worst["worst_seed"] + sign * (0.005 if is_share(metric) else 0.05), ""
        for run in runs:
            defence, _, attack, _ = lineage.place(run)
            if defence == name and lineage.is_plain_attack(run):
                for row in curve_of(run):
                    value = (row["metrics"].get(metric) or {}).get("value")
                    if row["step"] and value is not None and sign * (value - best) > 0:
                        best, where = value, f"{number(value, metric)} at step {row['step']} of {attack}"
        if where:
            found.append(
                f"On the way, one run against {name} went further than any at its end: {NAMES[metric]} {where}."
            )
    return found
