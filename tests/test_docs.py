"""What the documents say is so: the worked example works, maps are complete, numbers are recounted, names exist."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import reduce
from pathlib import Path

import pytest
import yaml

import repnoise
import test_imports
from repnoise import cli, losses
from repnoise.data.records import SPLITS
from repnoise.defences import repnoise as method
from repnoise.sandbox import world

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "repnoise"
DOCUMENTS = ("CONTRIBUTING.md", "docs/objective.md", "docs/sandbox.md", "docs/decisions.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def fenced(text, heading, language=""):
    """The first fenced block below a heading."""
    found = re.search(rf"^## {heading}$.*?^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, f"no block of {language or 'text'} below {heading!r}"
    return found[1]


def modules():
    """Module name, less the package's, to its file; a package is named as its __init__."""
    files = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    return {".".join(part for part in parts if part != "__init__"): path for parts, path in files.items()}


# The worked example


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """Environment of a process that runs a copy of the package to which CONTRIBUTING's diff was applied."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(PACKAGE, folder / "src" / "repnoise", ignore=shutil.ignore_patterns("__pycache__", "shipped"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "example.diff").write_text(fenced(text_of("CONTRIBUTING.md"), "Adding a defence: three hunks", "diff"))
    # Without the ceiling, git would look for these files in a repository above the temporary folder.
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    applied = subprocess.run(
        ["git", "apply", "example.diff"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert applied.returncode == 0, applied.stderr
    return environment


def run(command, environment, folder=ROOT):
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_worked_example_is_three_hunks():
    diff = fenced(text_of("CONTRIBUTING.md"), "Adding a defence: three hunks", "diff")
    assert len(re.findall(r"^@@ ", diff, re.MULTILINE)) == 3
    assert not re.findall(r"^-(?!--)", diff, re.MULTILINE)


def test_the_worked_example_is_listed_and_gives_a_finite_loss_with_named_terms(extended):
    program = """
import torch, repnoise
from transformers import LlamaConfig, LlamaForCausalLM
from repnoise import cli
from repnoise.defences import DEFENCES

print(repnoise.__file__)
cli.main(["list", "defences"])
size = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=40, pad_token_id=1, **size))
ids = torch.randint(4, 40, (3, 6))
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
_, defence, _ = DEFENCES["ascent-to-chance"]
for retain in (None, batch):
    loss, terms = defence.loss(model, batch, batch, retain)
    assert loss.shape == () and loss.isfinite() and loss.requires_grad
    assert not any(term.requires_grad for term in terms.values())
    print(*terms)
"""
    lines = run([sys.executable, "-c", program], extended).splitlines()
    assert lines[0].startswith(extended["PYTHONPATH"])
    assert any(re.match(r"ascent-to-chance +Gradient ascent .*\.$", line) for line in lines)
    assert lines[-2:] == ["stability ascent", "stability ascent retain"]


def test_the_worked_example_passes_the_projects_linter(extended):
    folder = Path(extended["PYTHONPATH"]).parent
    for check in (["check"], ["format", "--check"]):
        run([sys.executable, "-m", "ruff", *check, "src/repnoise/defences"], extended, folder)


@pytest.mark.slow
def test_the_worked_example_passes_the_contract_tests_of_every_defence(extended):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "ascent-to-chance"]
    assert "passed" in run([*command, "tests/defences/test_contract.py"], extended)


@pytest.mark.slow
def test_the_worked_example_trains_from_the_command_line(extended, tiny_model, pairs_file, tmp_path):
    options = ["--preset", "ascent-to-chance", "--ascent-weight", "0.2", "--data", str(pairs_file)]
    options += ["--steps", "2", "--batch-size", "4", "--output-dir", str(tmp_path / "run"), "--max-new-tokens", "4"]
    run([sys.executable, "-m", "repnoise", "defend", str(tiny_model), *options], extended)
    assert '"ascent_weight": 0.2' in (tmp_path / "run" / "run.json").read_text()


# Maps


def test_the_layout_names_every_file_of_the_package():
    named, folders = set(), []
    first, *lines = fenced(text_of("CONTRIBUTING.md"), "Layout").splitlines()
    assert first == "src/repnoise/"
    for line in lines:
        names, phrase = re.match(r"((?:\S+, )*\S+) *(.*)", line.strip()).groups()
        folders = folders[: (len(line) - len(line.lstrip())) // 2 - 1]
        paths = [Path(*folders, name) for name in names.split(", ")]
        for path in paths:
            assert (PACKAGE / path).exists(), f"the layout names {path}, which is not there"
        if names.endswith("/"):
            folders.append(names)
        else:
            assert phrase, f"{names} has no phrase"
            named.update(paths)
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")}
    assert {path for path in named if path.suffix == ".py"} == files


def test_the_documented_direction_of_imports_is_the_enforced_one():
    block = " ".join(fenced(text_of("CONTRIBUTING.md"), "Direction of imports").split())
    documented = [set(layer.split(", ")) for layer in block.split(" <- ")]
    worth_a_word = set(modules()) - {"", "__main__", "sandbox"}  # The version, the entry point, an empty package.
    enforced = [set(layer) & worth_a_word for layer in test_imports.LAYERS]
    assert documented == [layer for layer in enforced if layer]


def test_five_hops_lead_from_the_command_to_the_mathematics(monkeypatch, tiny_model, pairs_file, tmp_path):
    block = fenced(text_of("CONTRIBUTING.md"), "Five hops from the command to the mathematics")
    hops = [line.split()[0] for line in block.splitlines()]
    assert len(hops) == 6
    stacks = []

    def traced(*args):
        frame, stack = sys._getframe(), []
        while frame := frame.f_back:
            module = frame.f_globals.get("__name__", "").removeprefix("repnoise.")
            stack.append(f"{module}.{frame.f_code.co_qualname}")
        stacks.append(stack[::-1])
        return losses.mmd2(*args)

    monkeypatch.setattr(method, "mmd2", traced)
    options = ["--steps", "1", "--batch-size", "4", "--output-dir", str(tmp_path / "run"), "--max-new-tokens", "2"]
    cli.main(["defend", str(tiny_model), "--data", str(pairs_file), *options])
    called = iter([*stacks[0], "losses.mmd2"])
    assert all(hop in called for hop in hops), f"{hops} are not called in this order"


# Names and numbers


def test_documents_name_files_and_tests_that_exist():
    functions = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        functions.setdefault(path.name, set()).update(names)
    for name in DOCUMENTS:
        text = text_of(name)
        for file, function in re.findall(r"`(?:[\w/]*/)?(test_\w+\.py)::(\w+)`", text):
            assert function in functions.get(file, ()), f"{name}: there is no {file}::{function}"
        for file in re.findall(r"`((?:src|tests|docs|examples)/[\w/.]+\.\w+)`", text):
            assert (ROOT / file).exists(), f"{name}: there is no {file}"
        for file in re.findall(r"\]\(([\w/.]+)\)", text):
            assert (ROOT / name).parent.joinpath(file).exists(), f"{name}: there is no {file}"


def test_documents_name_modules_and_functions_that_exist():
    """Dotted names in code that begin with a module of the package: `losses.mmd2`, `training.Class.method`."""
    known = modules()
    found = 0
    for name in DOCUMENTS:
        for dotted in re.findall(r"`((?:\w+\.)+\w+)`", text_of(name)):
            if (ROOT / name).parent.joinpath(dotted).exists() or dotted.endswith((".py", ".json", ".html", ".md")):
                continue
            parts = dotted.removeprefix("repnoise.").split(".")
            module = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in known), None)
            if module is None:
                continue
            rest = parts[module.count(".") + 1 :]
            owner = importlib.import_module(f"repnoise.{module}")
            fields = getattr(reduce(getattr, rest[:-1], owner), "__dataclass_fields__", {}) if rest else {}
            assert not rest or rest[-1] in fields or reduce(getattr, rest, owner), f"{name}: {dotted}"
            found += 1
    assert found > 20


def test_documents_name_commands_that_exist():
    for name in DOCUMENTS:
        for command in re.findall(r"(?:^|`)repnoise ([a-z]+)", text_of(name), re.MULTILINE):
            assert command in cli.COMMANDS, f"{name}: repnoise {command}"


def test_the_sandboxs_numbers_are_those_of_the_world():
    made = world.build_world(0)
    sizes = {
        "harmless kinds": [len(world.HARMLESS_KINDS)],
        "forbidden kinds, which are the categories": [len(world.FORBIDDEN_KINDS)],
        "items of each kind": [world.ITEMS_PER_KIND],
        "forbidden items: defence, attack, covered, uncovered": [len(made.forbidden[split]) for split in SPLITS],
        "rumours: defence, attack, covered, uncovered": [len(made.rumours[split]) for split in SPLITS],
        "items of each harmless kind: retain, benign, test": [
            sum(example.category == "stew" for example in made.harmless_examples(split, unseen_phrasing=True))
            for split in ("retain", "benign", "test")
        ],
        "phrasings of a question in training": [len(world.QUESTIONS)],
        "refusals": [len(world.REFUSALS)],
        "lookalikes": [len(made.lookalikes)],
        "examples of each task: train, test": [len(made.tasks["trade"][split]) for split in ("train", "test")],
        "ingredients": [len(made.ingredients)],
    }
    written = dict(re.findall(r"^\| (.+?) \| ([\d, ]+) \|$", text_of("docs/sandbox.md"), re.MULTILINE))
    assert written == {what: ", ".join(map(str, numbers)) for what, numbers in sizes.items()}


def test_the_sandboxs_examples_are_sentences_of_the_shipped_world():
    made = world.build_world(0)
    pairs = [pair for split in SPLITS for pair in made.pairs(split) + made.rumour_pairs(split)]
    sentences = {text for pair in pairs for text in (pair.prompt, pair.harmful)}
    sentences |= {example.prompt for example in made.lookalikes}
    quoted = re.findall(r'"([^"]+)"', " ".join(text_of("docs/sandbox.md").split()))
    quoted = [sentence for sentence in quoted if "Safety Alignment" not in sentence]
    assert len(quoted) == 4
    assert not set(quoted) - sentences


def test_the_objectives_numbers_are_those_of_the_formula():
    text = " ".join(text_of("docs/objective.md").split())
    floor = {n: losses.mmd2_floor(n, n, 10**7) for n in (4, 8, 16, 512)}
    assert f"{floor[4]:.2f} at n = 4, {floor[8]:.2f} at 8, {floor[16]:.2f} at 16" in text
    assert f"at 8 sequences the floor is {floor[8]:.2f}, at 512 tokens {floor[512]:.3f}" in text
    assert f"= {5 - floor[4] * 4 / 2:.3f} ," in text


# What other tools read


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "references"} <= set(citation)
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert len(citation["references"][0]["authors"]) == 9
    assert re.search(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), re.MULTILINE)[1] == PROJECT["version"]
    assert repnoise.__version__ == PROJECT["version"]


def test_pre_commit_runs_what_ci_runs():
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    hooks = [hook["entry"] for hook in local["hooks"]]
    ci = re.findall(r"^\.venv/bin/(ruff \w+|pyright)", text_of(".ci/run"), re.MULTILINE)
    assert len(ci) == 3
    assert [entry for entry in ci if not any(hook.startswith(entry) for hook in hooks)] == []
    dev = " ".join(PROJECT["optional-dependencies"]["dev"])
    assert all(hook.split()[0] in dev for hook in hooks)
