"""What is said of features: over how many directions they spread, and what can be read from them."""

import math

import numpy as np
import pytest
import torch

from neuropeft.train.diagnose import FEWEST, participation_ratio, probe


@pytest.mark.parametrize(
    ("deviations", "ratio"),
    [([1, 0, 0, 0], 1), ([1, 1, 1, 1], 4), ([2, 1, 1, 0], 36 / 18), ([9, 9, 0, 0], 2)],
)
def test_the_participation_ratio_of_known_covariances(deviations: list[float], ratio: float) -> None:
    drawn = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions, _ = torch.linalg.qr(drawn - drawn.mean(dim=0))  # centred and uncorrelated, of equal size
    turned, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    features = 100 + directions * torch.tensor(deviations, dtype=torch.float64) @ turned
    assert participation_ratio(features) == pytest.approx(ratio)


def test_features_that_are_all_alike_spread_over_no_direction() -> None:
    assert participation_ratio(torch.ones(5, 3)) == 0


def test_a_probe_finds_what_is_planted_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 30))
    planted = 50 + 8 * features[:, 3] + rng.normal(size=200)
    found = probe(features, {"planted": planted, "random": rng.normal(size=200), "sex": features[:, 0] > 0})
    assert found["probe_planted"] > 0.95
    assert abs(found["probe_random"]) < 0.25
    assert found["probe_sex"] > 0.6


def test_a_probe_leaves_out_what_is_unknown() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5))
    some = features[:, 0].copy()
    some[::2] = math.nan
    few = features[:, 0].copy()
    few[FEWEST - 1 :] = math.nan
    found = probe(features, {"some": some, "few": few, "constant": np.ones(60), "none": [math.nan] * 60})
    assert found.keys() == {"probe_some"}
    assert found["probe_some"] > 0.9
