"""Tables and figures for papers: LaTeX that says what the report says, and files that open."""

import re
from xml.etree import ElementTree

import fabricated_runs as fake
from repnoise.report.command import write_report
from repnoise.report.latex import LONG, PaperTable, escaped, latex_table, slug

HOSTILE = "a_b & 50% of #1 {x} ~ ^ \\ $y$ <z>"


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\").strip())]


def body(text):
    """The cells of the lines between the rules."""
    inside = text.split(r"\midrule")[-1].split(r"\bottomrule")[0]
    return [cells(line) for line in inside.strip().splitlines()]


def balanced(text):
    bare = re.sub(r"\\[\\{}%]", "", text)
    return bare.count("{") == bare.count("}") and text.count(r"\begin{") == text.count(r"\end{")


def test_what_means_something_to_latex_is_printed_as_it_is():
    assert escaped("50 % of a_b & #1") == r"50 \% of a\_b \& \#1"
    assert escaped("\\ {x} ~ ^ $") == r"\textbackslash{} \{x\} \textasciitilde{} \textasciicircum{} \$"
    assert escaped("– … >1\n2") == r"-- \ldots{} \textgreater{}1 2"


def test_a_table_has_rules_heads_and_as_many_cells_in_every_row():
    table = PaperTable("t", HOSTILE, ["model", HOSTILE, "b"], [["first"], [HOSTILE, "1", "2"]], [("one", 1), ("", 1)])
    text = latex_table(table)
    assert balanced(text)
    for part in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\label{tab:t}",
        r"\begin{tabular}{lrr}",
        r"\cmidrule(lr){2-2}",
    ):
        assert part in text
    heading, row = body(text)
    assert heading == [r"\addlinespace \multicolumn{3}{l}{\textit{first}}"] and len(row) == 3
    assert len(cells(text.splitlines()[6])) == 3


def test_a_name_that_begins_with_a_bracket_is_no_option_of_the_line_before():
    text = latex_table(PaperTable("t", "c", ["m", "n"], [["a", "1"], ["[b]", "2"], ["*", "3"]]))
    assert not re.search(r"\\\\\s*[\[*]", text)
    assert "[b]" in text


def test_a_long_table_goes_over_pages_and_repeats_its_heads():
    rows = [[f"{i}", "1"] for i in range(LONG + 1)]
    text = latex_table(PaperTable("t", "c", ["m", "n"], rows))
    assert r"\begin{longtable}" in text and text.count("m & n") == 2 and balanced(text)
    assert r"\begin{table}" in latex_table(PaperTable("t", "c", ["m", "n"], rows[:-1]))


def test_names_of_files_are_of_letters_and_digits():
    assert slug("learning rate 1e-3, 50 % benign") == "learning-rate-1e-3-50-benign"
    assert slug("../<b>") == "b" and slug("…") == "figure"


def test_a_report_for_a_paper_has_its_tables_and_every_figure_twice(tmp_path):
    def found(share):
        return fake.shares(recovered=share, recovered_uncovered=share, harmless_accuracy=0.9)

    shield = fake.defence(tmp_path / "runs/shield", HOSTILE, found(0.0))
    runs = [shield]
    for name, parent, share in (("a", shield, 0.2), ("b", "sandbox", 1.0)):
        runs.append(
            fake.attack(tmp_path / "runs" / name, parent, metrics=found(share), curve={0: found(0.0)}, steps=50)
        )
    page = write_report(runs, tmp_path / "report", latex=True).read_text()
    folder = tmp_path / "report" / "latex"
    names = {path.name for path in folder.iterdir()}
    assert {"worst-case.tex", "cost-to-break.tex", "every-attack.tex"} <= names
    for name in names:
        if name.endswith(".tex"):
            assert balanced((folder / name).read_text())
    rows = body((folder / "every-attack.tex").read_text())
    assert [escaped(HOSTILE), r"20 \% [10, 35]", r"20 \% [10, 35]", r"90 \% [77, 96]"] in rows
    pictures = {name.removesuffix(".svg") for name in names if name.endswith(".svg")}
    assert pictures == {name.removesuffix(".pdf") for name in names if name.endswith(".pdf")}
    assert len(pictures) == page.count("<svg ") and "heat-recovered-covered-worst-seed" in pictures
    for name in pictures:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        svg = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert svg.get("aria-label") and "var(" not in (folder / f"{name}.svg").read_text()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report(runs, tmp_path / "report", latex=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
