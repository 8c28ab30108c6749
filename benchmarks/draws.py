"""How long the bootstrap draws of every score of a configuration take, on simulated predictions.

    python benchmarks/draws.py [CONFIG] [--draws 10000] [--subjects 300]

Processor seconds are told, as wall seconds mean little on a busy machine. Jobs score what is
predicted together, so that all cores share the work.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from neuropeft.config.read import read_config
from neuropeft.contenders import contenders
from neuropeft.evaluate.bootstrap import bootstrap_draws
from neuropeft.tasks import kind_of

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "config.yaml")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--subjects", type=int, default=300, help="of each cohort that is tested on")
    options = parser.parse_args()
    config, rng = read_config(options.config, None), np.random.default_rng(0)
    rows, n, start = 0, options.subjects, time.process_time()
    for one in contenders(config):
        task = config.tasks[one.task]
        kind = kind_of(task)
        if len(kind.score_columns) > 1:
            continue  # one score per subject is simulated
        for _ in (task.train, *task.zero_shot):
            y = rng.normal(70, 8, n) if kind.regresses else (np.arange(n) % 5 < 2).astype(float)
            scores = y + rng.normal(0, 1, (len(one.seeds), n))
            runs = [(y, score, np.full(n, 0.5)) for score in scores]
            bootstrap_draws(kind, runs, options.draws, seeds=len(one.seeds))
            rows += len(kind.metrics)
    took = time.process_time() - start
    print(f"{rows:,} scores, {options.draws:,} draws each: {took:.0f} s of processor time")


if __name__ == "__main__":
    main()
