"""Costs: one threshold for card, table and figures, what censoring leaves known, and pictures for every reader."""

import math
import re
from dataclasses import replace
from io import StringIO
from xml.etree import ElementTree

import pytest
from rich.console import Console

import fabricated_runs as fake
from repnoise.attack import presets
from repnoise.attacks.prompting import Prompting
from repnoise.attacks.weight_edits import Quantisation, WeightEdit, WeightNoise
from repnoise.cost import Event, Survival, survival
from repnoise.report.break_figures import break_section, break_table, heat_table
from repnoise.report.breaking import breaking, heat_of, median_limits
from repnoise.report.cards import scorecard
from repnoise.report.command import write_report
from repnoise.report.drawing import styles
from repnoise.report.figures import curve_figures
from repnoise.report.heat_drawing import RAMPS, heat_styles, luminance
from repnoise.report.lineage import seed_of, setting_of
from repnoise.report.summary import attacks_in_order, summarise
from repnoise.runs import read_rows, write_rows

HOSTILE = '<b>&"[bold]'


def found(recovered, harmless=0.9):
    return fake.shares(recovered=recovered, recovered_uncovered=recovered, harmless_accuracy=harmless)


def priced(run, by_step=1e9):
    """The run with FLOPs in its curve."""
    rows = read_rows(run.path / "curve.jsonl")
    write_rows(run.path / "curve.jsonl", [r | {"cost": r["cost"] | {"flops": by_step * r["step"]}} for r in rows])
    return run


def attacked(folder, parent, ends, seed=0, **more):
    """Attacks of 100 steps; `ends` is {name: harm at the end}, and half of that after 10 steps."""
    curves = {name: {0: found(0.0, 1.0), 10: found(end / 2)} for name, end in ends.items()}
    found_at = {name: (folder / f"{name}-{seed}", found(end, **more)) for name, end in ends.items()}
    return [
        priced(fake.attack(path, parent, name, metrics, seed, curves[name], steps=100))
        for name, (path, metrics) in found_at.items()
    ]


@pytest.fixture
def two(tmp_path):
    """Two seeds on the undefended model, which breaks at once, and on a defended one, which does not."""
    shield = fake.defence(tmp_path / "shield", metrics=found(0.0, 1.0))
    runs = [shield]
    for seed in (0, 1):
        runs += attacked(tmp_path / "a", "sandbox", {"100@1e-3": 0.9 + 0.1 * seed, "100@3e-4": 1.0}, seed)
        runs += attacked(tmp_path / "b", shield, {"100@1e-3": 0.2, "100@3e-4": 0.1 + 0.2 * seed}, seed, harmless=0.5)
    return runs


def section(runs):
    rows = summarise(runs)
    found = break_section(runs, rows, styles(dict.fromkeys(row["defence"] for row in rows)))
    return found | {part: [panel.svg for panel in found[part]] for part in ("panels", "heat")}


def shown(table):
    console = Console(width=200, file=StringIO())
    console.print(table)
    return console.file.getvalue()


def texts(svg):
    return ["".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


def label(svg):
    return ElementTree.fromstring(svg).get("aria-label")


def test_table_and_card_say_the_same_about_costs(two):
    lines = {line["model"]: line for line in section(two)["lines"]}
    rows = summarise(two)
    card = {line.label: line.cells for line in scorecard(two, rows).lines}
    for number, cost in enumerate(("steps", "examples", "FLOPs")):
        for model, cells in card[f"{cost} to 50% recovered, covered"].items():
            assert cells.startswith(lines[model]["cells"][number]["value"])
    assert lines["undefended"]["cells"][0] == {"value": "at most 10", "limits": "[10, …]", "note": "broken in 2 of 2"}
    assert lines["repnoise"]["cells"][0] == {"value": "more than 100", "limits": "", "note": "broken in 0 of 2"}
    assert lines["repnoise"]["ratio"] == ">= 10" and lines["undefended"]["ratio"] == "1"
    assert card["steps to 50% recovered, covered"]["repnoise"] == "more than 100 (>= 10 times)"


def test_a_model_that_is_hard_to_break_at_all_sets_a_threshold_within_its_reach(tmp_path):
    shield = fake.defence(tmp_path / "shield", metrics=found(0.0))
    runs = [*attacked(tmp_path / "a", "sandbox", {"100@1e-3": 0.4}), shield]
    runs += attacked(tmp_path / "b", shield, {"100@1e-3": 0.1})
    own = breaking(runs, summarise(runs))
    assert own.threshold == pytest.approx(0.2)
    assert own.why == (
        'where "recovered, covered" is 20 %, halfway to the best attack on undefended (40 % with 100@1e-3)'
    )
    assert own.survival("undefended", "steps").typical() == Event(10, False)
    assert own.survival("repnoise", "steps").typical().censored
    assert any(line.label == "steps to 20% recovered, covered" for line in scorecard(runs, summarise(runs)).lines)


def test_cross_entropy_breaks_halfway_down_and_only_with_a_reference(tmp_path):
    def ce(value):
        return fake.averages(harmful_ce=value)

    shield = fake.defence(tmp_path / "shield", metrics=ce(6.0), base="llama")
    curve = {0: ce(5.0), 10: ce(4.0), 50: ce(3.4)}
    runs = [shield, fake.attack(tmp_path / "a", "llama", metrics=ce(3.0), curve=curve, steps=100)]
    runs += [fake.attack(tmp_path / "b", shield, metrics=ce(3.9), curve={0: ce(6.0)}, steps=100)]
    own = breaking(runs, summarise(runs))
    assert (own.reference, own.threshold) == ("undefended", pytest.approx(4.0))
    assert own.survival("undefended", "steps").typical().cost == 10
    assert own.survival("repnoise", "steps").typical().cost == 100
    alone = breaking(runs[::2], summarise(runs[::2]))
    assert math.isnan(alone.threshold) and alone.survival("repnoise", "steps") is None
    assert section(runs[::2])["lines"] == [] and section(runs[::2])["panels"]


def test_an_attack_that_draws_nothing_belongs_to_every_seed(two, tmp_path):
    edit = {"attack": WeightEdit(edit=Quantisation())}
    run = fake.attack(tmp_path / "q", two[0], "quantised", found(0.6), curve={0: found(0.0)}, config=edit)
    assert seed_of(run) is None
    own = breaking([*two, priced(run)], summarise([*two, run]))
    assert [any(point.attack == "quantised" for point in seed) for seed in own.seeds["repnoise"]] == [True, True]
    assert own.survival("repnoise", "steps").broken == 2
    alone = breaking([two[0], run], summarise([two[0], run]))
    assert len(alone.seeds["repnoise"]) == 1


def test_a_seed_is_found_wherever_an_attack_keeps_it(tmp_path):
    for number, attack in enumerate((Prompting(seed=7), WeightEdit(edit=WeightNoise(seed=7)))):
        assert seed_of(fake.attack(tmp_path / f"{number}", "sandbox", config={"attack": attack})) == 7


def test_attacks_without_a_learning_rate_come_first_and_have_a_panel_only_if_measured_on_the_way(two, tmp_path):
    edit = {"attack": WeightEdit(edit=Quantisation())}
    short = fake.attack(tmp_path / "q", two[0], "quantised", found(0.6), curve={0: found(0.0)}, config=edit)
    assert setting_of(short).kind == "quantisation"
    rows = summarise([*two, short])
    assert attacks_in_order(rows) == ["none", "quantised", "100@3e-4", "100@1e-3"]
    look = styles(["repnoise"])
    titles = [texts(panel.svg) for panel in curve_figures([*two, short], rows, look)[0].panels]
    assert [next(text for text in found if "rate" in text) for found in titles] == [
        "learning rate 3e-4",
        "learning rate 1e-3",
    ]
    longer = fake.attack(tmp_path / "r", two[0], "quantised", found(0.6), curve={0: found(0), 9: found(0)}, config=edit)
    assert "quantisation" in texts(curve_figures([longer], summarise([longer]), look)[0].panels[0].svg)


def test_attacks_of_one_rate_that_differ_otherwise_have_panels_of_their_own(two, tmp_path):
    lora = replace(
        presets()["lora-400@3e-3"].attack, training=replace(presets()["100@1e-3"].attack.training, lora_rank=4)
    )
    config = {"attack": lora}
    other = fake.attack(tmp_path / "l", two[0], "lora", found(0.3), curve={0: found(0)}, config=config)
    panels = curve_figures([*two, other], summarise([*two, other]), styles(["repnoise"]))[0].panels
    titles = {text for panel in panels for text in texts(panel.svg)}
    assert {"learning rate 3e-4", "100@1e-3", "lora"} <= titles


def test_limits_of_the_median_are_where_the_limits_of_the_curve_pass_one_half():
    low, high = (0.6, 0.4, 0.1, None), (0.95, 0.8, 0.45, None)
    own = Survival(4, 4, (10, 20, 30, 40), (0.75, 0.6, 0.25, 0), low, high, 30, 40)
    assert median_limits(own) == (20, 30)
    assert median_limits(replace(own, high=(None, 0.8, 0.55, None))) == (20, None)
    assert median_limits(survival([Event(10.0, False)])) == (None, None)
    assert median_limits(survival([Event(10.0, True), Event(10.0, True)])) == (None, None)


def test_harm_is_drawn_against_flops_and_ends_where_the_attacks_did(two):
    panels = section(two)["panels"]
    assert len(panels) == 2  # Two seeds have no survival curve.
    assert {"FLOPs of the attack", "undefended", "repnoise", "0", "100 %"} <= {*texts(panels[0])}
    assert "repnoise 25 % at up to 1.00e+11" in label(panels[0]) and "undefended 100 %" in label(panels[0])
    assert "recovered, uncovered" in label(panels[1])


def test_the_end_of_every_attack_is_told_with_its_name_and_cost(two):
    panel = section(two)["panels"][0]
    titles = [element.text for element in ElementTree.fromstring(panel).iter() if element.tag.endswith("title")]
    assert "repnoise, 100@1e-3, end, FLOPs of the attack 1.00e+11: 20 %" in titles
    assert "undefended, 100@3e-4, end, FLOPs of the attack 1.00e+11: 100 %" in titles


def test_a_line_goes_no_further_than_every_seed_went(two, tmp_path):
    curve = {0: found(0.0), 10: found(0.1)}
    longer = fake.attack(tmp_path / "long", two[0], "400@1e-3", found(1.0), 1, curve, steps=400)
    panel = section([*two, priced(longer)])["panels"][0]
    assert "repnoise 25 % at up to 1.00e+11" in label(panel)


def test_costs_that_were_not_counted_for_all_are_drawn_as_examples(two, tmp_path):
    uncounted = fake.attack(tmp_path / "u", two[0], "400@1e-3", found(0.3), curve={0: found(0.0)})
    assert "examples trained on" in texts(section([*two, uncounted])["panels"][0])


def test_three_seeds_have_a_survival_curve(two, tmp_path):
    runs = [*two, *attacked(tmp_path / "c", "sandbox", {"100@1e-3": 1.0}, 2)]
    panel = section(runs)["panels"][-1]
    assert label(panel) == "share of seeds not broken. At the end: undefended 0 % at 1.00e+10"


def test_the_heat_map_has_the_worst_seed_and_what_was_left_in_that_run(two, tmp_path):
    late = fake.attack(tmp_path / "x", two[0], "400@1e-3", found(0.8, harmless=0.1), curve={0: found(0.0)})
    harm, left = section([*two, late])["heat"]
    names = [text for text in texts(harm) if "@" in text or "worst of" in text]
    assert [name[: len(name) // 2] for name in names] == ["worst of all attacks", "400@1e-3", "100@3e-4", "100@1e-3"]
    titles = [element.text for element in ElementTree.fromstring(harm).iter() if element.tag.endswith("title")]
    assert "100@3e-4, repnoise: recovered, covered 30 %" in titles
    assert "At the worst: repnoise 80 % with 400@1e-3; undefended 100 % with 100@3e-4" in label(harm)
    assert "repnoise 10 % with 400@1e-3" in label(left)
    assert "–" in texts(harm)  # Nobody did that to the undefended model.


def test_attacks_are_ordered_by_strength_on_models_that_know_something(two, tmp_path):
    nothing = fake.control(tmp_path / "n", "random-initialisation", found(0.0))
    runs = [*two, nothing, *attacked(tmp_path / "m", nothing, {"100@1e-3": 1.0})]
    assert heat_of(summarise(runs), "recovered").attacks == ["100@3e-4", "100@1e-3"]


def test_every_number_of_a_heat_map_can_be_read_in_both_themes():
    for theme in ("light", "dark"):
        variables = heat_styles()[theme]
        for ramp in RAMPS:
            shades = [luminance(colour) for colour in RAMPS[ramp][theme].split()]
            assert shades == sorted(shades, reverse=theme == "light")
            for level, shade in enumerate(shades):
                assert variables[f"--{ramp}-{level}"] == RAMPS[ramp][theme].split()[level]
                bright, dark = sorted((luminance(variables[f"--on-{ramp}-{level}"]), shade), reverse=True)
                assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_perplexity_is_what_is_left_where_nothing_else_is(tmp_path):
    def run(name, perplexity, refused):
        metrics = fake.shares(refusal_rate=refused) | fake.averages(perplexity=perplexity)
        return fake.attack(tmp_path / name, "llama", name, metrics, curve={0: metrics})

    harm, left = section([run("weak", 4.0, 0.75), run("strong", 400.0, 0.5)])["heat"]
    assert "refused" in label(harm) and "perplexity" in label(left)
    assert {*re.findall(r"--harm-(\d)", harm)} == {"2", "4"}  # The fewer refusals, the more harm.
    fills = re.findall(r"--left-(\d)", left)
    assert {"0", "8"} == {*fills} and "400" in texts(left)


def test_the_terminal_has_means_with_what_is_left_beside_and_costs(two):
    rows = summarise(two)
    text = shown(heat_table(rows, "recovered"))
    assert "20 % / 50 %" in text and text.index("100@3e-4") < text.index("100@1e-3")
    costs = shown(break_table(breaking(two, rows)))
    assert ">= 10" in costs and 'Broken where "recovered, covered" reaches 50 %' in costs


def test_a_page_with_names_of_strangers_has_the_section_and_its_words(two, tmp_path):
    stranger = fake.defence(tmp_path / "stranger", HOSTILE, found(0.0))
    runs = [*two, stranger, *attacked(tmp_path / "s", stranger, {"100@1e-3": 0.3})]
    page = write_report(runs, tmp_path / "report").read_text()
    assert "What it costs to break" in page and "How far each attack went" in page and "<b>" not in page
    assert page.count("--harm-8:") == 2
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "## What it costs to break" in markdown and "| more than 100 (broken in 0 of 2) |" in markdown
    assert HOSTILE in shown(break_table(breaking(runs, summarise(runs))))
    assert "--harm-8:" in page and "How far" not in write_report([stranger], tmp_path / "other").read_text()


def test_an_attack_that_only_asks_costs_nothing_and_is_no_cost_to_break(tmp_path):
    model = fake.control(tmp_path / "model", "undefended", fake.shares(recovered=0.0))
    trained = fake.attack(
        tmp_path / "trained", model, "100@1e-3", fake.shares(recovered=0.9), 0, {0: fake.shares(recovered=0.0)}
    )
    asked = fake.attack(
        tmp_path / "asked", model, "30@3e-4", fake.shares(recovered=1.0), 0, {0: fake.shares(recovered=0.0)}
    )
    rows = read_rows(asked.path / "curve.jsonl")
    free = {"samples": 0, "tokens": 0, "flops": 0.0}
    write_rows(asked.path / "curve.jsonl", [row | {"cost": {"steps": row["step"], **free}} for row in rows])
    runs = [model, trained, asked]
    found = breaking(runs, summarise(runs))
    assert {point.attack for seed in found.seeds["undefended"] for point in seed} == {"100@1e-3"}
