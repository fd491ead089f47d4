"""What a run of any method leaves: true without gradients and with them, loadable, and open to every command."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from spice_select.analysis.given import information_of, scaling_of
from spice_select.analysis.record import MethodRecord, PassRecord, SelectionRecord
from spice_select.analysis_of import analyse_folder
from spice_select.errors import StoreError
from spice_select.export.tables import export_rows
from spice_select.pages import open_run, report_runs
from spice_select.results import RunResult
from tests.choices import DPP, IFD, RANDOM, Made, made_pool

MEASURED = ("gain", "base", "epsilon", "conflict")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def bare(folder: Path) -> tuple[Made, RunResult]:
    """A run of a method that measured no gradients."""
    made = made_pool(folder, "bare")
    return made, made.deliver(IFD, gradients=False)


@pytest.fixture(scope="module")
def measured(folder: Path) -> tuple[Made, RunResult]:
    """A run of a method on gradients."""
    made = made_pool(folder, "measured", hinge=0.2)
    return made, made.deliver(DPP, gradients=True)


@pytest.fixture(scope="module")
def spice(folder: Path) -> tuple[Made, RunResult]:
    made = made_pool(folder, "spice")
    return made, made.deliver_spice()


def words(page: Path) -> str:
    """What a page says outside its scripts, style and drawings."""
    text = re.sub(r"<(script|style|svg)[^>]*>.*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r" ([.,])", r"\1", re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text))))


def test_the_record_without_gradients(bare: tuple[Made, RunResult]) -> None:
    made, result = bare
    record = SelectionRecord.read(made.folder.record)
    assert record == result.record
    assert (record.information, record.objective, record.certificate, record.loop) == (None, None, None, "")
    assert record.method == IFD and record.label == "ifd" and not record.maximised and not record.prefixes
    assert record.summary.norm_median is None and record.summary.opposing is None
    assert record.summary.first_gain is None and record.summary.activity is None
    assert (record.n, record.k, record.usable) == (60, 12, int(made.pool.encoded.usable.sum()))
    assert "A note of the method." in record.notes
    assert record.model is not None and record.fingerprints.weights == "w" * 64
    assert record.model.coverage is None and record.fingerprints.sketch is None


def test_the_record_with_gradients(measured: tuple[Made, RunResult]) -> None:
    made, result = measured
    record = SelectionRecord.read(made.folder.record)
    store = made.store().store
    assert store is not None and record == result.record and record.objective is not None
    factors, alpha = scaling_of(store, "sqrt_tokens", "auto")
    assert record.objective.alpha == pytest.approx(alpha)
    assert (record.objective.hinge, record.objective.conflict_weight) == (0.2, 0.0)
    picks = pq.read_table(made.folder.trace).column("index").to_numpy()
    assert record.information == pytest.approx(information_of(store, picks, alpha=alpha, factors=factors))
    assert record.certificate is not None and 0 < record.certificate.value < 1
    assert record.certificate.guarantee is None and not record.maximised
    assert record.summary.activity is not None and record.summary.opposing is not None
    assert not record.summary.first_gain_outlier and record.summary.advice is None


def test_the_folder_loads_as_the_chosen_rows(
    bare: tuple[Made, RunResult], measured: tuple[Made, RunResult], tmp_path: Path
) -> None:
    for made, _ in (bare, measured):
        loaded = datasets.load_dataset(str(made.folder.path), split="train", cache_dir=str(tmp_path))
        scores = made.scores()
        wanted = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:12]
        assert list(loaded["spice_index"]) == wanted.tolist()
        assert list(loaded["spice_score"]) == scores[wanted].tolist()
        known = made.folder.path.name == "measured"
        for name in MEASURED:
            assert all((value is not None) == known for value in loaded[f"spice_{name}"])
        trace = pq.read_table(made.folder.trace)
        assert trace.column("gain").type == "double" and trace.column("score").to_pylist() == scores[wanted].tolist()
        assert trace.column("gain").null_count == (0 if known else 12)


def test_the_pool_file_has_every_row(bare: tuple[Made, RunResult]) -> None:
    made, _ = bare
    table = pq.read_table(made.folder.path / "pool.parquet")
    assert table.column("index").to_pylist() == list(range(60))
    assert table.column("tokens").to_pylist() == made.pool.encoded.response_tokens.tolist()
    assert set(table.column("source").to_pylist()) == {"first", "second"}
    assert table.column("score").null_count == 2
    assert table.column("usable").to_pylist() == made.pool.encoded.usable.tolist()


def test_the_card_says_what_chose_and_by_what(
    bare: tuple[Made, RunResult], measured: tuple[Made, RunResult], spice: tuple[Made, RunResult]
) -> None:
    card = bare[0].folder.card.read_text()
    assert "12 of 60 rows, chosen by the method `ifd` ([arXiv 2308.12032](https://arxiv.org/abs/2308.12032))." in card
    assert "What it maximises: how little the prompt helps." in card
    assert "| `method.variant` | `cherry` |" in card and "| `method.most` | `none` |" in card
    assert "| losses | 120 | 0 | 4,000 | 0 |" in card
    assert "`spice_score`: what the row was chosen by: IFD (ratio of losses)." in card
    assert "null, as no gradients were measured" in card
    assert "every prefix" not in card and "nats" not in card and "penalty" not in card
    assert "SPICE" not in card and "2601.23155" not in card
    assert yaml.safe_load(card.split("---")[1])["tags"][-1] == "arxiv:2308.12032"
    card = measured[0].folder.card.read_text()
    assert "chosen by the method `dpp`" in card and "SPICE" not in card
    assert "measured afterwards, and no part of the choice" in card
    assert "| information of the picks |" in card and "conflict_weight" not in card
    card = spice[0].folder.card.read_text()
    assert "chosen by SPICE: greedy maximisation" in card and "@inproceedings{chang2026spice" in card
    assert "what was compared: gain less penalty, in nats." in card
    assert "so that every prefix is the selection of a smaller budget" in card


def test_the_lines_for_the_terminal(bare: tuple[Made, RunResult], measured: tuple[Made, RunResult]) -> None:
    lines = bare[1].describe()
    assert lines[0].startswith("Chose 12 of 60 rows by ifd (")
    assert "Score of a row (spice_score): IFD (ratio of losses)." in lines
    assert "Passes of the model: losses: 120 examples forward (4,000 tokens)." in lines
    assert not any(word in line for line in lines for word in ("nats", "oppose", "Gradient norm", "nan", "None"))
    lines = measured[1].describe()
    assert re.fullmatch(r"Information of the picks: [\d.]+ nats\.", lines[1])
    assert "gradients: 60 examples forward (2,000 tokens), 60 examples backward (2,000 tokens)." in lines[3]
    assert any(line.startswith("The picks hold at least") for line in lines)
    assert PassRecord(what="tokens").describe() == "no pass of the model"


def test_the_page_without_gradients(bare: tuple[Made, RunResult]) -> None:
    made, _ = bare
    page = made.folder.report
    said = words(page)
    assert "ifd selection: bare" in said
    assert "usable rows were chosen by ifd; the budget is filled. Score of a row: IFD (ratio of losses)." in said
    assert "is not known, as no gradients were measured" in said
    assert "The highest scores left out" in said and "Most in conflict" not in said
    assert "method.variant cherry" in said and "Passes of the model" in said
    assert "120 examples forward (4,000 tokens)" in said
    assert "(arXiv 2308.12032)" in said
    for absent in ("SPICE", "Gain", "Norm ", "penalty", "Map of the gradients", " nan ", "None"):
        assert absent not in said, absent
    drawings = re.findall(r'aria-label="([^"]+)"', page.read_text())
    assert {"Score of every pick", "Response length of picks and pool", "Score of a row of picks and pool"} <= set(
        drawings
    )


def test_the_page_with_gradients(measured: tuple[Made, RunResult]) -> None:
    made, result = measured
    said = words(made.folder.report)
    assert "dpp selection: measured" in said and "SPICE" not in said
    assert (
        f"The picks hold {result.record.information:,.4g} nats of Fisher information, which was measured and not"
        in said
    )
    assert "exact, measured and not maximised" in said
    assert "the method did not choose by it" in said
    assert "Map of the gradients" in said and "penalty" not in said
    assert '"objective"' in made.folder.report.read_text()


@pytest.mark.parametrize("which", ["bare", "measured"])
def test_the_page_made_anew_is_the_page(which: str, request: pytest.FixtureRequest) -> None:
    made, _ = request.getfixturevalue(which)
    at_once = words(made.folder.report)
    report_runs([made.folder.path])
    again = words(made.folder.report)
    ends = "Settings and provenance"
    assert at_once[: at_once.index(ends)] == again[: again.index(ends)]


def test_runs_of_several_methods_side_by_side(
    bare: tuple[Made, RunResult], measured: tuple[Made, RunResult], spice: tuple[Made, RunResult], tmp_path: Path
) -> None:
    runs = [made.folder.path for made, _ in (bare, measured, spice)]
    written = report_runs(runs, output=tmp_path / "beside.html", markdown="-")
    said = words(tmp_path / "beside.html")
    assert "Selections side by side" in said and "Without gradients there is nothing to draw of bare." in said
    assert "methods: ifd (arXiv 2308.12032), dpp (arXiv 2402.02318), SPICE (arXiv 2601.23155)" in said
    assert written.markdown is not None
    assert "| Method | ifd | dpp | spice |" in written.markdown
    assert re.search(r"\| Information, nats \|   \| [\d.]+ \| [\d.]+ \|", written.markdown)
    alone = report_runs([bare[0].folder.path], markdown="-").markdown
    assert alone is not None and "SPICE" not in alone and "Information" not in alone
    assert "Selected with spice-select" in alone and "method: ifd (arXiv 2308.12032)." in alone
    # Two runs without gradients have no curves at all.
    other = tmp_path / "other"
    shutil.copytree(bare[0].folder.path, other)
    report_runs([bare[0].folder.path, other], output=tmp_path / "bare.html")
    assert "How the runs went" not in words(tmp_path / "bare.html")
    assert "ifd selections side by side" in words(tmp_path / "bare.html")


def test_analysis_says_what_it_leaves_out(bare: tuple[Made, RunResult], measured: tuple[Made, RunResult]) -> None:
    found = analyse_folder(bare[0].folder.path)
    assert found.subject.information is None and found.theory is None and found.trace is None
    assert found.left_out == ("Certificate, theory, diversity, length and cluster: ifd measured no gradients.",)
    assert [one.by for one in found.coverage] == ["source"]
    lines = "\n".join(found.describe())
    assert "method       ifd" in lines and "objective    its own\n" in lines and "penalty" not in lines
    found = analyse_folder(measured[0].folder.path, samples=20, against=[bare[0].folder.path])
    assert found.theory is None and found.pool_theory is not None and found.trace is not None
    assert found.certificate == measured[1].record.certificate
    assert found.diversity is not None and found.overlap is not None
    assert "these were chosen by another objective" in found.left_out[0]
    assert "its own; information is log det" in "\n".join(found.describe())
    assert set(found.to_pandas()) >= {"trace", "diversity"}


def test_export_and_reading_again(bare: tuple[Made, RunResult], tmp_path: Path) -> None:
    made, _ = bare
    assert export_rows(made.folder.data, tmp_path / "rows.jsonl") == 12
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert first["spice_gain"] is None and isinstance(first["spice_score"], float)
    content = open_run(made.folder)
    assert content.trace.gains is None and content.trace.scores is not None and content.lengths is not None
    (copy := tmp_path / "copy").mkdir()
    for name in ("trace.parquet", "config.yaml"):
        shutil.copy(made.folder.path / name, copy)
    # A record of before there were checksums.
    record = json.loads(made.folder.record.read_text())
    (copy / "selection.json").write_text(
        json.dumps({k: v for k, v in record.items() if k not in ("files", "checksum")})
    )
    (copy / "pool.parquet").write_bytes(b"no parquet")
    assert any("cannot be read" in remark for remark in open_run(type(made.folder)(copy)).remarks)
    (copy / "trace.parquet").unlink()
    with pytest.raises(StoreError, match="no trace of a run"):
        open_run(type(made.folder)(copy))


def test_a_method_without_a_model_names_none(folder: Path) -> None:
    made = made_pool(folder, "drawn")
    result = made.deliver(RANDOM, gradients=False, scores=np.random.default_rng(0).random(60))
    assert result.record.model is None
    assert "no model was run" in words(made.folder.report)
    card = made.folder.card.read_text()
    assert "| proxy |" not in card and "| `tokenizer` |" in card and "chosen by the method `random`. What" in card
    assert not any(line.startswith("Passes") for line in result.describe())


def test_another_selection_takes_the_pool_file_away(folder: Path) -> None:
    made = made_pool(folder, "twice")
    made.deliver(RANDOM, gradients=False)
    assert (made.folder.path / "pool.parquet").is_file()
    result = made.deliver_spice()
    assert not (made.folder.path / "pool.parquet").exists()
    assert result.record.maximised and result.record.label == "SPICE" and result.record.prefixes
    said = words(made.folder.report)
    assert "SPICE selection: twice" in said and "rows were chosen, and they hold" in said
    assert "after SPICE (ICLR 2026, arXiv 2601.23155)" in said


def test_records_of_before_there_were_methods_still_open(spice: tuple[Made, RunResult], tmp_path: Path) -> None:
    made, result = spice
    old = tmp_path / "old"
    shutil.copytree(made.folder.path, old)
    content = json.loads((old / "selection.json").read_text())
    # Records of that time had no checksum either.
    del content["method"], content["checksum"]
    (old / "selection.json").write_text(json.dumps(content))
    record = open_run(type(made.folder)(old)).record
    assert record == result.record.model_copy(update={"method": None})
    assert record.maximised and record.label == "SPICE" and record.prefixes
    report_runs([old])
    assert "SPICE selection: old" in words(old / "report.html")


def test_constant_and_endless_scores(folder: Path) -> None:
    made = made_pool(folder, "constant")
    made.deliver(RANDOM, gradients=False, scores=np.ones(60))
    page = made.folder.report.read_text()
    assert "Score of every pick" not in page and "Score of a row of picks and pool" in page
    scores = np.linspace(0, 1, 60)
    scores[3] = np.inf
    scores[4] = 1e308
    scores[5] = -1e308
    made.deliver(RANDOM, gradients=False, scores=scores)
    assert "Score of every pick" in made.folder.report.read_text()


def test_hostile_names_stay_words(folder: Path) -> None:
    made = made_pool(folder, "hostile")
    evil = "</script><script>document.title='owned'</script> | {{ 7 * 191 }} $x$"
    method = MethodRecord(name=f"mine{evil}", settings={evil: evil}, summary=evil, source=evil, score=evil)
    made.deliver(method, gradients=False)
    page, card = made.folder.report.read_text(), made.folder.card.read_text()
    assert "<script>document" not in page and "1337" not in page
    assert "<script>document" not in re.sub(r"`[^`]*`", "", card)
    assert yaml.safe_load(card.split("---\n")[1])["pretty_name"] == "hostile"
