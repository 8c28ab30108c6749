"""Scores, tables and figures of variants of trained cells."""

import pytest

from fabricated_results import small_config, small_results
from neuropeft import layout
from neuropeft.contenders import score_spec, scored_together
from neuropeft.evaluate.score import score
from neuropeft.files import read_tsv, write_tsv
from neuropeft.publish.variant_figures import draw_interpolation, draw_robustness
from neuropeft.publish.variant_scores import read_varied, variant_records
from neuropeft.variants import variants


@pytest.fixture(scope="module")
def scored_variants(tmp_path_factory, shared):
    """Fabricated results, and what variants of two methods would have predicted."""
    results = small_results(tmp_path_factory.mktemp("fabricated") / "results", shared)
    config = small_config(analyses={"interpolation": [0, 1], "robustness": {"noise": [0.1]}})
    for analysis, names in (("interpolation", ["0", "1"]), ("robustness", ["noise-0.1"])):
        for cohort in ("SimA", "SimB"):
            plain = read_tsv(results / f"predictions/age/vit_b/mae/lora/{cohort}.tsv")
            rows = [
                {"method": name, **row, "score": float(row["score"]) + (0 if name == "1" else 5)}
                for name in names
                for row in plain
            ]
            names_of = {"task": "age", "backbone": "vit_b", "pretraining": "mae", "method": "lora"}
            path = layout.VARIED.at(results, analysis=analysis, **names_of, cohort=cohort)
            write_tsv(path, rows, list(rows[0]))
        for scored, some in scored_together(variants(config, analysis)).items():
            if scored == f"{analysis}/age/vit_b/mae/lora":
                places = (place.at(results, scored=scored) for place in (layout.SCORES, layout.SCORE_DRAWS))
                score(score_spec(config, some), results, *places)
    return config, results


def test_variants_are_compared_with_the_method_itself(scored_variants):
    config, results = scored_variants
    rows = {
        (row["variant"], row["cohort"]): row
        for analysis in ("interpolation", "robustness")
        for row in variant_records(read_varied(config, results, analysis))
        if row["n"] is not None and row["metric"] == "mae"
    }
    assert rows.keys() == {(name, cohort) for name in ("0", "1", "noise-0.1") for cohort in ("SimA", "SimB")}
    for cohort in ("SimA", "SimB"):
        itself, changed = rows["1", cohort], rows["noise-0.1", cohort]
        assert itself["mean"] == itself["base_mean"], "its predictions are those that are stored"
        assert "p" not in itself, "a method is not compared with itself"
        assert changed["difference"] == pytest.approx(changed["mean"] - changed["base_mean"])
        assert changed["difference_ci_low"] < changed["difference"] < changed["difference_ci_high"]
        assert changed["p"] <= changed["p_holm"]


def test_figures_of_variants_name_what_they_show(scored_variants):
    config, results = scored_variants
    paths = draw_interpolation(config, read_varied(config, results, "interpolation"))
    assert [axis.get_ylabel() for axis in paths.axes] == ["MAE (years) on SimB (simulated), zero-shot"]
    assert "head stays the fine-tuned one" in paths.legends[0].get_title().get_text()
    curves = draw_robustness(config, read_varied(config, results, "robustness"))
    assert [axis.get_title(loc="left") for axis in curves.axes] == [
        "age on SimA (simulated), n = 17",
        "age on SimB (simulated), zero-shot, n = 30",
    ]
    assert curves.axes[0].lines[0].get_xdata().tolist() == [0, 0.1]
