"""`repnoise reproduce table-1 ... figure-9, all`: studies of the paper, from a name to runs and a document."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from repnoise.cells import raise_failed
from repnoise.errors import RepnoiseError
from repnoise.studies.executors import EXECUTORS, ExecutorName
from repnoise.studies.graph import Graph, finished
from repnoise.studies.paper import BUILDERS, build
from repnoise.studies.paper.scales import SCALES, SEEDS, Harm, Scale, ScaleName
from repnoise.studies.paper.setting import Setting


@dataclass(frozen=True)
class PaperStudy:
    """Make tables and figures of the paper anew, beside the paper's own numbers.

    What several studies need is made once. The same command goes on where it was stopped, and a cell that fails does
    not stop the others. Weights of attacked models are dropped once they are measured.

    Attributes:
        name: of the study, or "all".
        scale: the paper's own models and data, or what stands for them in the sandbox.
        seeds: of every defence and attack, up to five.
        as_published: do what the published code does where it differs from the paper: its objective, withholding
            that withholds nothing, layers that are frozen by digits in names, broken text that counts as harmless.
        dry_run: only tell what the cells would take.
        device: for the dry run: one of `repnoise estimate`.
        executor: "local" is a pool of processes; "ray" a cluster (`pip install 'repnoise[ray]'`).
        jobs: cells at a time on this machine; by default one a core, or one where there is a GPU.
        model: another model than the scale's (Tables 22 and 23 keep their own).
        questions: other harmful questions with refusals, as `--data` takes them (likewise).
        continuations: another second kind of harm.
        judges: other judges of harm.
        output_dir: where all runs go; those of other studies in it are used.
        document: write the document there, too.
    """

    name: Annotated[str, tyro.conf.Suppress] = "all"
    scale: ScaleName = "sandbox"
    seeds: int = 3
    as_published: bool = False
    dry_run: bool = False
    device: str = "h100-80"
    executor: ExecutorName = "local"
    jobs: int | None = None
    model: str | None = None
    questions: str | None = None
    continuations: str | None = None
    judges: tuple[str, ...] = ()
    output_dir: Path = Path("runs/paper")
    document: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= len(SEEDS):
            raise RepnoiseError(f"--seeds is a number from 1 to {len(SEEDS)}, not {self.seeds}.")

    @property
    def names(self) -> Sequence[str]:
        return tuple(BUILDERS) if self.name == "all" else (self.name,)

    def setting(self) -> Setting:
        return Setting(self.own_scale(), Graph(self.output_dir), self.seeds, self.as_published)

    def own_scale(self) -> Scale:
        """The scale with the user's own models, data and judges."""

        def judged(harm: Harm) -> Harm:
            return replace(harm, evaluating=replace(harm.evaluating, judges=self.judges or harm.evaluating.judges))

        def own(harm: Harm, data: str | None) -> Harm:
            inputs = replace(harm.inputs, model=self.model or harm.inputs.model, data=data or harm.inputs.data)
            return replace(judged(harm), inputs=inputs, written=harm.written and data is None)

        scale = SCALES[self.scale]
        return replace(
            scale,
            questions=own(scale.questions, self.questions),
            continuations=own(scale.continuations, self.continuations),
            unaligned=judged(scale.unaligned),
            others={name: judged(harm) for name, harm in scale.others.items()},
        )

    def reproduce(self) -> Path | None:
        """Make the cells and write the document; returns its path, or None after a dry run.

        Raises RepnoiseError at the end for cells that failed.
        """
        from repnoise.studies.paper.document import write_document

        setting = self.setting()
        tables = {name: build(name, setting) for name in self.names}
        wanted = {run for table in tables.values() for run in table.runs}
        if self.dry_run:
            return self._tell(setting.graph, wanted)
        started = time.perf_counter()
        failed: dict[Path, str] = {}
        for name, table in tables.items():
            print(f"{name}: {len(table.runs)} runs; what is there already is used.")
            failed |= setting.graph.make(table.runs, EXECUTORS[self.executor], self._jobs())
            if freed := setting.graph.free():
                print(f"Freed: {freed / 1e6:,.0f} MB of weights that were measured.")
        place = write_document(self, setting, tables, failed, time.perf_counter() - started)
        print(f"Document: {place}")
        raise_failed({f"{setting.graph.cells[path].title} ({path})": reason for path, reason in failed.items()})
        return place

    def _jobs(self) -> int | None:
        import torch

        return self.jobs or (1 if torch.cuda.is_available() else None)

    def _tell(self, graph: Graph, wanted: set[Path]) -> None:
        from repnoise.estimate.devices import find_device
        from repnoise.studies.paper.plan import planned, show_plan

        cells = graph.needed(wanted)
        waiting = [cell for cell in cells if not finished(cell.path)]
        show_plan(planned(graph, waiting), self.device, find_device(self.device), len(cells) - len(waiting))
