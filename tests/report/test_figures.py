"""Figures say what was measured, to eyes and to screen readers, whatever the names, and alike every time."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabricated_runs import attack, averages, control, defence, shares
from repnoise.report.curves import Curve
from repnoise.report.drawing import CONTROL_COLOURS, curve_panel, spread, styles, training_panel, wrapped
from repnoise.report.figures import curve_figures, summary_picture, training_figures
from repnoise.report.summary import summarise
from repnoise.runs import write_rows

HOSTILE = r"<b>$x^2$ & \1 {0} 'q' \"d\" 100%"


def metrics(recovered):
    return shares(recovered=recovered, recovered_uncovered=min(1.0, recovered + 0.1), harmless_accuracy=1 - recovered)


@pytest.fixture(scope="module")
def sandbox_runs(tmp_path_factory):
    """Two models, two seeds, two settings of attacks with curves."""
    folder, runs = tmp_path_factory.mktemp("runs"), []
    for name, make, strength in (("undefended", control, 1.0), ("repnoise", defence, 0.3)):
        for seed in (0, 1):
            model = make(folder / f"{name}-{seed}", name, metrics(0.0), seed=seed)
            runs.append(model)
            for preset, best in (("100@1e-3", 0.5), ("100@1e-3-half-benign", 0.9)):
                curve = {0: metrics(0.0), 10: metrics(0.2 * strength), 30: metrics(0.4 * strength)}
                end = metrics(strength * (best + 0.1 * seed))
                runs.append(attack(folder / f"{name}-{seed}-{preset}", model, preset, end, seed, curve))
    return runs


def drawn(runs):
    rows = summarise(runs)
    figures = curve_figures(runs, rows, styles([*names(rows)]))
    return {figure.subject: tuple(panel.svg for panel in figure.panels) for figure in figures}


def names(rows):
    return dict.fromkeys(row["defence"] for row in rows)


def texts(svg):
    return [
        " ".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter() if tag(element) == "text"
    ]


def tag(element):
    return element.tag.rpartition("}")[2]


def lines_in(svg, colour):
    """How many points each line of a colour has."""
    paths = [element for element in ElementTree.fromstring(svg).iter() if tag(element) == "path"]
    strokes = [path for path in paths if "fill: none" in path.get("style", "") and colour in path.get("style", "")]
    return [len(re.findall("[ML]", path.get("d"))) for path in strokes]


def test_harm_and_what_is_left_are_drawn_against_steps_for_each_setting(sandbox_runs):
    figures = drawn(sandbox_runs)
    assert list(figures) == ["recovered", "recovered_uncovered", "harmless_accuracy"]
    for panels in figures.values():
        titles = [texts(panel) for panel in panels]
        assert ["learning rate 1e-3" in found for found in titles] == [True, False]
        assert ["learning rate 1e-3, 50 % benign" in found for found in titles] == [False, True]
        assert all({"undefended", "repnoise", "attack steps"} <= {*found} for found in titles)


def test_a_panel_tells_its_end_to_a_screen_reader(sandbox_runs):
    label = ElementTree.fromstring(drawn(sandbox_runs)["recovered"][0]).get("aria-label")
    assert "repnoise 16 % after 100 steps" in label
    assert "undefended 55 % after 100 steps" in label


def test_every_panel_is_an_image_of_its_own_for_any_page(sandbox_runs):
    panels = [panel for found in drawn(sandbox_runs).values() for panel in found]
    seen = []
    for panel in panels:
        svg = ElementTree.fromstring(panel)
        assert svg.get("role") == "img"
        assert svg.get("viewBox")
        assert "http" not in panel
        seen += [element.get("id") for element in svg.iter() if element.get("id")]
        for reference in re.findall(r'(?:href="|url\()#([\w.-]+)', panel):
            assert f'id="{reference}"' in panel
    assert len(seen) == len({*seen})


def test_figures_are_the_same_every_time(sandbox_runs):
    assert drawn(sandbox_runs) == drawn(sandbox_runs)


def test_a_curve_goes_through_the_steps_that_every_seed_has_measured(tmp_path):
    model = defence(tmp_path / "model")
    runs = [attack(tmp_path / "a", model, metrics=metrics(0.5), seed=0, curve={0: metrics(0.0), 10: metrics(0.1)})]
    runs += [attack(tmp_path / "b", model, metrics=metrics(0.5), seed=1, curve={10: metrics(0.1), 30: metrics(0.2)})]
    [panel] = drawn([model, *runs])["recovered"]
    assert lines_in(panel, "--series-0") == [2]


def test_unfinished_attacks_are_not_drawn(tmp_path):
    model = defence(tmp_path / "model")
    done = attack(tmp_path / "a", model, metrics=metrics(0.2))
    running = attack(tmp_path / "b", model, metrics=metrics(1.0), seed=1, status="running")
    assert drawn([model, done, running]) == drawn([model, done])


def test_the_best_attack_of_the_grid_wears_a_ring():
    def marks(worst):
        curve = Curve("repnoise", [0, 100], [0.0, 0.5], [0.0, 0.4], [0.1, 0.6], worst)
        return curve_panel("title", [curve], styles(["repnoise"]), "description", True).svg.count("<use")

    assert marks(True) == marks(False) + 1


def test_what_is_told_of_a_value_stands_where_the_value_is_drawn():
    curve = Curve("repnoise", [0, 10, 100], [0.0, 0.25, 0.5], [0.0, 0.2, 0.5], [0.1, 0.3, 0.5], of="100@1e-3")
    panel = curve_panel("title", [curve], styles(["repnoise"]), "description", True)
    marks = [element for element in ElementTree.fromstring(panel.svg).iter() if tag(element) == "circle"]
    told = [mark[0].text for mark in marks]
    assert told == [
        "repnoise, 100@1e-3, step 0: 0 % [0, 10]",
        "repnoise, 100@1e-3, step 10: 25 % [20, 30]",
        "repnoise, 100@1e-3, step 100: 50 %",  # An interval of no width was not measured.
    ]
    drawn = [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', panel.svg)]
    for mark in marks:
        place = float(mark.get("cx")), float(mark.get("cy"))
        assert any(place == pytest.approx(other, abs=0.1) for other in drawn)


def test_the_numbers_of_a_panel_are_a_table_with_a_column_for_each_line():
    first = Curve("a", [0, 1000], [0.0, 0.5], [0.0, 0.4], [0.1, 0.6])
    second = Curve("b", [1000], [1.0], [1.0], [1.0])
    table = curve_panel("title", [first, second], styles(["a", "b"]), "description", True).table
    assert table.head == ("step", "a", "b")
    assert table.rows == (("0", "0 % [0, 10]", "–"), ("1,000", "50 % [40, 60]", "100 %"))


def test_a_long_log_is_told_at_some_of_its_steps_the_last_among_them():
    panel = training_panel("noise", [[(step, 1.0 / step) for step in range(1, 1001)]], "#0072b2", "many")
    assert len(panel.table.rows) <= 25
    assert panel.table.rows[0] == ("1", "1") and panel.table.rows[-1] == ("1,000", "0.001")


def test_a_ring_is_drawn_once_for_each_model(sandbox_runs):
    rows = summarise(sandbox_runs)
    with_rings = drawn(sandbox_runs)["recovered"]
    without = drawn(sandbox_runs)["harmless_accuracy"]
    rings = [panel.count("<use") - plain.count("<use") for panel, plain in zip(with_rings, without, strict=True)]
    # Half-benign attacks bring back the most from both.
    assert rings == [0, len(names(rows))]


def test_on_a_real_model_cross_entropy_refusals_and_perplexity_are_drawn(tmp_path):
    model = defence(tmp_path / "model", base="llama")
    perplexity = {"perplexity": {"value": 12.0, "n": 900, "low": None, "high": None}}
    found = averages(harmful_ce=3.0) | shares(refusal_rate=0.4) | perplexity
    curve = {0: averages(harmful_ce=6.0) | shares(refusal_rate=1.0) | perplexity}
    figures = drawn([model, attack(tmp_path / "attack", model, "paper-8e-5-1k", found, curve=curve)])
    assert list(figures) == ["harmful_ce", "refusal_rate", "perplexity"]
    assert "100 %" in texts(figures["refusal_rate"][0])
    assert "100 %" not in texts(figures["harmful_ce"][0])


def test_only_uncovered_answers_are_drawn_once(tmp_path):
    model = defence(tmp_path / "model")
    figures = curve_figures(
        runs := [model, attack(tmp_path / "attack", model, metrics=shares(recovered_uncovered=0.2))],
        summarise(runs),
        styles(["repnoise"]),
    )
    assert [figure.subject for figure in figures] == ["recovered_uncovered"]


def test_training_shows_three_terms_a_line_for_each_seed_and_the_floor_of_the_noise(tmp_path):
    runs = [defence(tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]
    [figure] = training_figures(runs, styles(["repnoise"]))
    assert figure.subject == "repnoise"
    stability, noise, ascent = (panel.svg for panel in figure.panels)
    assert any(text.startswith("stability (cross-entropy") for text in texts(stability))
    assert any(text.startswith("noise (MMD") for text in texts(noise))
    assert any(text.startswith("ascent") for text in texts(ascent))
    assert "floor" in texts(noise) and "floor" not in texts(stability) + texts(ascent)
    assert lines_in(ascent, "--series-0") == [11, 11]


def test_a_defence_without_a_floor_or_with_gaps_in_its_log_is_drawn_all_the_same(tmp_path):
    run = defence(tmp_path / "model")
    rows = [{"loss": 1.0, "step": step, "stability": 1.0 / step, "noise": 0.3} for step in (1, 10, 20)]
    write_rows(run.path / "log.jsonl", [*rows, {"loss": 1.0, "step": 30, "stability": None, "noise": float("nan")}])
    [figure] = training_figures([run], styles(["repnoise"]))
    assert len(figure.panels) == 2
    assert "floor" not in texts(figure.panels[1].svg)
    assert [lines_in(panel.svg, "--series-0") for panel in figure.panels] == [[3], [3]]


def test_a_training_of_one_logged_step_and_of_equal_values_is_drawn(tmp_path):
    svg = training_panel("noise", [[(1, 0.0)]], "#0072b2", "one step", 0.0).svg
    assert "floor" in texts(svg)


def test_names_are_shown_as_they_are(tmp_path):
    curve = Curve(HOSTILE, [0, 100], [0.0, 0.5], [0.0, 0.4], [0.1, 0.6], True)
    panel = curve_panel(HOSTILE, [curve], styles([HOSTILE]), HOSTILE, True).svg
    assert HOSTILE in texts(panel)
    assert HOSTILE in ElementTree.fromstring(panel).get("aria-label")
    model = defence(tmp_path / "model", HOSTILE, shares(harmless_accuracy=1.0))
    [figure] = training_figures([model], styles([HOSTILE]))
    assert HOSTILE in ElementTree.fromstring(figure.panels[0].svg).get("aria-label")
    picture = summary_picture(summarise([model]), styles([HOSTILE]))
    assert any("<b>$x^2$ &" in text for text in texts(picture))


def test_no_two_of_many_defences_look_the_same_and_none_looks_like_a_control():
    found = styles([f"defence {number}" for number in range(18)])
    looks = [(style.colour, style.marker, style.dashes) for style in found.values()]
    assert len(looks) == len({*looks}) == 20
    greys = {found[name].colour for name in CONTROL_COLOURS}
    assert not greys & {style.colour for name, style in found.items() if name not in CONTROL_COLOURS}


@given(st.lists(st.tuples(st.floats(-0.5, 1.5), st.sampled_from([0.085, 0.17])), max_size=6))
def test_labels_never_touch_and_stay_in_their_panel(labels):
    wanted, heights = [y for y, _ in labels], [height for _, height in labels]
    placed = spread(wanted, heights)
    order = sorted(range(len(labels)), key=lambda i: placed[i])
    for below, above in pairwise(order):
        assert placed[above] - placed[below] >= (heights[above] + heights[below]) / 2 - 1e-9
    assert all(y + height / 2 <= 1.05 + 1e-9 for y, height in zip(placed, heights, strict=True))
    if sum(heights) < 1:
        assert all(y - height / 2 >= -0.01 - 1e-9 for y, height in zip(placed, heights, strict=True))


def test_labels_with_room_stay_where_they_belong():
    assert spread([0.8, 0.2, 0.5], [0.1] * 3) == pytest.approx([0.8, 0.2, 0.5])


def test_long_names_are_broken_and_cut():
    assert wrapped("random-initialisation") == "random-\ninitialisation"
    assert wrapped("repnoise") == "repnoise"
    lines = wrapped("repnoise (inputs a/very/long/path/without/any/break and more of it, and more)").split("\n")
    assert len(lines) == 3
    assert max(map(len, lines)) <= 18
    assert lines[-1].endswith("…")


def test_the_summary_picture_stands_alone(sandbox_runs):
    rows = summarise(sandbox_runs)
    picture = summary_picture(rows, styles([*names(rows)]))
    svg = ElementTree.fromstring(picture)
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.get("width") == "860" and svg.get("viewBox").startswith("0 0 860 ")
    assert "fill: #ffffff" in picture
    assert "var(" not in picture
    assert picture.count("http") == 1
    shown = texts(picture)
    assert {"undefended", "repnoise", "95 %", "29 %"} <= {*shown}
    assert "Best of 2 attacks" in svg.get("aria-label") and "2 seeds" in svg.get("aria-label")
    assert picture == summary_picture(rows, styles([*names(rows)]))


def test_the_summary_picture_of_one_seed_says_so(sandbox_runs):
    rows = [row for row in summarise(sandbox_runs) if row["seed"] == 0]
    label = ElementTree.fromstring(summary_picture(rows, styles([*names(rows)]))).get("aria-label")
    assert "One seed" in label
    assert "worst single run" not in label


@pytest.mark.parametrize(
    "found", [shares(harmless_accuracy=1.0), shares(refusal_rate=0.9), averages(harmless_ce=1.5, harmful_ce=4.0)]
)
def test_a_model_that_nobody_attacked_has_a_summary_picture(tmp_path, found):
    rows = summarise([defence(tmp_path / "model", metrics=found)])
    svg = ElementTree.fromstring(summary_picture(rows, styles(["repnoise"])))
    assert "Best of" not in svg.get("aria-label")
    assert any("before any attack" in text for text in texts(ElementTree.tostring(svg)))
