"""The command line: a dict of commands. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from repnoise.errors import RepnoiseError

HELP = """\
repnoise: make open-weight language models hard to fine-tune towards harm, and find out whether it worked.

usage: repnoise COMMAND [MODEL] [OPTIONS]

{commands}

MODEL is a folder, a run, a hub id, or `sandbox`: a small fictional model inside the package, the default.
Try `repnoise demo` first. `repnoise COMMAND --help` lists the options of a command.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exit code 0 for success, 1 for a run that failed, 2 for a request that cannot be met."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {command:<{width}}  {sentence}" for command, (sentence, _) in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
    elif name == "--version":
        from repnoise import __version__

        print(f"repnoise {__version__}")
    elif name not in COMMANDS:
        _fail(f"There is no command {name!r}: choose from {', '.join(COMMANDS)}.", 2)
    else:
        _guarded(COMMANDS[name][1], rest)


def _guarded(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Turn what a user can mend into one sentence and an exit code; anything else is a bug and keeps its traceback."""
    try:
        command(arguments)
    except RepnoiseError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("Interrupted. What was finished is kept; the same command with --resume goes on.", 1)
    except BrokenPipeError:
        sys.stderr.close()  # The reader of our output went away, as `repnoise list ... | head` does.
    except Exception as error:
        # torch and safetensors wrap the operating system's error in errors of their own.
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            _fail("The disk is full. Free some space, then run the same command with --resume.", 1)
        if isinstance(error, PermissionError):
            _fail(f"Not allowed to write to {error.filename}: choose another --output-dir.", 1)
        raise


def _fail(sentence: str, code: int) -> None:
    print(f"repnoise: {sentence}", file=sys.stderr)
    sys.exit(code)


def _demo(arguments: list[str]) -> None:
    from repnoise.demo import DemoOptions, demo

    demo(_parse("demo", DemoOptions, arguments))


def _defend(arguments: list[str]) -> None:
    from repnoise.defend import defend, presets

    name, config, to = _config(arguments, "defend", "repnoise", presets())
    _finished(defend(config, to.folder("defence", name, config), name, to.resume, progress=True))


def _attack(arguments: list[str]) -> None:
    from repnoise.attack import attack, presets

    name, config, to = _config(arguments, "attack", "100@1e-3", presets())
    _finished(attack(config, to.folder("attack", name, config), name, to.resume, progress=True))


def _evaluate(arguments: list[str]) -> None:
    from repnoise.evaluate import EvaluateConfig, evaluate

    name, config, to = _config(arguments, "evaluate", "evaluation", {"evaluation": EvaluateConfig()})
    _finished(evaluate(config, to.folder("evaluation", name, config), name, to.resume))


def _report(arguments: list[str]) -> None:
    from repnoise.report import ReportOptions, write_report
    from repnoise.runs import find_runs

    options = _parse("report", ReportOptions, arguments)
    missing = [str(path) for path in options.runs if not path.exists()]
    if missing or not (runs := find_runs(options.runs)):
        raise RepnoiseError(f"There are no runs in {', '.join(missing or map(str, options.runs))}.")
    print(f"Report: {write_report(runs, options.output_dir)}")


def _list(arguments: list[str]) -> None:
    kinds = ("defences", "attacks", "evaluations", "judges", "datasets")
    if len(arguments) != 1 or arguments[0] not in kinds:
        raise RepnoiseError(f"Say what to list: repnoise list {'|'.join(kinds)}.")
    match arguments[0]:
        case "defences":
            from repnoise.defences import DEFENCES as found
        case "attacks":
            from repnoise.attacks import ATTACKS as found
        case "evaluations":
            from repnoise.evals.evaluations import EVALUATIONS as found
        case "judges":
            from repnoise.judges import JUDGES as found
        case _:
            from repnoise.data import DATASETS as found
    width = max(map(len, found))
    for name, (sentence, *_) in found.items():
        print(f"{name:<{width}}  {sentence}")


def _sandbox(arguments: list[str]) -> None:
    from repnoise.sandbox import build

    kinds = {"build": (build.BuildOptions, build.build), "check": (build.CheckOptions, build.check)}
    if not arguments or arguments[0] not in kinds:
        raise RepnoiseError("Say what to do with the sandbox: repnoise sandbox build|check.")
    options, command = kinds[arguments[0]]
    command(_parse(f"sandbox {arguments[0]}", options, arguments[1:]))


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "demo": ("The whole flow on the sandbox, in minutes: four models, five attacks each, a report.", _demo),
    "defend": ("Immunise a model: paired data in, defended model out.", _defend),
    "attack": ("Fine-tune a model towards harm, to measure how much of it comes back.", _attack),
    "evaluate": ("Measure a model: resistance, stability, over-refusal.", _evaluate),
    "report": ("Turn runs into report.html, report.md and summary.json.", _report),
    "list": ("Name what there is: defences, attacks, evaluations, judges, datasets.", _list),
    "sandbox": ("Rebuild the fictional world and its model from a seed, or check them.", _sandbox),
}


@dataclass(frozen=True)
class Destination:
    """Where a run goes.

    Attributes:
        output_dir: the run's directory; by default one below runs/ that is named after the run's settings.
        resume: go on with an interrupted run.
    """

    output_dir: Path | None = None
    resume: bool = False

    def folder(self, kind: str, name: str, config: Any) -> Path:
        from repnoise.runs import fingerprint

        return self.output_dir or Path("runs") / f"{kind}-{name}-{fingerprint(config)[:8]}"


def _config(arguments: list[str], command: str, preset: str, presets: dict[str, Any]) -> tuple[str, Any, Destination]:
    """The config that the arguments ask for: `--preset NAME|RUN` sets the defaults, the other options change them."""
    from repnoise.inputs import FLAT

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=preset)
    known, rest = parser.parse_known_args(arguments)
    name, default = _preset(known.preset, presets)
    options = make_dataclass(
        "Options", [("config", Annotated[type(default), FLAT]), ("to", Annotated[Destination, FLAT])], frozen=True
    )
    options.__doc__ = f"{type(default).__doc__}\n\n--preset NAME|RUN sets the defaults; this is {name!r}."
    parsed = _parse(command, options, rest, options(default, Destination()))
    return name, parsed.config, parsed.to


def _preset(name: str, presets: dict[str, Any]) -> tuple[str, Any]:
    """A named preset, or the config of an earlier run, given by its directory."""
    if name in presets:
        return name, presets[name]
    from repnoise.runs import load_run, restored

    if (Path(name) / "run.json").exists():
        record = load_run(Path(name)).record
        return record["name"], restored(record["config"], presets.values())
    raise RepnoiseError(f"There is no preset {name!r}: choose from {', '.join(presets)}, or give a run's directory.")


def _parse(command: str, options: Any, arguments: list[str], default: Any = None) -> Any:
    import tyro

    extra = {} if default is None else {"default": default}
    return tyro.cli(options, args=arguments, prog=f"repnoise {command}", **extra)


def _finished(run: Any) -> None:
    from rich.console import Console

    from repnoise.report import metrics_table

    Console().print(metrics_table(run))
    print(f"Run: {run.path}")
