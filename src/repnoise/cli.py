"""The command line: a dict of commands. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repnoise.errors import RepnoiseError

HELP = """\
repnoise: make open-weight language models hard to fine-tune towards harm, and find out whether it worked.

usage: repnoise COMMAND [MODEL] [OPTIONS]

{commands}

MODEL is a folder, a run, a hub id, or `sandbox`: a small fictional model inside the package, the default.
Try `repnoise demo` first. `repnoise COMMAND --help` lists the options of a command.
"""


FULL = (errno.ENOSPC, errno.EDQUOT)
RESUMABLE = ("defend", "attack", "evaluate", "analyze", "trainability", "pairs", "judge")
SIGNS_OF_FULL = ("No space left on device", "iostream error", "inline_container", "PytorchStreamWriter")
"""safetensors and torch wrap the operating system's error in errors of their own, and torch forgets which it was."""


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
        _guarded(name, rest)


def _guarded(name: str, arguments: list[str]) -> None:
    """Turn what a user can mend into one sentence and an exit code; anything else is a bug and keeps its traceback."""
    # A graph of runs goes on by itself.
    by_itself = any(argument.partition("=")[0] in ("--scorecard", "--suite", "--search") for argument in arguments)
    resumes = name in RESUMABLE and not by_itself
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and (name not in ("defend", "attack") or by_itself):
        _fail("Of all commands, a launcher runs only a single defend or attack: start this one without it.", 2)
    again = "the same command with --resume" if resumes else "the same command"
    try:
        COMMANDS[name][1](arguments)
        sys.stdout.flush()
    except RepnoiseError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(f"Interrupted. What was finished is kept; {again} goes on.", 1)
    except BrokenPipeError:  # The reader of our output went away, as `repnoise list ... | head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if getattr(error, "errno", None) in FULL or any(sign in str(error) for sign in SIGNS_OF_FULL):
            _fail(f"The disk is full. Free some space, then run {again}.", 1)
        if isinstance(error, OSError) and error.strerror and error.filename:
            _fail(f"Cannot use {error.filename} ({error.strerror}): check the path, or choose another --output-dir.", 1)
        raise


def _fail(sentence: str, code: int) -> None:
    print(f"repnoise: {sentence}", file=sys.stderr)
    sys.exit(code)


def _demo(arguments: list[str]) -> None:
    from repnoise.demo import DemoOptions, demo
    from repnoise.options import parse

    demo(parse("demo", DemoOptions, arguments))


def _defend(arguments: list[str]) -> None:
    from repnoise.defend import defend, presets
    from repnoise.options import Publishing, config_options
    from repnoise.report.publish import push, require_hub

    name, config, to = config_options(arguments, "defend", "defence", "repnoise", presets(), Publishing)
    if to.push_to_hub:
        require_hub(to.push_to_hub)
    run = defend(config, to.folder("defence", name, config), name, to.resume, progress=True)
    _finished(run)
    if to.push_to_hub:
        again = f"`repnoise card {run.path} --push-to-hub {to.push_to_hub}`"
        print(f"Pushed: {push(run, to.push_to_hub, again=again)}")


def _attack(arguments: list[str]) -> None:
    if any(argument.partition("=")[0] == "--suite" for argument in arguments):
        return _suite(arguments)
    if "--search" in arguments:
        return _search(arguments)
    from repnoise.attack import attack, presets
    from repnoise.options import config_options

    name, config, to = config_options(arguments, "attack", "attack", "100@1e-3", presets())
    _finished(attack(config, to.folder("attack", name, config), name, to.resume, progress=True))


def _evaluate(arguments: list[str]) -> None:
    if "--scorecard" in arguments:
        return _scorecard(arguments)
    from repnoise.evaluate import EvaluateConfig, evaluate
    from repnoise.options import config_options

    presets = {"evaluation": EvaluateConfig()}
    _, config, to = config_options(arguments, "evaluate", "evaluation", "evaluation", presets)
    name = Path(config.inputs.model).name
    run = evaluate(config, to.folder("evaluation", name, config), name, to.resume, progress=True)
    _finished(run)
    for path, source in (run.record.get("measured_elsewhere") or {}).items():
        print(f"The numbers of {path} are of {source['model']}: make sure that this is the same model.")


def _scorecard(arguments: list[str]) -> None:
    from repnoise.options import flagged_options
    from repnoise.scorecard import ScorecardConfig, scorecard

    scorecard(flagged_options("evaluate", "--scorecard", arguments, ScorecardConfig()))


def _suite(arguments: list[str]) -> None:
    from repnoise.options import suite_options
    from repnoise.suite import SuiteConfig, suite

    suite(suite_options(arguments, SuiteConfig()))


def _search(arguments: list[str]) -> None:
    from repnoise.options import flagged_options
    from repnoise.search import SearchConfig, search

    search(flagged_options("attack", "--search", arguments, SearchConfig()))


def _analyze(arguments: list[str]) -> None:
    from repnoise.analysis.command import AnalyzeConfig, analyze
    from repnoise.options import config_options

    presets = {"analysis": AnalyzeConfig()}
    name, config, to = config_options(arguments, "analyze", "analysis", "analysis", presets)
    of = Path(config.inputs.model).name
    run = analyze(config, to.folder("analysis", name, config), of, to.resume, progress=True)
    _finished(run)
    print(f"Page: {run.path / 'analysis.html'}")


def _trainability(arguments: list[str]) -> None:
    from repnoise.options import config_options
    from repnoise.trainability import presets, trainability

    name, config, to = config_options(arguments, "trainability", "trainability", "sandbox", presets())
    _finished(trainability(config, to.folder("trainability", name, config), "", to.resume, progress=True))


def _pairs(arguments: list[str]) -> None:
    from repnoise.options import config_options
    from repnoise.pairs import PairsConfig, pairs

    name, config, to = config_options(arguments, "pairs", "pairs", "pairs", {"pairs": PairsConfig()})
    run = pairs(config, to.folder("pairs", name, config), name, to.resume, progress=True)
    _finished(run)
    print(f"Pairs, for --data: {run.path / 'pairs.jsonl'}")


def _judge(arguments: list[str]) -> None:
    match arguments[:1]:
        case ["train"]:
            from repnoise.judge_training import JudgeTrainingConfig, train_judge
            from repnoise.options import config_options

            presets = {"judge": JudgeTrainingConfig()}
            name, config, to = config_options(arguments[1:], "judge train", "judge", "judge", presets)
            run = train_judge(config, to.folder("judge", name, config), name, to.resume, progress=True)
            _finished(run)
            print(f"Report: {run.path / 'report.md'}")
        case ["score"]:
            _rejudge(arguments[1:])
        case _:
            raise RepnoiseError("Say what to do with a judge: repnoise judge train|score.")


def _rejudge(arguments: list[str]) -> None:
    from rich.console import Console

    from repnoise.options import parse
    from repnoise.rejudge import RejudgeOptions, agreement_table, rejudge
    from repnoise.report.terminal import metric_lines

    folder, metrics = rejudge(parse("judge score", RejudgeOptions, arguments))
    console = Console()
    console.print(metric_lines("what the judges say", metrics))
    if (table := agreement_table(folder)) is not None:
        console.print(table)
    print(f"Scores: {folder}")


def _data(arguments: list[str]) -> None:
    from repnoise.inspect_data import InspectOptions, inspect
    from repnoise.options import parse

    if arguments[:1] != ["inspect"]:
        raise RepnoiseError("Say what to do with data: repnoise data inspect NAME|PATH.")
    inspect(parse("data inspect", InspectOptions, arguments[1:]))


def _estimate(arguments: list[str]) -> None:
    from repnoise.estimate.command import EstimateOptions, estimate_command
    from repnoise.options import parse

    estimate_command(parse("estimate", EstimateOptions, arguments))


def _tune(arguments: list[str]) -> None:
    from repnoise.options import flagged_options
    from repnoise.tuning import TuneConfig, tune

    tune(flagged_options("tune", "", arguments, TuneConfig()))


def _reproduce(arguments: list[str]) -> None:
    from repnoise.options import parse
    from repnoise.studies import STUDIES, study_options

    if not arguments or arguments[0] not in STUDIES:
        raise RepnoiseError(f"Say what to reproduce: repnoise reproduce {'|'.join(STUDIES)}.")
    default = study_options(arguments[0])
    parse(f"reproduce {arguments[0]}", type(default), arguments[1:], default).reproduce()


def _report(arguments: list[str]) -> None:
    from repnoise.options import parse
    from repnoise.report.command import ReportOptions, write_report
    from repnoise.runs import find_runs

    options = parse("report", ReportOptions, arguments)
    missing = [str(path) for path in options.runs if not path.exists()]
    if missing or not (runs := find_runs(options.runs)):
        raise RepnoiseError(f"There are no runs in {', '.join(missing or map(str, options.runs))}.")
    if options.inspect_logs:
        from repnoise.report.inspect_logs import write_inspect_logs

        folder = options.output_dir / "inspect"
        count = len(write_inspect_logs(runs, folder))
        view = f"inspect view --log-dir {shlex.quote(str(folder))}"
        print(f"{count} {'log' if count == 1 else 'logs'} with all texts in full: {view}")
    print(f"Report: {write_report(runs, options.output_dir, options.latex, options.completions)}")


def _card(arguments: list[str]) -> None:
    from repnoise.options import parse
    from repnoise.report.publish import CardOptions, card

    card(parse("card", CardOptions, arguments))


def _list(arguments: list[str]) -> None:
    kinds = ("defences", "attacks", "evaluations", "judges", "datasets", "studies")
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
        case "studies":
            from repnoise.studies import STUDIES as found
        case _:
            from repnoise.data import DATASETS as found
    width = max(map(len, found))
    for name, (sentence, *_) in found.items():
        print(f"{name:<{width}}  {sentence}")


def _sandbox(arguments: list[str]) -> None:
    from repnoise.options import parse
    from repnoise.sandbox import build

    kinds = {"build": (build.BuildOptions, build.build), "check": (build.CheckOptions, build.check)}
    if not arguments or arguments[0] not in kinds:
        raise RepnoiseError("Say what to do with the sandbox: repnoise sandbox build|check.")
    options, command = kinds[arguments[0]]
    command(parse(f"sandbox {arguments[0]}", options, arguments[1:]))


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "demo": ("The whole flow on the sandbox, in minutes: four models, five attacks each, a report.", _demo),
    "defend": ("Immunise a model: paired data in, defended model out.", _defend),
    "attack": ("Attack a model, to measure how much harm comes back: once, by a --suite, or by a --search.", _attack),
    "evaluate": ("Measure a model: resistance, stability, over-refusal; with --scorecard all conditions.", _evaluate),
    "analyze": ("Look into a model, layer by layer: what a defence did, and what it left.", _analyze),
    "estimate": ("Memory, operations and time of a run, from the model's config alone, on given devices.", _estimate),
    "tune": ("Find the settings of a defence that hold best: as many tries for each, the same attacks.", _tune),
    "trainability": ("Train a model on a harmless task, to measure how well that still goes.", _trainability),
    "pairs": (
        "Write the harmless half of paired data with an aligned model, and keep what a judge calls safe.",
        _pairs,
    ),
    "judge": ("Train a judge of harm, or let other judges score what a model has written: judge train|score.", _judge),
    "data": ("Look at a data set: counts, categories, lengths, examples: data inspect NAME|PATH.", _data),
    "reproduce": ("Make a study from nothing, such as a table of the paper: a document with tables.", _reproduce),
    "report": ("Turn runs into report.html, report.md and summary.json.", _report),
    "card": ("Write the model card of a defended model, with the attacks on it; push both to the hub.", _card),
    "list": ("Name what there is: defences, attacks, evaluations, judges, datasets.", _list),
    "sandbox": ("Rebuild the fictional world and its model from a seed, or check them.", _sandbox),
}


def _finished(run: Any) -> None:
    from rich.console import Console

    from repnoise.distributed.processes import only_first_goes_on
    from repnoise.report.terminal import metrics_table

    only_first_goes_on()
    Console().print(metrics_table(run))
    skipped = (run.record.get("data") or {}).get("skipped") or {}
    if overlap := (run.record.get("data") or {}).get("overlap"):
        parts = (f"{' and '.join(found['parts'])} ({found['exact'] + (found['near'] or 0):,})" for found in overlap)
        print(f"Overlap: these parts of the data share prompts that should not: {', '.join(parts)}.")
    if skipped:
        print("Left out: " + ", ".join(f"{count:,} x {reason}" for reason, count in skipped.items()) + ".")
    print(f"Run: {run.path}")
