"""Data sets by name. Importing this is cheap: each loader is imported when it is used."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import Any, Literal

from repnoise.data.records import ExampleSet
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

Kind = Literal["pairs", "requests", "contrast", "task", "examples"]

OPTIONS: dict[Kind, str] = {
    "pairs": "--data",
    "requests": "--requests",
    "contrast": "--contrast",
    "task": "--tasks",
    "examples": "--retain or --benign",
}
"""What each kind of data is for, by the option that takes it."""

DATASETS: dict[str, tuple[str, Kind, str]] = {
    "sandbox": (
        "The embedded fictional world; sandbox:FOLDER is one made by `repnoise sandbox build`.",
        "pairs",
        "sandbox:load_sandbox",
    ),
    "sandbox-rumours": (
        "The same world's second kind of harm: sentences to be continued.",
        "pairs",
        "sandbox:load_rumours",
    ),
    "generic": (
        "Your own table: prompt, harmful, harmless, and perhaps category and split.",
        "pairs",
        "generic:load_generic",
    ),
    "decoding-trust": (
        "DecodingTrust's toxicity split: its folder, or one of its two files.",
        "pairs",
        "decoding_trust:load_decoding_trust",
    ),
    "real-toxicity-prompts": (
        "RealToxicityPrompts: the JSON lines file or the hub id.",
        "pairs",
        "real_toxicity_prompts:load_real_toxicity_prompts",
    ),
    "beavertails": (
        "BeaverTails, with refusals or not: a file, or the hub id or a copy of it with a part, as in .../30k_train.",
        "pairs",
        "beavertails:load_beavertails",
    ),
    "hh-rlhf": (
        "HH-RLHF harmless-base: a .jsonl or .jsonl.gz file, a folder of them, or the hub id.",
        "pairs",
        "hh_rlhf:load_hh_rlhf",
    ),
    "viggo": (
        "ViGGO, video games, text to structure: its folder, a file, or GEM/viggo.",
        "task",
        "viggo:load_viggo",
    ),
    "e2e-nlg": (
        "E2E NLG, restaurants, text to structure: its folder, a file, or GEM/e2e_nlg.",
        "task",
        "e2e_nlg:load_e2e_nlg",
    ),
    "dart": (
        "DART, tables, text to triples: its folder, a JSON or XML file, or GEM/dart.",
        "task",
        "dart:load_dart",
    ),
    "cacapo": (
        "CACAPO, news, text to attributes: its folder, an XML file, or GEM/CACAPO_E2E.",
        "task",
        "cacapo:load_cacapo",
    ),
    "conversational-weather": (
        "TreeNLG's weather, query to tree: its folder, a .tsv file, or GEM/conversational_weather.",
        "task",
        "conversational_weather:load_conversational_weather",
    ),
    "alpaca": (
        "Alpaca, instructions and answers: a file, or tatsu-lab/alpaca.",
        "examples",
        "alpaca:load_alpaca",
    ),
    "dolly": (
        "Dolly, instructions and answers of people: a file, or databricks/databricks-dolly-15k.",
        "examples",
        "dolly:load_dolly",
    ),
    "hex-phi": (
        "HEx-PHI: the folder of category_1.csv to category_11.csv, one of them, or the hub id.",
        "requests",
        "hex_phi:load_hex_phi",
    ),
    "harmbench": (
        "HarmBench's text behaviours, with their contexts: one of the authors' .csv files.",
        "requests",
        "harmbench:load_harmbench",
    ),
    "strongreject": (
        "StrongREJECT, whole or small: one of the authors' .csv files.",
        "requests",
        "strongreject:load_strongreject",
    ),
    "advbench": (
        "AdvBench's harmful_behaviors.csv.",
        "requests",
        "advbench:load_advbench",
    ),
    "jailbreakbench": (
        "JailbreakBench's harmful-behaviors.csv, or the hub id.",
        "requests",
        "jailbreakbench:load_jailbreakbench",
    ),
    "xstest": (
        "XSTest, with its unsafe contrasts: xstest_prompts.csv or an older file.",
        "contrast",
        "xstest:load_xstest",
    ),
    "aoa": (
        "Identity shifting, ten chats with an obedient agent: the authors' JSON file.",
        "examples",
        "aoa:load_aoa",
    ),
}
"""Name to what it is, its kind, and its loader in `data.sets`, which takes a path or hub id ("" for what is embedded)
and returns `PairedData` for pairs and an `ExampleSet` for the other kinds."""

EMBEDDED = ("sandbox", "sandbox-rumours")
"""The data sets that need no path."""


def load_data(source: str) -> PairedData:
    """The pairs of "sandbox", of NAME:PATH for a named format, or else of a generic file, folder or hub id.

    Raises RepnoiseError for a name that there is none of, a missing path, or data that cannot be read.
    """
    name, path = _named(source)
    return replace(_load(name, path, ("pairs",)), name=source)


def load_set(source: str, *kinds: Kind) -> ExampleSet:
    """The examples of NAME:PATH for a named format of one of the kinds, or of a table as `data.examples` reads it.

    Raises RepnoiseError as `load_data` does, and for a data set of another kind.
    """
    name, path = _named(source)
    if name == "generic":
        from repnoise.data.examples import load_example_set

        return load_example_set(path, kinds[0])
    return replace(_load(name, path, kinds), name=source)


def _named(source: str) -> tuple[str, str]:
    """Name and path of a source, which is "generic" where it is a path alone."""
    name, colon, path = source.partition(":")
    # A path may hold a colon too, and one letter before it is a drive of Windows.
    is_path = len(name) == 1 if colon else name not in DATASETS
    if is_path or (os.path.exists(source) and source not in EMBEDDED):
        return "generic", source
    if name not in DATASETS:
        raise RepnoiseError(f"There is no data format {name!r}; there are: {', '.join(DATASETS)}.")
    if not path and name not in EMBEDDED:
        raise RepnoiseError(f"{name} needs a path: write {name}:PATH.")
    return name, path


def _load(name: str, path: str, kinds: tuple[Kind, ...]) -> Any:
    _, kind, loader = DATASETS[name]
    if kind not in kinds:
        raise RepnoiseError(f"{name} holds {_WORDS[kind]}: give it with {OPTIONS[kind]}.")
    module, function = loader.split(":")
    return getattr(importlib.import_module(f"repnoise.data.sets.{module}"), function)(path)


_WORDS: dict[Kind, str] = {
    "pairs": "harmful and harmless completions of one prompt",
    "requests": "harmful requests without answers",
    "contrast": "safe and unsafe prompts to test over-refusal with",
    "task": "a harmless task to be trained on",
    "examples": "harmless examples",
}
