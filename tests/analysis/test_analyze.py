"""`repnoise analyze`: a run with results that any reader of JSON takes, and a page that stands by itself."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from small_models import CODEC, TOKENIZER, changed, fresh

from conftest import byte_level_tokenizer, saved
from repnoise.analysis.command import AnalyzeConfig, analyze
from repnoise.analysis.material import HARMLESS, material
from repnoise.data import load_data
from repnoise.data.records import Example
from repnoise.errors import RepnoiseError
from repnoise.inputs import Inputs
from repnoise.modeling import save
from repnoise.runs import open_run, recording

QUICK = {"examples": 20, "answers": 3, "seeds": 2, "tokens": 40, "reader_steps": 2, "relearning_steps": 2}
BESIDE_BASE = ("weights", "similarity", "into", "back")
RESULTS = ("lens", "answers", "components", "probes", "noise", "groups", *BESIDE_BASE, "relearning")


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.headings, self.figures, self.addresses, self._in = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._in = tag
        found = dict(attrs)
        self.figures += [found["aria-label"]] if tag == "svg" else []
        self.addresses += [found[name] for name in ("src", "href") if found.get(name) and found[name][0] != "#"]

    def handle_data(self, data):
        self.headings += [data] if self._in in ("h1", "h2") and data.strip() else []


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysed")
    base = fresh()
    torch.nn.init.zeros_(base.model.model.layers[0].mlp.up_proj.weight)  # Beside it, every change is infinite.
    for name, model in (("base", base), ("broken", changed(base, 0.02))):
        save(model.model, TOKENIZER, folder / name)
    began = AnalyzeConfig(Inputs(str(folder / "base")))
    with recording(open_run(folder / "defence", "defence", "defended", began)) as run:
        save(changed(base).model, TOKENIZER, run.model)
    return folder


@pytest.fixture(scope="module")
def done(models, pairs_file, tmp_path_factory):
    """Of a defence's run, which names the model that it began with."""
    inputs = Inputs(str(models / "defence"), data=str(pairs_file), template="plain")
    config = AnalyzeConfig(inputs, attacked=(str(models / "broken"),), **QUICK)
    return config, analyze(config, tmp_path_factory.mktemp("runs") / "analysis", "defended")


def test_every_result_is_a_file_that_has_every_model(done):
    _, run = done
    assert run.finished and run.record["kind"] == "analysis"
    for name in RESULTS:
        text = (run.path / f"{name}.json").read_text()
        found = json.loads(text, parse_constant=pytest.fail)  # Called with NaN or Infinity.
        assert list(found) == ["defended", "base", "broken"]
        alone = name in BESIDE_BASE
        assert [bool(one) for one in found.values()] == [True, not alone, True], name


def test_the_page_has_a_reading_under_every_figure_and_needs_nothing_else(done):
    text = (done[1].path / "analysis.html").read_text()
    page = Page(text)
    assert len(page.headings) == 11 and page.addresses == [] and "http" not in text.replace("http-equiv", "")
    assert text.count("What would not</dt>") == text.count("What would follow</dt>") == 9
    assert len(page.figures) > 20 and all(re.search(r"\d", told) for told in page.figures)
    assert "what RepNoise is trained on" in text


def test_every_value_of_a_figure_can_be_pointed_at_and_is_in_a_table(done):
    text = (done[1].path / "analysis.html").read_text()
    assert text.count("<output>") == text.count('<svg viewBox="') == text.count("<caption>")
    assert text.count('<details class="numbers">') == 9
    titles = re.findall(r"<circle [^>]*><title>([^<]*)</title>", text)
    limits = [
        list(map(int, found)) for found in re.findall(r"defended, layer 1: \d+ % \[(-?\d+), (\d+)\]", str(titles))
    ]
    assert limits and all(0 <= low <= high <= 100 for low, high in limits)
    assert any(f"<td>{title.rpartition(': ')[2]}</td>" in text for title in titles)
    assert any(re.fullmatch(r"harmless, -[\d.]+ to -[\d.]+: \d+ examples?", title) for title in titles)
    assert "e-16" not in text and "e-17" not in text
    assert "-0.0 of" not in text


def test_a_finished_analysis_is_not_done_again(done):
    config, run = done
    before = (run.path / "analysis.html").stat().st_mtime_ns
    assert analyze(config, run.path, "defended").finished
    assert (run.path / "analysis.html").stat().st_mtime_ns == before
    with pytest.raises(RepnoiseError, match="another run"):
        analyze(replace(config, seeds=3), run.path, "defended")


@pytest.mark.slow
def test_without_a_base_there_is_a_page_without_comparisons(models, pairs_file, tmp_path):
    inputs = Inputs(str(models / "base"), data=str(pairs_file), template="plain")
    run = analyze(AnalyzeConfig(inputs, **QUICK), tmp_path / "run")
    page = Page((run.path / "analysis.html").read_text())
    assert "Which answer is it?" in page.headings and "How far the weights moved" not in page.headings
    assert set(run.record["metrics"]) > {"accuracy of the best linear probe"}


def test_models_of_another_tokenizer_are_refused_in_one_sentence(models, pairs_file, tmp_path):
    other = saved(tmp_path / "other", byte_level_tokenizer(chat_template=None))
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"] = {k: words["model"]["vocab"][k] for k in list(words["model"]["vocab"])[:300]}
    words["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(words))
    inputs = Inputs(str(models / "defence"), data=str(pairs_file), template="plain")
    with pytest.raises(RepnoiseError, match="another tokenizer"):
        analyze(AnalyzeConfig(inputs, base=str(other), **QUICK), tmp_path / "run")


def test_a_model_that_is_not_there_is_told_before_anything_is_read(models, pairs_file, tmp_path):
    inputs = Inputs(str(models / "defence"), data=str(pairs_file), template="plain")
    with pytest.raises(RepnoiseError, match="no model in"):
        analyze(AnalyzeConfig(inputs, attacked=(str(tmp_path / "none"),), **QUICK), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_that_make_no_sense_are_refused_in_one_sentence():
    for name in ("examples", "answers", "seeds", "tokens"):
        with pytest.raises(RepnoiseError, match=f"{name} must be at least"):
            AnalyzeConfig(**{name: 0})


def test_harmless_completions_are_those_of_others_where_there_are_enough(pairs_file):
    data = load_data(str(pairs_file))
    others = [Example(f"How is stew number {n} made?", f"Stir it {n} times.") for n in range(30)]
    few, many = (replace(data, harmless_test=others[:n]) for n in (5, 30))
    assert material(few, CODEC, 100, 3).paired and not material(many, CODEC, 100, 3).paired
    assert len(material(few, CODEC, 100, 3, "others").rows[HARMLESS]) == 5
    assert material(many, CODEC, 100, 3, "paired").paired
    with pytest.raises(RepnoiseError, match="--harmless paired"):
        material(data, CODEC, 100, 3, "others")


def test_readers_are_trained_on_nothing_that_is_measured(pairs_file):
    data = load_data(str(pairs_file))
    found = material(data, CODEC, 100, 3)
    trained = {tuple(row["input_ids"]) for row in found.attacker}
    measured = {tuple(row["input_ids"]) for group in found.harmful for row in found.rows[group]}
    calibrating = {tuple(CODEC.row(*question)["input_ids"]) for question in found.calibration}
    assert trained and measured and calibrating
    assert trained.isdisjoint(measured | calibrating) and measured.isdisjoint(calibrating)


def test_data_without_held_out_pairs_is_refused_in_one_sentence(pairs_file):
    data = replace(load_data(str(pairs_file)), held_out={"covered": [], "uncovered": []})
    with pytest.raises(RepnoiseError, match="no held-out harmful completions"):
        material(data, CODEC, 100, 3)


@pytest.mark.slow
def test_the_sandbox_is_analysed_whole(tmp_path):
    config = AnalyzeConfig(seeds=2, reader_steps=50)
    run = analyze(config, tmp_path / "run")
    answers = json.loads((run.path / "answers.json").read_text())["sandbox"]
    assert {one["entropy"] for one in answers} == {5.0}
    assert all(one["bits"][-1]["mean"] > 4.9 for one in answers)  # Without a defence, every answer is there.
