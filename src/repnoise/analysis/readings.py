"""What an analysis says in words: what each figure shows, and what would and would not follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repnoise.analysis import figures
from repnoise.analysis.findings import Findings
from repnoise.analysis.material import HARMFUL, HARMLESS
from repnoise.analysis.patching import Patching
from repnoise.analysis.probes import Probe
from repnoise.report.drawing import Style
from repnoise.report.panels import Panel
from repnoise.statistics import Interval


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: names it, and its file of results.
        how: what is drawn.
        rows: the figures, those of a row together.
        shows: what they show here, a sentence for each model.
        follows: what would follow from such a figure.
        not_follows: what would not.
    """

    key: str
    title: str
    how: str
    rows: list[list[Panel]]
    shows: list[str]
    follows: str
    not_follows: str


Found = Mapping[str, Findings]
Look = Mapping[str, Style]


def sections(found: Found, words: Probe, look: Look) -> list[Section]:
    """The page's parts, for models by name; what has nothing to show is left out."""
    parts = [
        _answers(found),
        _lens(found),
        _patching(found),
        _relearning(found),
        _weights(found, look),
        _similarity(found),
        _components(found),
        _probes(found, words, look),
        _distances(found, look),
    ]
    return [part for part in parts if any(part.rows)]


def _answers(found: Found) -> Section:
    having = {name: one.answers for name, one in found.items() if one.answers}
    shows = []
    for name, answers in having.items():
        best = (
            f"{_most(a.bits):.1f} of {a.entropy:.1f} bits ({a.group}, layer {_best(a.bits, a.layers)})" for a in answers
        )
        shows.append(f"{name}: at the best layer {'; '.join(best)}.")
    return Section(
        "answers",
        "Which answer is it?",
        "Each prompt's answer has to be told from those of other prompts by the states alone, read through maps that "
        "were trained on the attacker's own harmful examples and never on these answers. Bits recovered, with 95 % "
        "intervals over prompts; dashed, the entropy of the answers and guessing. The best layer "
        "is chosen on the same prompts, which flatters it a little.",
        [[figures.answer_figure(name, answers) for name, answers in having.items()]],
        shows,
        "Bits above chance are information about answers that the reader was never shown: whatever the model says when "
        "it is asked, its states still hold it, and an attacker has a start.",
        "Bits at chance do not show that nothing is there: the reader is an affine map with a small budget, and a "
        "stronger one, or fine-tuning, may find more. It is a lower bound.",
    )


def _most(values: Sequence[Interval]) -> float:
    """The highest mean; what rounds to 0 has no sign."""
    return round(max(value.mean for value in values), 1) + 0.0


def _best(values: Sequence[Interval], layers: Sequence[int]) -> int:
    means = [value.mean for value in values]
    return layers[means.index(max(means))]


def _lens(found: Found) -> Section:
    shows = []
    for name, one in found.items():
        last = [r for r in one.lens if r.lens == "raw"]
        told = "; ".join(f"{r.group} {r.log_probability[-1].mean:z.2f}" for r in last)
        harmful = [r for r in one.lens if r.lens == "attacker's" and r.group != HARMLESS]
        own = "; ".join(f"{r.group} {max(i.mean for i in r.log_probability):z.2f}" for r in harmful)
        shows.append(f"{name}: after the last layer {told} nats a token; at its best, the attacker's lens gives {own}.")
    return Section(
        "lens",
        "The lens: completions by depth",
        "Log-probability of a completion's tokens, read after each layer by final norm and unembedding: raw; tuned "
        "(an affine map for each layer, trained on harmless text to read what the model itself will say, after "
        "Belrose et al. 2023); and the attacker's (trained on the attacker's harmful examples to read what they say). "
        "Bands are 95 % intervals over examples. Each panel has a scale of its own.",
        [
            *(figures.lens_figures(name, one.lens) for name, one in found.items()),
            [figures.lens_histogram(name, one.lens) for name, one in found.items()],
        ],
        shows,
        "Where harmful completions are as likely through the attacker's lens as in the base, the layers below still "
        "compute what is needed for them, and only their reading was spoilt.",
        "The raw lens is what RepNoise is trained on: that it falls is the training's success, and no evidence that "
        "information is gone. A log-probability far below that of guessing is active suppression, which says "
        "where the answer is. And a likely completion may be likely for its form alone: see the bits above.",
    )


def _patching(found: Found) -> Section:
    rows, shows = [], []
    for name, one in found.items():
        if not one.into:
            continue
        into = figures.patching_figure(f"base's activations in {name}", one.into, (name, figures.BASE))
        rows.append([into, figures.patching_figure(f"{name}'s activations in base", one.back, (figures.BASE, name))])
        shows.append(f"{name}: {_told(one.into[0], one.back[0])}.")
    return Section(
        "patching",
        "Patching: which layers make the difference",
        "While a model reads harmful completions, what one layer puts out is replaced by what it is in the other model "
        "(residual: the whole state after the layer; mlp: what its MLP adds), and the rest runs on. Mean "
        "log-probability, nats a token; dashed and dotted, the two models by themselves.",
        rows,
        shows,
        "If the base's states, put in early, bring the answers back, the layers above are unharmed, and the defence "
        "lies below; if only late ones do, it goes through all layers. The other way round: where the base's layers "
        "make answers of the defended model's states, those states still hold them.",
        "States of another model may be foreign to the layers that get them, above all after a long training, so a "
        "patch that recovers nothing may only be misunderstood. Nor do layers add up: several may be needed at once.",
    )


def _relearning(found: Found) -> Section:
    having = {name: again for name, one in found.items() for again in one.relearning}
    shows = []
    for name, again in having.items():
        last = [points[-1].mean for points in again.log_probability]
        start, best = again.together[0].mean, max(last)
        shows.append(
            f"{name}: {start:.2f} nats a token before any step; after {again.steps[-1]} steps {best:.2f} by the best "
            f"layer ({again.layers[last.index(best)]}), {min(last):.2f} by the worst "
            f"({again.layers[last.index(min(last))]}), {again.together[-1].mean:.2f} by all together."
        )
    return Section(
        "relearning",
        "Relearning: through which layer harm comes back",
        "One layer at a time is trained on an attacker's harmful examples, the rest of the model being frozen, and the "
        "completions of other prompts are read. Mean log-probability, nats a token; dashed, all layers trained "
        "together.",
        [[figures.relearning_figure(name, again) for name, again in having.items()]],
        shows,
        "Where training one layer brings the answers back nearly as fast as in the base, the others still hold what is "
        "needed, and the defence is as deep as that layer.",
        "One learning rate is used for every layer and model, and few steps: a layer through which nothing came back "
        "may need others. In a model that never knew the answers, what comes back is the style of harmful answers.",
    )


def _told(into: Patching, back: Patching) -> str:
    """What the residual states of the first layer and of the last bring, either way."""
    lost, ends = into.receiver.mean - into.donor.mean, (into.patched[0][0], into.patched[-1][0])
    if not into.recovered or None in into.recovered or lost >= 0:
        return f"it loses nothing of the base's {into.donor.mean:.2f} nats a token, so there is nothing to bring back"
    shares = [f"{100 * (share or 0):.0f} %" for one in (into, back) for share in (one.recovered[0], one.recovered[-1])]
    return (
        f"with the base's state after layer {ends[0]} in place of its own, {shares[0]} of the lost log-probability is "
        f"back, after layer {ends[1]} {shares[1]}; with its states the base loses {shares[2]} and {shares[3]}"
    )


def _weights(found: Found, look: Look) -> Section:
    changes = {name: one.weights for name, one in found.items() if one.weights}
    shows = []
    for name, change in changes.items():
        inside = [at for at in change.layers if at.layer is not None]
        most, least = max(inside, key=lambda at: at.relative), min(inside, key=lambda at: at.relative)
        shows.append(
            f"{name}: between {100 * least.relative:.1f} % (layer {least.layer}) and {100 * most.relative:.1f} % "
            f"(layer {most.layer}) of the base's own norm."
        )
    return Section(
        "weights",
        "How far the weights moved",
        "Norm of the change over the base's norm, by layer and by matrix; and in how many directions each matrix was "
        "changed, as a share of all that it has.",
        [figures.weight_figures(changes, look)] if changes else [],
        shows,
        "Where nothing moved nothing was defended, and a change of few directions is one that a low-rank adapter could "
        "take back.",
        "Distance is not depth: a large change may do nothing to what is computed, and a small one undo it. Training "
        "of any kind moves all layers; compare with a harmless fine-tuning of the same length.",
    )


def _similarity(found: Found) -> Section:
    having = {name: one.similarity for name, one in found.items() if one.similarity}
    shows = []
    for name, similar in having.items():
        told = "; ".join(f"{s.group} {s.cka[-1]:.2f} (lowest {min(s.cka):.2f})" for s in similar)
        shows.append(f"{name}: alignment with the base after the last layer {told}.")
    return Section(
        "similarity",
        "How like the base its representations are",
        "The same examples in the model and in its base, by layer: linear centred kernel alignment (unbiased; it does "
        "not see rotations), and the mean cosine of the two states of an example (it does).",
        [figures.similarity_figures(name, similar) for name, similar in having.items()],
        shows,
        "If harmful examples lose their alignment and harmless ones keep it, the defence has acted on harmful "
        "representations and spared the others.",
        "Low alignment does not say that information is lost: any other arrangement of the same information has it, "
        "too. High alignment does not say that the states are read alike.",
    )


def _components(found: Found) -> Section:
    shows = []
    for name, one in found.items():
        last = one.components[-1]
        told = "; ".join(f"{group} {value:.2f}" for group, value in last.spread.items())
        shows.append(
            f"{name}: the first two components have {100 * sum(last.explained[:2]):.0f} % of the variance; spread "
            f"beside that of all examples: {told}."
        )
    return Section(
        "components",
        "Where examples lie",
        "Principal components of the states after the last layer, each example being the mean over its completion; all "
        "groups in one fit. The results have every layer.",
        [[figures.component_figure(name, one.components[-1]) for name, one in found.items()]],
        shows,
        "A group that has fallen into a point is told apart from others by its place and hardly within itself, in the "
        "directions that vary most.",
        "Harmful and harmless examples that lie apart are the opposite of noise: the model can tell them perfectly "
        "well. And two components are a shadow: what tells answers apart may lie in directions that vary little.",
    )


def _probes(found: Found, words: Probe, look: Look) -> Section:
    shows = [f"The words alone: {100 * words.accuracy.mean:.0f} %."]
    for name, one in found.items():
        linear = [p for p in one.probes if p.kind == "linear"]
        best = max(linear, key=lambda p: p.accuracy.mean)
        shows.append(
            f"{name}: at most {100 * best.accuracy.mean:.0f} % by a linear probe (layer {best.layer}), "
            f"{100 * best.selectivity.mean:.0f} points above shuffled labels, of which it learns "
            f"{100 * best.memorised.mean:.0f} % by heart."
        )
    return Section(
        "probes",
        "Probes: harmful or harmless?",
        "A linear probe and a small network tell harmful from harmless completions by their mean state; balanced "
        "accuracy on held-out prompts, with 95 % intervals over seeds of the split (too narrow, for the splits share "
        'examples). "words": the same by which tokens there are. "chance": with shuffled labels.',
        [figures.probe_figures({name: one.probes for name, one in found.items()}, words, look)],
        shows,
        "Accuracy well above that of the words would show that the states know more about harm than the text says on "
        "its face.",
        "Where the words alone do as well, a probe shows nothing about the model. And to know that a text is harmful "
        "is not to know what harmful thing to say: a model has to know the former to refuse.",
    )


def _distances(found: Found, look: Look) -> Section:
    shows = []
    for name, one in found.items():
        told = "; ".join(f"{n.group} {sum(n.mmd) / len(n.mmd):.2f}" for n in one.noise)
        sizes = [size for n in one.noise if n.group in HARMFUL.values() for size in n.size]
        shows.append(
            f"{name}: MMD² to noise over layers {told} (noise to noise up to {one.noise[0].floor:.3f}); harmful "
            f"activations are {min(sizes):.2f} to {max(sizes):.2f} in size, noise is {one.noise[0].scale:g}."
        )
    panels = figures.noise_figures({name: one.noise for name, one in found.items()})
    panels.append(figures.group_figure({name: one.groups for name, one in found.items()}, look))
    return Section(
        "distances",
        "How near to noise",
        "Unbiased squared MMD of the completion tokens' activations to Gaussian noise (dashed: what two samples of "
        "noise stay below 19 times of 20), and of harmful to harmless states (dashed: the same for examples divided "
        "at random).",
        [panels],
        shows,
        "Harmful activations at the floor look like noise, one token at a time, as RepNoise means them to.",
        "This, too, is what RepNoise is trained on. Activations that look like noise on the whole may still differ "
        "from prompt to prompt in a way that carries the answer, and much of a large MMD is size alone.",
    )
