"""Parts of tables by themselves: formats, names of columns, ages and notes."""

import json

import pytest

from fabricated_results import contender, small_config
from neuropeft.config import Config
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.files import write_tsv
from neuropeft.publish import score_tables
from neuropeft.publish.cohort_table import cohort_records, cohort_sheet
from neuropeft.publish.sheet import Sheet, escape_latex, latex, markdown
from neuropeft.subsets import fraction


def test_latex_is_escaped():
    assert escape_latex("a_b & 5 % [#]") == r"a\_b \& 5 \% [\#]"
    assert escape_latex("[x]") == "{[x]}"


def test_sheet_header_lines_and_breaks():
    sheet = Sheet("table9", "c", ("a", "ViT-B\nLoRA"), (("1", "2"), ("3", "x|y")), breaks=frozenset({1}))
    assert "| a | ViT-B LoRA |" in markdown(sheet)
    assert r"x\|y" in markdown(sheet)
    assert " & ViT-B \\\\\na & LoRA \\\\\n\\midrule\n1 & 2 \\\\\n\\midrule\n3 & x\\textbar{}y" in latex(sheet)


@pytest.mark.parametrize(("apart", "said"), [(1e-3, "seeds differ less"), (1.0, "seeds differ not less")])
def test_tables_say_whether_seeds_differ_by_less_than_methods(apart, said):
    config = small_config()
    task = next(iter(config.tasks))
    methods = [name for name, one in config.methods.items() if not one.shuffle_labels][:3]
    scores = []
    for place, method in enumerate(methods):
        start = "none" if method == "scratch" else "mae"
        one = contender(config, task, next(iter(config.backbones)), start, method, fraction(100))
        values = {0: 0.1 * place, 1: 0.1 * place + apart}
        metric = primary_metric(config.tasks[task]).name
        scores.append(Score(one, config.tasks[task].train, False, metric, True, values))
    (note,) = score_tables._seed_notes(config, scores)
    assert said in note


def test_columns_tell_pretrainings_apart_where_there_are_several():
    raw = json.loads(small_config().model_dump_json())
    raw["pretraining"]["other"] = raw["pretraining"]["mae"]
    raw["grid"][0]["pretraining"] = ["mae", "other"]

    def label(config, *start):
        return contender(config, "ad", "vit_b", *start, fraction(100)).label

    assert label(Config.model_validate(raw), "other", "lora") == "ViT-B LoRA from other"
    assert label(Config.model_validate(raw), "none", "scratch") == "ViT-B Scratch"
    assert label(small_config(), "mae", "lora") == "ViT-B LoRA"


@pytest.mark.parametrize(
    ("oldest", "written", "shown"), [("89.9", "89.9", "60.0-89.9"), ("90", "90+", "60.0-90+")]
)
def test_table2_tells_no_age_of_90_or_more(tmp_path, oldest, written, shown):
    scans = [
        {"scan_id": f"sub-{subject}", "subject": subject, "session": None, "age": age, "sex": "F"}
        for subject, age in (("a", "60"), ("b", oldest))
    ]
    for name in ("store/scans.tsv", "subjects.tsv"):
        write_tsv(tmp_path / "cohorts/ADNI" / name, scans, tuple(scans[0]))
    records = cohort_records(small_config(), tmp_path)
    assert str(records[0]["age_max"]) == written
    assert cohort_sheet(records).rows[0][6] == shown
