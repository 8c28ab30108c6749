"""Figure 4 shows every method at its costs, and which of them nothing cheaper beats."""

import pytest

from fabricated_results import small_config, small_results
from neuropeft.evaluate.costs import read_costs
from neuropeft.evaluate.scores import read_scores
from neuropeft.publish.cost_figure import COSTS, draw_costs, pareto_front


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
