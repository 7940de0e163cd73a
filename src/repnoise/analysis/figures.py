"""The figures of an analysis: curves by layer, clouds of examples, histograms, drawn as those of a report are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from repnoise.analysis.material import HARMFUL, HARMLESS
from repnoise.report.curves import Curve, curve_marks, curve_table, short
from repnoise.report.drawing import (
    CONTROL_COLOURS,
    INK,
    MUTED,
    SERIES,
    Style,
    end_labels,
    panel_axes,
    per_cent,
    styles,
)
from repnoise.report.panels import Mark, Panel, Table, panel
from repnoise.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repnoise.analysis.answers import AnswerBits
    from repnoise.analysis.distances import BaseSimilarity, GroupDistance, NoiseDistance
    from repnoise.analysis.lens import LensReading
    from repnoise.analysis.patching import Patching
    from repnoise.analysis.pca import Components
    from repnoise.analysis.probes import Probe
    from repnoise.analysis.relearning import Relearning
    from repnoise.analysis.weights import WeightChanges

BASE = "base"
GROUPS = {
    HARMFUL["covered"]: Style(SERIES[1], "s"),
    HARMFUL["uncovered"]: Style(SERIES[3], "D", ":"),
    HARMLESS: Style(SERIES[0], "o", "-."),
}
"""How each group is drawn in every figure."""
FLOOR = "chance"


def model_styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each model: the base in grey."""
    found = styles([name for name in names if name != BASE])
    return found | {BASE: Style(CONTROL_COLOURS["undefended"], "X")}


def layer_panel(
    title: str, curves: Sequence[Curve], style: Mapping[str, Style], what: str, share: bool = False, axis: str = "layer"
) -> Panel:
    """Something against the layer, a line for each curve, named at its end. A share is drawn in per cent; a curve that
    is called "chance" is a dashed line. Points that are not known (NaN or infinite) are left out."""
    curves = [known for curve in curves if (known := _known(curve)).steps]
    look = {**style, FLOOR: Style(MUTED, "", "--")}
    figure, axes = panel_axes((3.75, 2.55), title)
    figure.subplots_adjust(left=0.13, right=0.735, top=0.875, bottom=0.17)
    scale = 100.0 if share else 1.0
    for curve in curves:
        own = look[curve.name]
        line = {"color": own.colour, "linestyle": own.dashes, "linewidth": 1.5, "clip_on": False, "zorder": 3}
        axes.fill_between(
            curve.steps,
            [scale * v for v in curve.lows],
            [scale * v for v in curve.highs],
            color=own.colour,
            alpha=0.13,
            linewidth=0,
        )
        marks = {"marker": own.marker or None, "markersize": 3.6, "markeredgewidth": 0}
        axes.plot(curve.steps, [scale * value for value in curve.means], **marks, **line)
    _ticks(axes, curves)
    if share:
        per_cent(axes)
    axes.set_xlabel(axis, color=MUTED, labelpad=2, fontsize=9)
    end_labels(axes, curves, look, scale)
    ends = "; ".join(f"{c.name} from {short(c.means[0])} to {short(c.means[-1])}" for c in curves if c.means)
    told = f"{what} by layer: {ends}"
    return panel(figure, title, told, curve_marks(curves, axis, share), curve_table(axis, curves, share))


def _known(curve: Curve) -> Curve:
    points = zip(curve.steps, curve.means, curve.lows, curve.highs, strict=True)
    kept = [point for point in points if all(map(math.isfinite, point))]
    steps, means, lows, highs = ([point[i] for point in kept] for i in range(4))
    return Curve(curve.name, steps, means, lows, highs)


def _ticks(axes: Axes, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    layers = [layer for curve in curves for layer in curve.steps] or [0]
    axes.set_xlim(min(layers), max(max(layers), min(layers) + 1))


def interval_curve(name: str, layers: Sequence[int], values: Sequence[Interval]) -> Curve:
    """A curve with its band."""
    lows = [value.mean if value.low is None else value.low for value in values]
    highs = [value.mean if value.high is None else value.high for value in values]
    return Curve(name, layers, [value.mean for value in values], lows, highs)


def plain_curve(name: str, layers: Sequence[int], values: Sequence[float]) -> Curve:
    return Curve(name, layers, values, values, values)


def weight_figures(changes: Mapping[str, WeightChanges], look: Mapping[str, Style]) -> list[Panel]:
    """Relative distance from the base by layer; then of the first model each kind of matrix: distance, and how many
    directions its change has."""
    curves = []
    for name, change in changes.items():
        inside = [(at.layer, at.relative) for at in change.layers if at.layer is not None]
        curves.append(plain_curve(name, *zip(*inside, strict=True)))
    found = [layer_panel("distance from the base, relative", curves, look, "Relative distance of the weights")]
    matrices = [t for t in next(iter(changes.values())).tensors if t.layer is not None and t.effective_rank is not None]
    kinds: dict[str, list[Any]] = {}
    for tensor in matrices:
        kinds.setdefault(tensor.name.removesuffix(".weight").rpartition(".")[2], []).append(tensor)
    own, name = styles(list(kinds)), next(iter(changes))
    distances = [plain_curve(kind, [t.layer for t in ts], [t.relative for t in ts]) for kind, ts in kinds.items()]
    ranks = [
        plain_curve(kind, [t.layer for t in ts], [(t.effective_rank or 0) / min(t.shape) for t in ts])
        for kind, ts in kinds.items()
    ]
    if kinds:
        found.append(layer_panel(f"{name}: by matrix, relative", distances, own, "Relative distance of each matrix"))
        title = f"{name}: effective rank of the change"
        found.append(layer_panel(title, ranks, own, "Effective rank over full rank", share=True))
    return found


def lens_figures(model: str, readings: Sequence[LensReading]) -> list[Panel]:
    """A panel for each lens, a line for each group."""
    found = []
    for name in dict.fromkeys(reading.lens for reading in readings):
        own = [reading for reading in readings if reading.lens == name]
        curves = [interval_curve(r.group, r.layers, r.log_probability) for r in own]
        found.append(layer_panel(f"{model}: {name} lens, nats a token", curves, GROUPS, "Mean log-probability"))
    return found


def lens_histogram(model: str, readings: Sequence[LensReading]) -> Panel:
    """How many examples of each group have which log-probability after the last layer, by the raw lens."""
    from matplotlib.ticker import MaxNLocator

    values = {reading.group: reading.last for reading in readings if reading.lens == "raw"}
    title = f"{model}: examples after the last layer"
    figure, axes = panel_axes((3.75, 2.55), title)
    figure.subplots_adjust(left=0.13, right=0.735, top=0.875, bottom=0.17)
    values = {group: [value for value in own if math.isfinite(value)] for group, own in values.items()}
    every = [value for own in values.values() for value in own] or [0.0]
    low, high = min(every), max(every)
    bins = [low + (high - low or 1.0) * i / 24 for i in range(25)]
    counts: dict[str, list[int]] = {}
    for group, own in values.items():
        look = GROUPS[group]
        counts[group] = [int(count) for count in axes.hist(own, bins=bins, color=look.colour, alpha=0.25)[0]]  # type: ignore[union-attr]
        axes.hist(own, bins=bins, histtype="step", color=look.colour, linestyle=look.dashes, linewidth=1.4)
    _legend(axes, list(values), marks=False)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("mean log-probability of a token", color=MUTED, labelpad=2, fontsize=9)
    means = "; ".join(f"{group} {sum(own) / len(own):.2f} in the mean" for group, own in values.items() if own)
    marks, table = _counted(bins, counts)
    return panel(figure, title, f"Examples by log-probability: {means}", marks, table)


def _counted(bins: Sequence[float], counts: Mapping[str, Sequence[int]]) -> tuple[list[Mark], Table]:
    """What a histogram shows, to be pointed at and as a table."""
    between = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(bins)]
    marks = [
        Mark((bins[i] + bins[i + 1]) / 2, count, f"{group}, {between[i]}: {count} example{'' if count == 1 else 's'}")
        for group, own in counts.items()
        for i, count in enumerate(own)
        if count
    ]
    rows = tuple((between[i], *(str(own[i]) for own in counts.values())) for i in range(len(between)))
    return marks, Table(("log-probability", *counts), rows)


def answer_figure(model: str, answers: Sequence[AnswerBits]) -> Panel:
    """Bits recovered by layer, a line for each group; dashed, the entropy of the answers, and guessing."""
    first = answers[0]
    curves = [interval_curve(a.group, a.layers, a.bits) for a in answers]
    curves.append(plain_curve("entropy", first.layers, [first.entropy] * len(first.layers)))
    curves.append(plain_curve(FLOOR, first.layers, [0.0] * len(first.layers)))
    look = GROUPS | {"entropy": Style(INK, "", "--")}
    return layer_panel(f"{model}: bits recovered", curves, look, "Bits about which answer it is")


def component_figure(model: str, found: Components) -> Panel:
    """Each example along the first two components."""
    title = f"{model}, layer {found.layer}"
    figure, axes = panel_axes((3.75, 2.75), title)
    figure.subplots_adjust(left=0.13, right=0.735, top=0.885, bottom=0.17)
    for group, places in found.coordinates.items():
        look = GROUPS[group]
        xs, ys = zip(*places, strict=True)
        axes.scatter(xs, ys, s=9, marker=look.marker, color=look.colour, alpha=0.55, linewidths=0, label=group)
    _legend(axes, list(found.coordinates))
    first, second = (100 * share for share in found.explained[:2])
    axes.set_xlabel(f"first component: {first:.0f} %, second: {second:.0f} %", color=MUTED, labelpad=2, fontsize=9)
    spreads = "; ".join(f"{group} {value:.2f}" for group, value in found.spread.items())
    told = f"First two components of variance; spread of each group beside all: {spreads}"
    rows = tuple(
        (group, str(len(places)), f"{found.spread[group]:.2f}" if group in found.spread else "–")
        for group, places in found.coordinates.items()
    )
    return panel(figure, title, told, [], Table(("group", "examples", "spread beside all"), rows))


def _legend(axes: Axes, groups: Sequence[str], marks: bool = True) -> None:
    for i, group in enumerate(groups):
        look, y = GROUPS[group], 0.95 - 0.2 * i
        text = {"transform": axes.transAxes, "color": look.colour, "fontsize": 9, "va": "center", "linespacing": 1.0}
        axes.text(1.1, y, group.replace(", ", ",\n"), parse_math=False, **text)
        line = {"transform": axes.transAxes, "color": look.colour, "clip_on": False}
        if marks:
            axes.plot([1.055], [y], marker=look.marker, markersize=5, **line)
        else:
            axes.plot([1.02, 1.085], [y, y], linestyle=look.dashes, linewidth=1.4, **line)


def probe_figures(probes: Mapping[str, Sequence[Probe]], words: Probe, look: Mapping[str, Style]) -> list[Panel]:
    """For each kind of probe the accuracy by layer, a line for each model, beside what the words alone give."""
    found = []
    chance = {"words": Style(INK, "", "--")}
    for kind, title in (("linear", "linear probe"), ("mlp", "small network")):
        own = {name: [p for p in all_of if p.kind == kind] for name, all_of in probes.items()}
        layers = [p.layer or 0 for p in next(iter(own.values()))]
        curves = [interval_curve(name, layers, [p.accuracy for p in ps]) for name, ps in own.items()]
        shuffled = [p.shuffled.mean for p in next(iter(own.values()))]
        curves += [plain_curve("words", layers, [words.accuracy.mean] * len(layers))]
        curves += [plain_curve(FLOOR, layers, shuffled)]
        found.append(layer_panel(f"{title}: accuracy", curves, {**look, **chance}, "Accuracy", share=True))
    return found


def noise_figures(noise: Mapping[str, Sequence[NoiseDistance]]) -> list[Panel]:
    """A panel for each model: MMD to noise, a line for each group, above what noise has to noise."""
    found = []
    for model, own in noise.items():
        curves = [plain_curve(n.group, n.layers, n.mmd) for n in own]
        curves.append(plain_curve(FLOOR, own[0].layers, [own[0].floor] * len(own[0].layers)))
        found.append(layer_panel(f"{model}: MMD² to noise", curves, GROUPS, "Unbiased squared MMD to noise"))
    return found


def group_figure(distances: Mapping[str, GroupDistance], look: Mapping[str, Style]) -> Panel:
    """MMD between harmful and harmless, a line for each model."""
    curves = [plain_curve(name, d.layers, d.mmd) for name, d in distances.items()]
    last = list(distances.values())[-1]
    curves.append(plain_curve(FLOOR, last.layers, last.floor))
    return layer_panel("MMD², harmful against harmless", curves, look, "Unbiased squared MMD between the groups")


def similarity_figures(model: str, found: Sequence[BaseSimilarity]) -> list[Panel]:
    """CKA and cosine to the base, a line for each group."""
    cka = [plain_curve(s.group, s.layers, s.cka) for s in found]
    cosine = [interval_curve(s.group, s.layers, s.cosine) for s in found]
    return [
        layer_panel(f"{model}: CKA to the base", cka, GROUPS, "Kernel alignment with the base"),
        layer_panel(f"{model}: cosine to the base", cosine, GROUPS, "Cosine with the base"),
    ]


def patching_figure(title: str, found: Sequence[Patching], both: tuple[str, str]) -> Panel:
    """Log-probability by the layer that was patched, for each site; dashed, the two models by themselves. `both` are
    the names of the patched model and of the one whose activations they are."""
    receiver, donor = both
    look = {p.site: Style(SERIES[i], "os"[i]) for i, p in enumerate(found)}
    look |= {receiver: Style(MUTED, "", ":"), donor: Style(INK, "", "--")}
    layers = [layer for (layer,) in found[0].patched]
    curves = [interval_curve(p.site, layers, p.log_probability) for p in found]
    curves += [plain_curve(receiver, layers, [found[0].receiver.mean] * len(layers))]
    curves += [plain_curve(donor, layers, [found[0].donor.mean] * len(layers))]
    return layer_panel(title, curves, look, "Log-probability of harmful completions", axis="patched layer")


def relearning_figure(title: str, found: Relearning) -> Panel:
    """Log-probability by the layer that was trained, a line for each number of steps; dotted, before any step, and
    dashed, with all layers together."""
    names = [f"{step} steps" for step in found.steps]
    look = {name: Style(SERIES[i], "osD^"[i]) for i, name in enumerate(names)}
    look |= {names[0]: Style(MUTED, "", ":"), "all layers": Style(INK, "", "--")}
    by_step = zip(names, zip(*found.log_probability, strict=True), strict=True)
    curves = [interval_curve(name, found.layers, own) for name, own in by_step]
    curves += [plain_curve("all layers", found.layers, [found.together[-1].mean] * len(found.layers))]
    return layer_panel(title, curves, look, "Log-probability of harmful completions", axis="trained layer")
