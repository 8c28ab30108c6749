"""The check of a finished demo fails if planted effects are missed or shuffled labels teach something."""

import csv
import runpy
import sys
from pathlib import Path

import pytest

METHODS = ("full", "attention", "lora", "layernorm")
# What holds by a narrow margin: (mean, ci_low) of a task, metric, start, method and fraction.
SOUND = {
    ("ad", "auc", "none", "ridge_voxels", 100): (0.8, 0.51),
    ("ad", "auc", "none", "shuffled", 100): (0.6, 0.5),
    ("age", "r", "none", "ridge_voxels", 100): (0.5, 0.01),
    ("age", "r", "none", "shuffled", 100): (0.2, 0.0),
    **{("ad", "auc", "factors", method, 100): (0.6, 0.51 if method == "lora" else 0.4) for method in METHODS},
    **{("age", "r", "factors", method, 100): (0.51, 0.01) for method in METHODS},
    ("age", "mae", "none", "scratch", 25): (10.0, 9.0),
    ("age", "mae", "factors", "full", 25): (11.0, 9.0),
    ("age", "mae", "factors", "lora", 25): (9.9, 9.0),
}
KEYS = ("task", "metric", "pretraining", "method", "subset")


def exit_status(folder: Path, changes: dict) -> int:
    """Return the exit status where some rows are others than in SOUND."""
    scores = folder / "scores.csv"
    with scores.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow((*KEYS, "cohort", "mean", "ci_low"))
        for key, row in (SOUND | changes).items():
            key = (*key[:-1], f"fraction-{key[-1]}")
            writer.writerow((*key, "SimA", *row))
            writer.writerow((*key, "SimB", -1.0, 1.0))  # what is not looked at says the opposite
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["check", str(scores)])
        with pytest.raises(SystemExit) as left:
            runpy.run_module("check_planted_effects", run_name="__main__")
    return left.value.code


def test_a_sound_demo_passes(tmp_path: Path) -> None:
    assert exit_status(tmp_path, {}) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {("ad", "auc", "none", "ridge_voxels", 100): (0.8, 0.5)},
        {("age", "r", "none", "ridge_voxels", 100): (0.5, 0.0)},
        {("ad", "auc", "none", "shuffled", 100): (0.6, 0.51)},
        {("age", "r", "none", "shuffled", 100): (0.2, 0.01)},
        {("ad", "auc", "factors", "lora", 100): (0.6, 0.5)},
        *({("age", "r", "factors", method, 100): (0.5, 0.01)} for method in METHODS),
        {("age", "mae", "factors", "lora", 25): (10.0, 9.0)},
    ],
)
def test_what_does_not_hold_fails(tmp_path: Path, changes: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(tmp_path, changes) == 1
    assert capsys.readouterr().out.count("FAILS: simulated ") == 1
