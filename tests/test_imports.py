"""Which module may import which, that the command starts without heavy packages, and that the method needs only two."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import repnoise

SOURCE = Path(repnoise.__file__).parent

LAYERS = (
    ("repnoise", "errors", "data.records", "losses"),
    ("runs", "statistics", "cost", "optimisation", "four_bit", "sandbox", "sandbox.world", "distributed.pooling"),
    ("hidden_states", "data", "sandbox.tokenizer", "significance", "metrics"),
    ("report.pages", "report.panels", "report.lineage", "distributed.processes"),
    ("modeling", "defences", "judges", "muon", "report.curves", "report.latex", "distributed.sharding", "progress"),
    ("distributed", "distributed.shared_step"),
    ("training", "inputs", "inspect_data", "evals", "report.model_card", "report.completions"),
    ("attacks", "evaluate", "report.inspect_logs"),
    ("defend", "pairs", "judge_training", "rejudge"),
    ("attack",),
    ("sandbox.build", "report.summary", "report.drawing", "trainability", "cells", "estimate"),
    ("report.breaking", "report.break_drawing", "report.heat_drawing", "report.dot_drawing", "report.provenance"),
    ("analysis", "report.figures", "report.verdicts", "report.cards", "report.break_figures", "report.attack_table"),
    ("report.tables", "report.publish"),
    ("report.terminal", "report.model_pages"),
    ("report", "report.command"),
    ("demo", "options", "scorecard", "suite", "search"),
    ("tuning",),
    ("studies",),
    ("cli",),
    ("__main__",),
)
"""From the bottom to the top. A module imports from its own unit and from layers below its own, whether at the top of
the file or inside a function. A unit is a module or a whole package; the longest name counts."""

FORBIDDEN = {"evals": ("attacks", "defences", "training"), "attacks": ("evals", "judges", "evaluate")}
"""What the order alone would allow: how harm is measured must not depend on who did it, nor the other way round."""

UNITS = {unit: level for level, units in enumerate(LAYERS) for unit in units}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__") or "repnoise", path


def unit_of(module):
    """The longest unit that the module is or lies in."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in UNITS), None)


def imported(path):
    """Modules of repnoise that a file imports, anywhere in it, without the leading "repnoise."."""
    known = {name for name, _ in modules()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        inside = [name.removeprefix("repnoise.") for name in names if name.split(".")[0] == "repnoise"]
        found = [name for name in inside if name in known]
        # `from repnoise import runs` is about runs, not about the package itself.
        yield from [name for name in found if name != "repnoise" or len(found) == 1]


@pytest.mark.parametrize("module", [name for name, _ in modules()])
def test_a_module_imports_only_what_lies_below_it(module):
    unit, path = unit_of(module), dict(modules())[module]
    assert unit is not None, f"{module} is in no layer: add it to LAYERS"
    for other in imported(path):
        below = unit_of(other)
        assert below == unit or UNITS[below] < UNITS[unit], f"{module} imports {other}, which is not below it"
        assert below not in FORBIDDEN.get(unit, ()), f"{module} imports {other}"


def test_the_check_sees_imports_inside_functions(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("import repnoise.runs\ndef f():\n    from repnoise.evals import generation\n    import torch\n")
    assert set(imported(path)) == {"runs", "evals", "evals.generation"}


HEAVY = ("torch", "transformers", "matplotlib", "peft", "datasets", "scipy", "numpy")


@pytest.mark.parametrize(
    "arguments",
    [
        *("--help", "--version", "list attacks", "list evaluations", "list judges", "list datasets"),
        *("attack --help", "evaluate --help", "analyze --help"),
    ],
)
def test_what_only_prints_imports_nothing_heavy(arguments):
    """`list defences` and `defend --help` are left out: a defence is its tensors' mathematics, so torch it must be."""
    program = f"""
import sys
from repnoise.cli import main
try:
    main({arguments.split()!r})
except SystemExit as end:
    assert end.code == 0, end.code
print("heavy:", sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout and done.stderr.strip() == "heavy: []"


def test_the_method_needs_torch_and_transformers_alone():
    """Every package that repnoise asks for beyond these two is blocked, unless one of the two asks for it as well."""

    def needed(package):
        found = importlib.metadata.requires(package) or []
        return {re.split(r"[^\w.-]", line)[0].lower() for line in found if "extra ==" not in line}

    blocked = needed("repnoise") - {"torch", "transformers"} - needed("torch") - needed("transformers")
    assert {"peft", "datasets", "tyro", "rich", "scipy", "matplotlib"} <= blocked
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import repnoise.losses, repnoise.hidden_states, repnoise.defences
assert 'transformers.trainer' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
