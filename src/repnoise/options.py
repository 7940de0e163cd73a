"""The options of a command: the fields of its config by flat names, presets to start from, and where the run goes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from repnoise.errors import RepnoiseError
from repnoise.inputs import Inputs


@dataclass(frozen=True)
class Destination:
    """Where a run goes.

    Attributes:
        preset: a name, or the directory of an earlier run to be repeated; the other options change its settings.
        output_dir: the run's directory; by default one below runs/ that is named after the run's settings.
        resume: go on with an interrupted run.
    """

    preset: Annotated[str, tyro.conf.arg(metavar="NAME|RUN")] = ""
    output_dir: Path | None = None
    resume: bool = False

    def folder(self, kind: str, name: str, config: Any) -> Path:
        from repnoise.runs import fingerprint

        return self.output_dir or Path("runs") / f"{kind}-{name}-{fingerprint(config)[:8]}"


@dataclass(frozen=True)
class Publishing(Destination):
    """Where a defended model goes.

    Attributes:
        push_to_hub: hub id (OWNER/NAME) to push the finished model and its card to; the token is read from HF_TOKEN.
    """

    push_to_hub: str = ""


def config_options(
    arguments: list[str],
    command: str,
    kind: str,
    preset: str,
    presets: dict[str, Any],
    destination: type[Destination] = Destination,
) -> tuple[str, Any, Any]:
    """The name, the config and the destination that the arguments ask for.

    `--preset` sets the defaults and the other options change them. Where MODEL is a run, its data and its way of asking
    are defaults, too, unless an earlier run is repeated. Raises RepnoiseError for a preset that there is none of.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=preset, nargs="?", const="")
    known, rest = parser.parse_known_args(arguments)
    name, default = _preset(known.preset, kind, presets)
    parts: list[Any] = [("to", destination), ("config", type(default))]
    root = tyro.conf.arg(name="")
    options = make_dataclass("Options", [(field, Annotated[part, root]) for field, part in parts], frozen=True)
    summary = (type(default).__doc__ or "").partition("\n")[0]
    summary += f"\n\nPresets: {', '.join(presets)}." if len(presets) > 1 else ""

    def parsed(start: Any) -> Any:
        return parse(command, options, rest, options(destination(known.preset), start), summary)

    found = parsed(default)
    asks = hasattr(default, "inputs") and known.preset in presets
    if asks and (inputs := _inputs_of_run(found.config.inputs.model)):
        found = parsed(replace(default, inputs=inputs))
        _tell(found.config.inputs, inputs, default.inputs)
    return _name(name, default, found.config), found.config, found.to


def _tell(chosen: Inputs, of_run: Inputs, default: Inputs) -> None:
    if chosen.data == of_run.data != default.data:
        print(f"Data: {of_run.data}, as in {chosen.model}.", file=sys.stderr)


def flagged_options(command: str, flag: str, arguments: list[str], default: Any) -> Any:
    """The config that a flag asks for (`evaluate --scorecard`, `attack --search`); as elsewhere, data and way of asking
    of a model that is a run are defaults."""
    arguments = [argument for argument in arguments if argument != flag]

    def inputs_of(config: Any) -> Inputs:
        return config.inputs if hasattr(config, "inputs") else config.evaluation.inputs

    found = parse(f"{command} {flag}".strip(), type(default), arguments, default)
    inputs = _inputs_of_run(inputs_of(found).model)
    if inputs is None:
        return found
    if hasattr(default, "inputs"):
        start = replace(default, inputs=inputs)
    else:
        start = replace(default, evaluation=replace(default.evaluation, inputs=inputs))
    found = parse(f"{command} {flag}".strip(), type(default), arguments, start)
    _tell(inputs_of(found), inputs, inputs_of(default))
    return found


@dataclass(frozen=True)
class _Shared(Inputs):
    """Data and way of asking of several models, which have an option of their own."""

    model: Annotated[str, tyro.conf.Suppress] = Inputs.model


def suite_options(arguments: list[str], default: Any) -> Any:
    """The config of a suite; data and way of asking of the models that are runs are defaults, if they all agree.

    Without a name, as in `--suite --help`, it is the default one.
    """
    following = [*arguments[1:], "-"]
    arguments = [own for own, next_ in zip(arguments, following, strict=True) if own != "--suite" or next_[:1] != "-"]

    def parsed(start: Inputs) -> Any:
        shared = replace(default, inputs=_Shared(**vars(start)))
        found = parse("attack --suite", type(default), arguments, shared)
        return replace(found, inputs=Inputs(**vars(found.inputs)))

    found = parsed(default.inputs)
    runs = {model: inputs for model in found.models if (inputs := _inputs_of_run(model))}
    if not runs:
        return found
    model, inputs = next(iter(runs.items()))
    other = next((name for name, own in runs.items() if own.data != inputs.data), None)
    if other and not any(argument.partition("=")[0] == "--data" for argument in arguments):
        raise RepnoiseError(
            f"{model} was made with {inputs.data} and {other} with {runs[other].data}: say with --data what both are "
            "attacked with."
        )
    found = parsed(inputs)
    _tell(replace(found.inputs, model=model), inputs, default.inputs)
    return found


def _preset(name: str, kind: str, presets: dict[str, Any]) -> tuple[str, Any]:
    """A named preset, the config of an earlier run, given by its directory, or a file that `repnoise tune` wrote."""
    if name in presets:
        return name, presets[name]
    from repnoise.runs import load_preset, load_run, restored

    is_run = bool(name) and (Path(name) / "run.json").exists()
    if not is_run and not Path(name).is_file():
        wrong = f"There is no preset {name!r}" if name else "--preset needs a name"
        raise RepnoiseError(f"{wrong}: choose from {', '.join(presets)}, or give a run's directory.")
    record = load_run(Path(name)).record if is_run else load_preset(Path(name))
    if record["kind"] != kind:
        raise RepnoiseError(f"{name} is a run of kind {record['kind']!r}: give one of kind {kind!r} to repeat.")
    return record["name"], restored(record["config"], presets.values())


def _name(name: str, default: Any, config: Any) -> str:
    """The preset's name; of an attack whose budget was changed, a name that says which it has now."""
    if not hasattr(config, "attack") or config.attack.label() == default.attack.label():
        return name
    return config.attack.label()


def _inputs_of_run(model: str) -> Inputs | None:
    """Data and way of asking of the run that a model is from, if it is from one."""
    from repnoise.runs import load_run, restored

    if not (Path(model) / "run.json").exists():
        return None
    inputs = restored(load_run(Path(model)).record["config"]["inputs"], [Inputs()])
    return replace(inputs, model=Inputs.model, revision=None, trust_remote_code=False)


def parse(command: str, options: Any, arguments: list[str], default: Any = None, description: str | None = None) -> Any:
    """A value of the dataclass `options`. What is wrong with the arguments is printed, and the exit code is 2."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(
        options, args=arguments, prog=f"repnoise {command}", description=description, registry=_registry(), **extra
    )


def _registry() -> ConstructorRegistry:
    """Numbers, and values that may be None, with plainer names and messages than tyro's own."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        return _one(info.type) if info.type in (int, float) else None

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        kinds: list[Any] = [kind for kind in get_args(info.type) if kind is not NoneType]
        if len(kinds) != 1 or NoneType not in get_args(info.type):
            return None
        several = get_args(kinds[0])[1:] == (...,)
        spec = _several(get_args(kinds[0])[0]) if several else _one(kinds[0])
        # Where texts are asked for, "none" is none of them. None is what the help calls so: all of them, mostly.
        nothing = () if kinds[0] == tuple[str, ...] else None

        def read(texts: list[str]) -> Any:
            return None if texts == ["None"] else nothing if texts == ["none"] else spec.instance_from_str(texts)

        def written(value: Any) -> list[str]:
            return ["None"] if value is None else spec.str_from_instance(value)

        return replace(
            spec,
            instance_from_str=read,
            is_instance=lambda value: value is None or spec.is_instance(value),
            str_from_instance=written,
        )

    return registry


_WORDS: dict[Any, tuple[str, str]] = {int: ("INT", "a whole number"), float: ("FLOAT", "a number")}
_WORDS |= {str: ("TEXT", "text"), Path: ("PATH", "a path")}


def _one(kind: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    metavar, what = _WORDS[kind]

    def read(texts: list[str]) -> Any:
        try:
            return kind(texts[0])
        except ValueError:
            raise ValueError(f"{texts[0]!r} is not {what}.") from None

    return PrimitiveConstructorSpec(1, metavar, read, lambda _value: True, lambda value: [str(value)])


def _several(kind: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    one = _one(kind)
    return PrimitiveConstructorSpec(
        "*",
        f"{one.metavar} ...",
        lambda texts: tuple(one.instance_from_str([text]) for text in texts),
        lambda _value: True,
        lambda values: [str(value) for value in values],
    )
