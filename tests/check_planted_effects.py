"""Check a finished demo: effects planted in the simulated cohort are found, shuffled labels teach nothing.

    python tests/check_planted_effects.py results/tables/scores.csv

Better than chance means that the 95 % interval over test subjects leaves chance out.
"""

import csv
import sys
from pathlib import Path

CHANCE = {"ad": ("auc", 0.5), "age": ("r", 0.0)}
TRAINED_COHORT = "SimA"
METHODS = ("scratch", "full", "attention", "lora", "layernorm")


def intervals(scores: Path, task: str) -> dict[str, float]:
    """Return the lower end of the interval of every method of a task, in-domain, trained on everything."""
    metric, _ = CHANCE[task]
    with scores.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["task"], row["metric"]) == (task, metric)]
    return {
        row["method"]: float(row["ci_low"])
        for row in rows
        if row["cohort"] == TRAINED_COHORT and row["fraction"] == "100" and row["ci_low"] != "n/a"
    }


def main(scores: Path) -> int:
    """Print what holds and what does not; return the number of failures.

    The disease is exaggerated and must be found by a fine-tuned network too. Ageing is not, and two dozen
    scans are too few for a transformer to learn it from: there the linear model must find it.
    """
    failures = 0
    for task, (metric, chance) in CHANCE.items():
        low = intervals(scores, task)
        tuned = {name: value for name, value in low.items() if name in METHODS}
        best = max(tuned, key=lambda name: tuned[name])
        claims = [
            (
                f"the linear model beats chance ({metric} above {low['ridge_voxels']:.2f})",
                low["ridge_voxels"] > chance,
            ),
            (f"shuffled labels do not ({metric} above {low['shuffled']:.2f})", low["shuffled"] <= chance),
        ]
        if task == "ad":
            claims.append((f"{best} beats chance ({metric} above {tuned[best]:.2f})", tuned[best] > chance))
        for claim, holds in claims:
            print(f"{'holds' if holds else 'FAILS'}: simulated {task}: {claim}")
            failures += not holds
    return failures


if __name__ == "__main__":
    raise SystemExit(1 if main(Path(sys.argv[1])) else 0)
