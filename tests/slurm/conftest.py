"""The cluster of each file of this folder; several can run side by side."""

import os
from collections.abc import Iterator

import cluster
import pytest


@pytest.fixture(scope="module")
def slurm() -> Iterator[cluster.Cluster]:
    """A SLURM that runs, to which this process's commands talk.

    Where none can be started the tests are skipped, but fail where the variable CI is set.
    """
    try:
        with cluster.running() as running, pytest.MonkeyPatch.context() as patch:
            for name, value in running.environment.items():
                patch.setenv(name, value)
            yield running
    except cluster.CannotStart as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no SLURM here: {error}")
