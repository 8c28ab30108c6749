"""The report: one file that loads nothing, whose words follow from intervals; on fabricated results."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from fabricated_results import MISSING_CELL, contender, small_config, small_results
from neuropeft import layout
from neuropeft.config import Config
from neuropeft.evaluate.against_controls import against_controls
from neuropeft.evaluate.compare import BETTER, WITHIN_NOISE, WORSE
from neuropeft.evaluate.confounds import COLUMNS as CONFOUND_COLUMNS
from neuropeft.evaluate.scores import Score, read_scores
from neuropeft.files import read_tsv, write_tsv
from neuropeft.publish.flow_table import flow_records
from neuropeft.publish.formats import write_sheet
from neuropeft.publish.html import sort_key
from neuropeft.publish.report.collapse import finds_nothing, has_collapsed
from neuropeft.publish.report.gaps import gap
from neuropeft.publish.report.page import write_report
from neuropeft.publish.report.provenance import commit_of
from neuropeft.publish.report.regimes import Regime, choose, regimes
from neuropeft.publish.sheet import Sheet
from neuropeft.records import file_digest
from neuropeft.subsets import WHOLE
from neuropeft.tasks.base import Run

SPLIT = {"task": "ad", "split": "seed-0"}
COLLAPSED = ("ad", "vit_b", "mae", "full")


class Page(HTMLParser):
    """The text of a page, its tables by caption as rows of cells, and all that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.refers: list[str] = []
        self.within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.refers += [
            value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")
        ]
        if tag not in ("meta", "img", "br", "link"):
            self.within.append(tag)
        if tag == "tr" and self.tables:
            list(self.tables.values())[-1].append([])
        elif tag in ("td", "th"):
            list(self.tables.values())[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self.within):
            return
        self.words.append(data)
        if self.within[-1:] == ["caption"]:
            self.tables[data] = []
        elif self.within[-1:] in (["td"], ["th"]):
            list(self.tables.values())[-1][-1][-1] += data

    def table(self, begins: str) -> list[dict[str, str]]:
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(begins))
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, shared):
    """Fabricated results in which full fine-tuning of ViT-B has collapsed for seed 0, with one split."""
    folder = small_results(tmp_path_factory.mktemp("fabricated") / "results", shared)
    path = layout.PREDICTIONS.at(
        folder,
        **dict(zip(("task", "backbone", "pretraining", "method"), COLLAPSED, strict=True)),
        cohort="ADNI",
    )
    rows = read_tsv(path)
    flat = [
        {**row, "score": "0.7"} if (row["seed"], row["subset"]) == ("0", str(WHOLE)) else row for row in rows
    ]
    write_tsv(path, flat, list(rows[0]))
    sides = [
        {"scan_id": f"ADNI00{n}_1", "subject": f"ADNI00{n}", "side": side} for n, side in enumerate(SIDES)
    ]
    write_tsv(layout.SPLIT.at(folder, **SPLIT), sides, ("scan_id", "subject", "side"))
    row = {"confounder": "site", "levels": 2, "n": 50, "auc": 0.9, "ci_low": 0.8, "ci_high": 1.0}
    confounds = [{**row, "source": source} for source in ("labels", "voxels")]
    write_tsv(layout.CONFOUNDS.at(folder, task="age"), confounds, CONFOUND_COLUMNS)
    write_sheet(Sheet("ranks", "Shown <here>.", ("A", "B"), [["x", "1"]]), layout.TABLES.at(folder))
    layout.FIGURES.at(folder).mkdir()
    layout.FIGURE.at(folder, name="figure1.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\4\0\0\0\1\0")
    return folder


SIDES = ("train", "train", "val", "test")


@pytest.fixture(scope="module")
def page(results, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("report") / "report.html"
    shown = [layout.TABLE.at(results, name="ranks.html")], [layout.FIGURE.at(results, name="figure1.png")]
    shown[1].append(layout.FIGURE.at(results, name="another_one.png"))  # that no caption is known of
    shown[1][1].write_bytes(shown[1][0].read_bytes())
    write_report(small_config(), results, *shown, out)
    return Page(out.read_text())


def test_the_report_loads_nothing(page: Page):
    assert page.refers
    assert [one for one in page.refers if not one.startswith(("data:", "#"))] == []


def test_the_report_says_what_is_simulated_and_what_is_missing(page: Page):
    assert "Simulated data: SimA, SimB" in page.text
    assert f"Scores are missing of ViT-B LoRA for {MISSING_CELL.task} at 100 %" in page.text
    assert "age on SimA (simulated)" in page.text


def test_tables_and_figures_of_the_run_are_in_the_report(page: Page):
    assert page.table("Ranks: Shown <here>.") == [{"A": "x", "B": "1"}]
    assert "Performance against trained parameters." in page.text
    assert sum(one.startswith("data:image/png") for one in page.refers) == 2


def test_scores_stand_beside_published_figures_and_the_reference(page: Page, results):
    (score,) = (
        one
        for one in read_scores(small_config(), results)
        if one.contender.group == ("ad", "vit_b", "mae", "attention", WHOLE)
        and (one.cohort, one.metric) == ("ADNI", "auc")
    )
    rows = page.table("ad on ADNI: AUC")
    (shown,) = (
        row
        for row in rows
        if (row["Contender"], row["Training data"]) == ("ViT-B Attention fine-tune", "100 %")
    )
    assert shown["AUC"] == f"{score.mean:.3f} ({score.sd:.3f})"
    assert shown["Published"] == "0.861 (0.009)"
    assert float(shown["Ours - published"]) == pytest.approx(score.mean - 0.8613, abs=6e-4)
    assert shown["Trained parameters"] == "28,349,954"
    (reference,) = (
        row for row in rows if (row["Contender"], row["Training data"]) == ("ViT-B Full fine-tune", "100 %")
    )
    assert reference["Beside the reference"] == "reference"


def test_a_method_stands_beside_the_best_of_its_controls(page: Page, results):
    stands = {
        one.score.contender: f"{one.verdict}: {one.name}"
        for one in against_controls(read_scores(small_config(), results, with_draws=True))
        if (one.score.contender.task, one.score.cohort, one.score.metric) == ("age", "SimA", "mae")
    }
    shown = {
        (row["Contender"], row["Training data"]): row["Beside the best control"]
        for row in page.table("age on SimA (simulated): MAE")
    }
    assert {shown[one.label, one.subset.label] for one in stands} == set(stands.values())
    assert any(text.startswith("below") for text in stands.values())
    assert shown["Control: predict the mean", "100 %"] == "-"


def test_what_scores_may_come_from_is_said_on_the_first_page(page: Page):
    assert "Warning: age goes with site (predicted from the labels with an AUC of 0.90" in page.text


def test_a_run_that_says_the_same_of_everybody_is_named_with_what_to_use(page: Page):
    assert "ViT-B Full fine-tune has collapsed for ad at 100 %: in 1 of 3 runs" in page.text
    advice = page.text.split("has collapsed for ad")[1].split("Use one of them")[0]
    assert "Attention" in advice
    assert page.text.count("has collapsed") == 1


def test_provenance_names_splits_weights_and_the_recipes_differences(page: Page, results):
    (split,) = page.table("Splits")
    assert split["SHA-256"] == file_digest(layout.SPLIT.at(results, **SPLIT))
    assert split["Subjects"] == "2 train, 1 val, 1 test"
    differs = {row["Setting"]: row["Here"] for row in page.table("Where this run differs")}
    assert differs["preprocessing.size"] == "64 voxels"
    assert "preprocessing:" in page.text, "the whole configuration"


def test_the_commit_is_that_of_neuropeft_and_never_of_a_project_that_installed_it(tmp_path):
    module, installed = tmp_path / "module.py", tmp_path / ".venv" / "module.py"
    installed.parent.mkdir()
    for path, text in ((module, ""), (installed, ""), (tmp_path / ".gitignore", ".venv\n")):
        path.write_text(text)
    assert commit_of(module) == "", "no repository"
    git = ("git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b.org")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "First")):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch("[0-9a-f]{12}", commit_of(module))
    module.write_text("changed = True\n")
    assert commit_of(module).endswith("-dirty")
    assert commit_of(installed) == "", "ignored by the project around it"


def test_licences_of_imported_weights_are_shown(results, tmp_path):
    raw = small_config().model_dump(mode="json")
    given = {"weights": "/somewhere/vit.safetensors", "licence": "CC BY 4.0", "citation": "Somebody 2025"}
    config = Config.model_validate(raw | {"pretraining": {"mae": given}})
    folder = tmp_path / "results"
    shutil.copytree(layout.SCORES.at(results, scored="cells").parent, folder / "scores")
    encoder = layout.ENCODER.at(folder, pretraining="mae", backbone="vit_b", fold_part="")
    encoder.parent.mkdir(parents=True)
    encoder.write_bytes(b"weights")
    write_report(config, folder, [], [], tmp_path / "report.html")
    (row,) = Page((tmp_path / "report.html").read_text()).table("Weights")
    assert (row["What"], row["Licence"], row["Citation"]) == (
        "imported, vit.safetensors",
        "CC BY 4.0",
        "Somebody 2025",
    )
    assert row["SHA-256"] == file_digest(encoder)
    assert "/somewhere" not in row["What"]


# -- what is said of differences -------------------------------------------------------------------


def scored(method: str, mean: float, metric: str = "mae", spread: float = 1.0, **changes: object) -> Score:
    """A score of `age` on SimA whose draws all move together, but for some of its own."""
    config = small_config()
    group = ("age", *METHODS[method], WHOLE)
    common = np.linspace(-3, 3, 2000)
    own = spread * np.sin(np.arange(2000) * (1 + list(METHODS).index(method)))
    one = contender(config, *group)
    values = {seed: mean for seed in one.seeds}
    score = Score(
        one, "SimA", False, metric, metric != "mae", values, 50, mean - 3, mean + 3, subjects="same"
    )
    return replace(score, draws=(mean + common + own).astype(np.float32), **changes)


METHODS = {
    "mean": ("control", "none", "mean"),
    "ridge": ("control", "none", "ridge_voxels"),
    "probe": ("vit_b", "mae", "probe_concat"),
    "full": ("vit_b", "mae", "full"),
    "lora": ("vit_b", "mae", "lora"),
}
TRAINED = {("age", *METHODS["full"], WHOLE): 100, ("age", *METHODS["lora"], WHOLE): 10}


@pytest.mark.parametrize(
    ("metric", "mine", "other", "verdict"),
    [("mae", 5, 9, BETTER), ("mae", 9, 5, WORSE), ("mae", 5, 5.5, WITHIN_NOISE), ("r", 9, 5, BETTER)],
)
def test_a_gap_is_better_in_the_direction_of_its_metric(metric, mine, other, verdict):
    found = gap(scored("lora", mine, metric), scored("full", other, metric))
    assert found.verdict == verdict
    assert found.by == pytest.approx((other - mine) * (1 if metric == "mae" else -1))
    assert found.low < found.by < found.high


def test_what_was_tested_on_others_or_lacks_seeds_is_not_compared():
    assert gap(scored("lora", 5), scored("full", 9, subjects="others")) is None
    assert gap(scored("lora", 5), scored("full", 9, values={0: 9.0})) is None


def chosen(**means: float) -> tuple[str | None, str]:
    (regime,) = regimes(small_config(), [scored(name, mean) for name, mean in means.items()])
    score, why = choose(small_config(), regime, TRAINED)
    return score and score.contender.method, why


@pytest.mark.parametrize(
    ("means", "method", "because"),
    [
        ({"mean": 20, "ridge": 15, "full": 5, "lora": 5.5}, "lora", "within noise"),
        ({"mean": 20, "ridge": 15, "full": 5, "lora": 9}, "full", "Better than everything else"),
        (
            {"mean": 20, "ridge": 5.2, "full": 5, "lora": 5.1},
            "ridge_voxels",
            "No fine-tune is shown to be better",
        ),
        ({"mean": 20, "probe": 5.2, "full": 5}, "probe_concat", "No fine-tune is shown to be better"),
        ({"mean": 5.4, "ridge": 9, "full": 5, "lora": 5.1}, None, "not shown to beat guessing"),
    ],
)
def test_the_simplest_that_is_not_shown_to_be_worse_is_to_be_used(means, method, because):
    found, why = chosen(**means)
    assert found == method
    assert because in why


def test_regimes_hold_the_best_first_and_leave_out_what_is_not_there():
    missing = scored("lora", 1, values={})
    (regime,) = regimes(small_config(), [missing, *(scored(name, 9) for name in ("mean", "full"))])
    assert isinstance(regime, Regime)
    assert [one.contender.method for one in regime.methods] == ["full"]
    assert regime.guess.contender.method == "mean"


# -- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "score", "collapsed"),
    [
        ([0, 1, 0, 1], [0.2, 0.9, 0.3, 0.6], False),
        ([0, 1, 0, 1], [0.70, 0.71, 0.70, 0.71], True),
        ([50, 60, 70, 80], [52, 61, 66, 74], False),
        ([50, 60, 70, 80], [64.5, 65, 65, 65.5], True),
        ([0, 1, 2], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], False),
        ([0, 1, 2], [[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.6, 0.1, 0.3]], True),  # one class of three
        ([1, 1, 1], [0.7, 0.7, 0.7], False),  # nothing to tell apart
    ],
)
def test_predictions_without_variance_or_of_one_class_have_collapsed(y, score, collapsed):
    run = Run(tuple(map(str, y)), np.array(y, float), np.array(score, float), np.array([]))
    assert has_collapsed(run) == collapsed


@pytest.mark.parametrize(("dice", "nothing"), [([0.0, 0.005], True), ([0.0, 0.6], False)])
def test_regions_that_are_not_found_have_collapsed(dice, nothing):
    score = np.array([[value, 9.0, 0.1] for value in dice])
    assert finds_nothing(Run(("a", "b"), np.array(["a", "b"]), score, np.array([]))) == nothing


def test_the_flow_counts_scans_and_subjects_and_hides_where_they_lie(results, tmp_path):
    folder = tmp_path / "results"
    for cohort in ("ADNI", "OASIS", "SimA", "SimB"):
        shutil.copytree(layout.STORE.at(results, cohort=cohort), layout.STORE.at(folder, cohort=cohort))
    names = [row["scan_id"] for row in read_tsv(layout.STORED_SCANS.at(folder, cohort="ADNI"))]
    scans = [{"scan_id": name, "subject": name[:-2], "y": "1"} for name in names[:4]]
    write_tsv(
        layout.SCANS.at(folder, cohort="ADNI"),
        [{"scan_id": name} for name in [*names, "bad", "worse"]],
        ("scan_id",),
    )
    left_out = [
        {"scan_id": name, "path": f"/data/{name}.nii", "step": "n4", "reason": f"/data/{name}.nii is empty"}
        for name in ("bad", "worse")
    ]
    write_tsv(layout.EXCLUDED.at(folder, cohort="ADNI"), left_out, list(left_out[0]))
    write_tsv(layout.LABELS.at(folder, task="ad", cohort="ADNI"), scans, ("scan_id", "subject", "y"))
    for seed, sides in enumerate((("train", "test"), ("train", "train"))):
        rows = [{"subject": subject, "side": side} for subject, side in zip("ab", sides, strict=True)]
        write_tsv(layout.SPLIT.at(folder, task="ad", split=f"seed-{seed}"), rows, ("subject", "side"))
    row = flow_records(small_config(), folder)[0]
    assert (row["found"], row["excluded"], row["ready"]) == (len(names) + 2, 2, len(names))
    assert row["reasons"] == "2 x n4: the scan is empty"
    assert (row["labelled"], row["subjects"]) == (4, len({name[:-2] for name in names[:4]}))
    assert (row["train"], row["val"], row["test"]) == ("1 to 2", 0, "0 to 1")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("840,864", "840864"),
        ("9.11 (0.03) 1/2", "9.11"),
        ("+0.15 (-0.6 to 1)", "0.15"),
        ("n/a", ""),
        ("-", ""),
    ],
)
def test_cells_sort_by_the_number_that_they_begin_with(text, key):
    assert sort_key(text) == key
