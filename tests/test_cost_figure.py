"""Costs of every method: figure 4, of which nothing cheaper beats some, and the table of means."""

import pytest

from fabricated_results import fabricate, small_config, small_results
from neuropeft.cells.costs import read_costs
from neuropeft.evaluate.scores import read_scores
from neuropeft.publish.cost_figure import COSTS, draw_costs, pareto_front
from neuropeft.publish.cost_table import accuracy, cost_sheet, estimated_seconds
from neuropeft.publish.records import cost_records


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fabricated")
    fabricate(small_config(), folder)
    return folder


@pytest.mark.parametrize(
    ("higher", "front"), [(True, [(1, 2), (2, 5)]), (False, [(1, 2), (3, 1)])], ids=["higher", "lower"]
)
def test_the_pareto_front_holds_what_nothing_cheaper_beats(higher, front):
    points = [(3, 4), (2, 5), (1, 2), (2, 3), (3, 1), (4, 1)]
    assert list(pareto_front(points, higher)) == front


def test_a_panel_for_each_cost_shows_every_method_with_a_score(tmp_path, shared):
    config, results = small_config(), small_results(tmp_path / "results", shared)
    figure = draw_costs(config, read_scores(config, results), read_costs(config, results))
    (first,) = (axis for axis in figure.axes if axis.get_title(loc="left").startswith("ViT-B: ad on ADNI"))
    row = [axis for axis in figure.axes if axis.get_subplotspec().rowspan.start == 0]
    assert [axis.get_xlabel().split(" (")[0] for axis in row] == [cost.label.split(" (")[0] for cost in COSTS]
    marks = [line for line in first.lines if line.get_linestyle() == "None"]
    assert len(marks) == 6


def spent(results, **changes):
    """The costs of all cells, as a GPU would have told them: twice as long as was likely, for LoRA."""
    gpu = {"device": "NVIDIA H100 80GB HBM3", "flops_per_sample": 40e9, "most_steps": 1000, "stored": 77}
    told = gpu | {"mfu": 0.08, "samples_per_second": 1978.0, "energy_joule": 2500.0} | changes
    config = small_config()
    found = {}
    for cell, cost in read_costs(config, results).items():
        found[cell] = cost and cost | told
        if cost:
            likely = estimated_seconds(config, cell, found[cell])
            found[cell]["train_seconds"] = (likely or 30) * (2 if cell.method == "lora" else 1)
    return found


def test_the_sheet_of_costs_has_a_line_for_each_contender(results):
    sheet = cost_sheet(small_config(), spent(results))
    lines = {(row[0], row[1]): row[2:] for row in sheet.rows}
    assert len(lines) == len(sheet.rows) == 5 + 5 + 1 + 4, "at all training subjects only"
    assert lines["ad", "ViT-B LoRA"] == [
        "1,181,186", "77", "4.72", "3.22", "2,100", "16.5", "1,978", "40", "8", "2.5", "2/3",
    ]  # fmt: skip
    on_cpu = cost_sheet(small_config(), read_costs(small_config(), results)).notes
    assert "Not known of any cell here, so not shown: Stored, Scans, GFLOP, MFU, Energy." in on_cpu
    assert on_cpu[-1].startswith("Estimated beside measured training time: on cpu n/a")


def test_costs_tell_by_how_much_the_estimate_was_off(results):
    config, costs = small_config(), spent(results)
    vit = [cell for cell, cost in costs.items() if cost and cell.backbone == "vit_b"]
    likely = pytest.approx(1000 * (0.005 + 16 * 40e9 / (0.2 * 989e12)))
    assert all(estimated_seconds(config, cell, costs[cell]) == likely for cell in vit)
    assert accuracy(config, {cell: costs[cell] for cell in vit if cell.method == "lora"}).endswith(
        "2.0 times too little."
    )
    some = {cell: cost for cell, cost in costs.items() if cell in vit and cell.method != "lora"}
    faster = {cell: cost | {"train_seconds": cost["train_seconds"] / 3} for cell, cost in some.items()}
    assert accuracy(config, faster).endswith("3.0 times too much.")
    records = cost_records(config, costs)
    assert {row["estimated_seconds"] is None for row in records if row["status"] == "done"} == {False}
    for unknown in ({"device": "cpu"}, {"flops_per_sample": None}):
        assert {row.get("estimated_seconds") for row in cost_records(config, spent(results, **unknown))} == {
            None
        }
