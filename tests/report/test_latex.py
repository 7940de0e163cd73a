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
    assert escaped("50 % of a_b & #1") == r"50~\% of a\_b \& \#1"
    assert escaped("\\ {x} ~ ^ $") == r"\textbackslash{} \{x\} \textasciitilde{} \textasciicircum{} \$"
    assert escaped("– … >1\n2") == r"-- \ldots{} \textgreater{}1 2"
    assert escaped("≥ ≤ − ≈ ∞ → ² `") == (
        r"$\geq$ $\leq$ $-$ $\approx$ $\infty$ $\rightarrow$ \textsuperscript{2} \textasciigrave{}"
    )
    assert escaped('where "a, b" reaches') == "where ``a, b'' reaches", "the quotes of the font would be both closing"
    assert escaped("--flag") == "-{}-flag", "two hyphens are not a dash"


def test_a_number_stays_with_its_unit_an_interval_and_an_exponent_whole():
    assert escaped("68 % [32, 100] (n 40), 100@1e-3") == r"68~\% [32,~100] (n~40), 100@1e\mbox{-}3"
    assert escaped("1,600 [1,600, …]") == r"1,600 [1,600,~\ldots{}]"


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
    assert heading == [r"\addlinespace \multicolumn{3}{l}{\textit{first}} \\*"] and len(row) == 3
    assert len(cells(text.splitlines()[6])) == 3


SHARES = re.compile(r"p\{\\dimexpr(0\.\d+)\\linewidth-2\\tabcolsep\\relax\}")


def specification(text):
    """The columns of a table, and what they take of the width of the text together."""
    line = next(line for line in text.splitlines() if re.match(r"\\begin\{(tabular|longtable)\}", line))
    shares = [float(share) for share in SHARES.findall(line)]
    return shares, sum(shares)


def test_a_table_too_wide_for_a_line_breaks_its_cells_within_the_width_of_the_text():
    cell = "at most 1,600 [1,600, 3,200] (broken in 2 of 2)"
    wide = PaperTable("t", "c", ["model", "steps", "examples"], [["a", cell, cell], ["b", "–", "1"]])
    shares, total = specification(latex_table(wide))
    assert len(shares) == 3 and 0.98 < total <= 1
    assert shares[1] == shares[2] > shares[0]
    assert r"\usepackage{array,booktabs}" in latex_table(wide) and "resizebox" not in latex_table(wide)
    fits = PaperTable("t", "c", ["model", "steps"], [["a", cell]])
    assert r"\begin{tabular}{lr}" in latex_table(fits) and r"\usepackage{booktabs}" in latex_table(fits)


def test_a_table_of_many_columns_is_shrunk_and_its_spans_are_as_wide_as_what_is_below_them():
    numbers = ["90 % [77, 96]"] * 12
    table = PaperTable("t", "c", ["model", *map(str, range(12))], [["a", *numbers]], [("before", 4), ("", 8)])
    text = latex_table(table)
    assert r"\resizebox{\linewidth}" in text and "graphicx" in text.splitlines()[0] and balanced(text)
    shares, total = specification(text)
    assert len(shares) == 13 and total <= 1
    (span,) = [float(share) for line in text.splitlines() if "multicolumn{4}" in line for share in SHARES.findall(line)]
    assert abs(span - sum(shares[1:5])) < 0.01
    assert latex_table(PaperTable("t", "c", table.columns[:3], [["a", *numbers[:2]]])).count("resizebox") == 0


def test_rows_of_several_lines_count_as_such_when_a_table_is_too_long_for_a_page():
    row = ["a", "two words " * 20, "two words " * 20]
    assert r"\begin{longtable}" in latex_table(PaperTable("t", "c", ["m", "n", "o"], [row] * (LONG // 4)))


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
    assert [escaped(HOSTILE), r"20~\% [10,~35]", r"20~\% [10,~35]", r"90~\% [77,~96]"] in rows
    example = (folder / "example.tex").read_text()
    shown = {f"{name}.tex" for name in re.findall(r"\\input\{(.+)\}", example)}
    shown |= {f"{name}.pdf" for name in re.findall(r"\\drawn\{([\w-]+)\}", example)}
    assert shown == {name for name in names if not name.endswith(".svg")} - {"example.tex"}
    used = re.search(r"\\usepackage\{(.*longtable.*)\}", example)[1].split(",")
    for name in names:
        if name.endswith(".tex") and name != "example.tex":
            needed = re.search(r"Needs \\usepackage\{(.+)\}", (folder / name).read_text())[1]
            assert {*needed.split(",")} <= {*used}
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
