"""The check of a finished demo fails if planted effects are missed or shuffled labels teach something."""

import csv
import runpy
import sys
from pathlib import Path

import pytest

# The lower ends of the intervals that hold by a narrow margin: only these are in-domain and of all the data.
SOUND = {
    ("ad", "auc", "ridge_voxels"): 0.51,
    ("ad", "auc", "shuffled"): 0.5,
    ("ad", "auc", "scratch"): 0.4,
    ("ad", "auc", "lora"): 0.51,
    ("age", "r", "ridge_voxels"): 0.01,
    ("age", "r", "shuffled"): 0.0,
    ("age", "r", "scratch"): -0.3,  # too few scans for a transformer
    ("age", "r", "lora"): -0.3,
}
COLUMNS = ("task", "method", "cohort", "fraction", "metric", "ci_low")


def exit_status(folder: Path, **low: float) -> int:
    """Return the exit status where the interval of a `task_method` begins elsewhere than in SOUND."""
    scores = folder / "scores.csv"
    with scores.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for (task, metric, method), sound in SOUND.items():
            value = low.get(f"{task}_{method}", sound)
            writer.writerow((task, method, "SimA", "100", metric, value))
            # What is not looked at says the opposite.
            opposite = 1.0 if value <= 0.5 else 0.0
            for others in (("SimB", "100", metric), ("SimA", "25", metric), ("SimA", "100", "bacc")):
                writer.writerow((task, method, *others, opposite))
            writer.writerow((task, method, "SimA", "100", metric, "n/a"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["check", str(scores)])
        with pytest.raises(SystemExit) as left:
            runpy.run_module("check_planted_effects", run_name="__main__")
    return left.value.code


def test_a_sound_demo_passes(tmp_path: Path) -> None:
    assert exit_status(tmp_path) == 0


@pytest.mark.parametrize(
    "low",
    [
        {"ad_ridge_voxels": 0.5},
        {"age_ridge_voxels": 0.0},
        {"ad_shuffled": 0.51},
        {"age_shuffled": 0.01},
        {"ad_lora": 0.5},
    ],
)
def test_what_does_not_hold_fails(tmp_path: Path, low: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(tmp_path, **low) == 1
    assert capsys.readouterr().out.count("FAILS: simulated ") == 1
