"""`repnoise reproduce defences`: every defence at equal tuning, under the same attacks, on worlds of the sandbox."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from repnoise.attack import attack as run_attack
from repnoise.attack import preset_attack
from repnoise.attacks import ATTACKS, SUITES
from repnoise.cells import Cell, raise_failed, run_all
from repnoise.defences import DEFENCES
from repnoise.defend import DefendConfig, defend, initialise
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.studies.graph import built_world
from repnoise.trainability import TrainabilityConfig, trainability
from repnoise.tuning import TuneConfig, tune
from repnoise.tuning.results import read_preset

EVALUATING = Evaluating(generation=Generation(max_new_tokens=32), likelihood=False)
"""As in the demo: the longest answer of the world has 22 tokens."""

TUNED = (
    *("repnoise", "safety-training", "gradient-ascent", "adversarial-loss", "vaccine", "t-vaccine", "rmu"),
    *("representation-rerouting", "npo", "simnpo", "latent-adversarial", "tar", "booster", "self-degraded"),
)
"""Defences that are tuned, each with the same number of trials."""

ABLATED = ("repnoise-no-noise", "repnoise-no-ascent", "repnoise-no-mask", "repnoise-no-lens", "repnoise-top-directions")
"""Variants of RepNoise that take its tuned settings, and differ from it in what their presets differ in."""

CONTROLS = ("undefended", "never-learned", "random-initialisation")
"""What a defence has to beat; a model that never learned the forbidden part; one that never learned anything."""

CUSTODIES = ("security-vectors", "lisa")
"""Defences in which the defender keeps control of the fine-tuning: the undefended model, attacked through a service."""


@dataclass(frozen=True)
class DefencesStudy:
    """Compare every defence at equal tuning: several worlds, defence seeds and attack seeds, one table and one figure.

    Tuning uses another world and other seeds than the comparison. The same command goes on where it was stopped, and
    writes of what there is; with other numbers of worlds or seeds, what is there already is used.

    Attributes:
        scale: "sandbox"; there is no other so far.
        defences: those to be tuned and compared.
        ablations: variants of RepNoise at its tuned settings.
        custodies: defences that need control of the fine-tuning.
        worlds: seeds of the worlds to compare on; 0 is the one inside the package.
        tuning_world: seed of the world to tune on.
        seeds: of each defence.
        attack_seeds: of each attack on each defended model.
        suite: name of the attacks.
        trials: settings that are tried for each defence.
        steps: training steps of each defence.
        jobs: processes at a time, each on one core; all cores by default.
        output_dir: where everything goes.
        document: write the document there, too, with its figure beside it.
    """

    scale: Literal["sandbox"] = "sandbox"
    defences: tuple[str, ...] = TUNED
    ablations: tuple[str, ...] = ABLATED
    custodies: tuple[str, ...] = CUSTODIES
    worlds: tuple[int, ...] = (0, 1)
    tuning_world: int = 2
    seeds: int = 3
    attack_seeds: int = 3
    suite: str = "comparison"
    trials: int = 4
    steps: int = 300
    jobs: int | None = None
    output_dir: Path = Path("runs/defences")
    document: Path | None = None

    def __post_init__(self) -> None:
        asked = (("defence", (*self.defences, *self.ablations), DEFENCES), ("suite", (self.suite,), SUITES))
        for kind, names, known in asked:
            for name in names:
                if name not in known:
                    raise RepnoiseError(f"There is no {kind} {name!r}: choose from {', '.join(known)}.")
        if self.tuning_world in self.worlds:
            raise RepnoiseError(f"World {self.tuning_world} is tuned on: compare on others (--worlds).")
        if min(self.seeds, self.attack_seeds, len(self.worlds)) < 1:
            raise RepnoiseError("A comparison needs a world, a defence seed and an attack seed at the least.")

    def reproduce(self) -> Path:
        """Build worlds, tune, defend, attack, and write the document; returns its path.

        Raises RepnoiseError at the end for cells that failed; they do not stop the others.
        """
        from repnoise.studies.document import write_document

        started = time.perf_counter()
        failed = run_all(list(self.world_cells()), self.jobs)
        if not failed:
            for name in self.defences:
                tune(self.tuning(name))
            failed = run_all(self.cells(), self.jobs)
        place = write_document(self, time.perf_counter() - started)
        print(f"Document: {place}")
        raise_failed({str(path): reason for path, reason in failed.items()})
        return place

    def world(self, seed: int, filtered: bool = False) -> str:
        """Where a world's model is: inside the package, or below the output directory."""
        own = self.output_dir / "worlds" / f"{seed}{'-never-learned' if filtered else ''}"
        return "sandbox" if seed == 0 and not filtered else str(own)

    def inputs(self, seed: int) -> Inputs:
        """The undefended model of a world, with its data."""
        model = self.world(seed)
        return Inputs(model=model, data="sandbox" if seed == 0 else f"sandbox:{model}")

    def world_cells(self) -> Iterator[Cell]:
        for seed in (self.tuning_world, *self.worlds):
            for filtered in (False, True):
                folder = self.world(seed, filtered)
                if folder != "sandbox" and not (filtered and seed == self.tuning_world):
                    yield Cell(Path(folder), f"world {seed}", partial(built_world, seed=seed, filtered=filtered))

    def tuning(self, name: str) -> TuneConfig:
        """How a defence is tuned: as any other."""
        place = self.output_dir / "tuning" / name
        more = {"trials": self.trials, "steps": self.steps, "jobs": self.jobs, "output_dir": place}
        return TuneConfig(name, self.inputs(self.tuning_world), EVALUATING, **more)

    def defending(self, name: str, world: int, seed: int) -> DefendConfig:
        """A defence at its tuned settings; an ablation at those of RepNoise, less what it leaves out."""
        tuned = read_preset(self.output_dir / "tuning" / (name if name in self.defences else "repnoise"))
        defence = tuned.defence
        if name in self.ablations:
            full, own = DEFENCES["repnoise"][1], DEFENCES[name][1]
            left_out = {
                f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) != getattr(full, f.name)
            }
            defence = replace(defence, **left_out)
        training = replace(tuned.training, seed=seed)
        return replace(tuned, inputs=self.inputs(world), defence=defence, training=training, evaluating=EVALUATING)

    def models(self) -> list[tuple[str, int, int]]:
        """Every model: name, world, seed; seed by seed, so that what is there early is of all worlds. What draws
        nothing has one seed."""
        drawn = (*self.defences, *self.ablations, "random-initialisation")
        found = [(name, world, 0) for world in self.worlds for name in ("undefended", "never-learned")]
        found += [(name, world, seed) for seed in range(self.seeds) for world in self.worlds for name in drawn]
        return found + [(name, world, 0) for world in self.worlds for name in self.custodies]

    def folder(self, name: str, world: int, seed: int) -> Path:
        return self.output_dir / "runs" / f"world-{world}" / f"{name}-seed-{seed}"

    def attacks(self, name: str) -> dict[str, str]:
        """Attacks of the suite by name, as presets: through the service of a custody where the model is under one."""
        names = SUITES[self.suite]
        if name not in self.custodies:
            return {attack: attack for attack in names}
        through = {attack: f"custody-{name}-{attack}" for attack in names}
        return {attack: preset for attack, preset in through.items() if preset in ATTACKS}

    def cells(self) -> list[Cell]:
        """Every model with its attacks and its task; a model's own come right after it, so that one is done soon."""
        found = []
        for name, world, seed in self.models():
            folder = self.folder(name, world, seed)
            model, label = folder / "model-run", f"{name}, world {world}"
            make, resumes = self._making(name, world, seed), name in (*self.defences, *self.ablations)
            found.append(Cell(model, name, make, title=f"{label}: ready", resumes=resumes))
            inputs = replace(self.inputs(world), model=str(model))
            for attack, preset in self.attacks(name).items():
                for attack_seed in range(self.attack_seeds):
                    # Only what an attack leaves at its end is compared.
                    config = preset_attack(preset, attack_seed, inputs, EVALUATING, measure_at=())
                    make = partial(run_attack, config, resume=True)
                    place = folder / f"{attack}-seed-{attack_seed}"
                    found.append(Cell(place, attack, make, (model,), f"{label}: {attack}", resumes=True))
            if name not in self.custodies:
                task = replace(TrainabilityConfig(), inputs=inputs, generation=EVALUATING.generation, measure_at=())
                make = partial(trainability, task, resume=True)
                found.append(Cell(folder / "task", "task", make, (model,), f"{label}: task", resumes=True))
        return found

    def _making(self, name: str, world: int, seed: int) -> Any:
        if name in self.defences or name in self.ablations:
            return partial(defend, self.defending(name, world, seed), resume=True)
        inputs = self.inputs(world)
        if name == "never-learned":
            inputs = replace(inputs, model=self.world(world, filtered=True))
        kind = name if name == "random-initialisation" else "undefended"
        return partial(_initialised, kind=kind, seed=seed, inputs=inputs)


def _initialised(path: Path, _name: str, kind: str, seed: int, inputs: Inputs) -> Any:
    return initialise(path, kind, seed, inputs, EVALUATING)
