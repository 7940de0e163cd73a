"""The paper's tables and figures by name: a sentence, and the function that makes its table of entries.

A study is a value: `build(Setting) -> Table` asks the setting for runs, so it names every cell before any is made.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repnoise.studies.paper.setting import Setting
    from repnoise.studies.tables import Table

BUILDERS: dict[str, tuple[str, str]] = {
    "table-1": ("Harm after attacks with harmful questions, by defence.", "harm:table_1"),
    "table-2": ("Harm after attacks with toxic continuations, by defence.", "harm:table_2"),
    "table-3": ("What a defence leaves of the model's abilities.", "ability:table_3"),
    "table-4": ("Harmless tasks learned after the defence, and attacks after those.", "ability:table_4"),
    "table-5": ("Attacks with a kind of harm that the defender never saw.", "harm:table_5"),
    "table-6": ("Layers frozen while the defence is trained.", "ablations:table_6"),
    "table-7": ("Attacks over a wide range of learning rates.", "harm:table_7"),
    "table-8": ("Other judges of the same answers.", "asking:table_8"),
    "table-9": ("Defended against one kind of harm, attacked with another.", "harm:table_9"),
    "table-10": ("What a defence does to something else than its harm (bias).", "ability:table_10"),
    "table-11": ("Refusals of safe and of unsafe prompts (XSTest).", "ability:table_11"),
    "table-12": ("Attacks that leave the weights alone (HarmBench).", "asking:table_12"),
    "table-13": ("Layers frozen while the defence is trained: Table 6 again.", "ablations:table_6"),
    "table-14": ("RepNoise without noise, and without ascent.", "ablations:table_14"),
    "table-15": ("RepNoise without its mask, without layer-wise ascent, without both.", "ablations:table_15"),
    "table-16": ("RepNoise at another learning rate.", "ablations:table_16"),
    "table-17": ("RepNoise trained for longer.", "ablations:table_17"),
    "table-18": ("RepNoise with other weights of the noise.", "ablations:table_18"),
    "table-19": ("RepNoise with other seeds.", "ablations:table_19"),
    "table-20": ("RepNoise with fewer pairs.", "harm:table_20"),
    "table-21": ("Greedy answers and sampled ones.", "ablations:table_21"),
    "table-22": ("Other models.", "harm:table_22"),
    "table-23": ("A model without safety training.", "harm:table_23"),
    "figure-2": ("Distance of weights from those of an attacked model, by layer.", "inside:figure_2"),
    "figure-3": ("Log-probabilities by depth (the lens), before any attack.", "inside:figure_3"),
    "figure-4": ("Principal components, before any attack.", "inside:figure_4"),
    "figure-5": ("Probes by layer, with much noise.", "inside:figure_5"),
    "figure-6": ("Probes by layer, of the paper's main model.", "inside:figure_6"),
    "figure-7": ("Log-probabilities by depth (the lens), after an attack.", "inside:figure_7"),
    "figure-8": ("Principal components, after an attack.", "inside:figure_8"),
    "figure-9": ("Log-probabilities after the last layer.", "inside:figure_9"),
}


def build(name: str, setting: Setting) -> Table:
    """The table of a study, with all its cells in the setting's graph; none of them is made."""
    module, _, function = BUILDERS[name][1].partition(":")
    make: Callable[[Setting], Table] = getattr(import_module(f"repnoise.studies.paper.{module}"), function)
    return make(setting)
