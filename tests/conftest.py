"""How the tests share the machine, and their order."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads that wait for one another spin: where those of several workers share a core, that takes many times
# as long. Set before a test imports torch, antspyx or NumPy.
WORKERS = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
if WORKERS:  # in a worker, not in the process that starts it and whose environment it inherits
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(WORKERS))))


UMASK = os.umask(0o022)
os.umask(UMASK)


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """Take back the umask that the workflow sets when it is read: SLURM's daemons want folders for all."""
    yield
    os.umask(UMASK)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder that all processes of this run of the tests have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(pytestconfig, "workerinput") else own  # a worker's lies in the run's


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """The fabricated results of `small_config`, scored, in a folder of this file's own."""
    from fabricated_results import small_results

    return small_results(tmp_path_factory.mktemp("fabricated") / "results", shared)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The store of a small simulated cohort."""
    import tiny_cells

    return tiny_cells.make_store(tmp_path / "store")


# Files whose tests are all `slow`, that is not for `make test-quick`.
SLOW = {
    *("test_end_to_end.py", "test_dry_runs.py", "test_dry_runs_pretraining.py", "test_dry_runs_shipped.py"),
    *("test_two_runs.py", "test_readme.py", "test_benchmarks.py", "test_cost_figure.py"),
    *("test_tables.py", "test_figures.py", "test_metrics.py", "test_packs.py", "test_faults.py"),
    *("test_simulate.py", "test_t1w.py", "test_preprocess_register.py", "test_ddp.py", "test_ddp_resume.py"),
}


# Files that take longest, the longest first: the shorter ones fill the time beside and after them, and no
# core waits for a long one at the end. Those on a SLURM wait much; they begin beside the first file, whose
# Snakemake runs two jobs at a time.
LONGEST = (
    *("test_end_to_end.py", "test_interruptions.py", "test_nodes.py", "test_requeued_packs.py"),
    *("test_benchmarks.py", "test_dry_runs.py", "test_figures.py", "test_methods.py", "test_scores.py"),
    *("test_tables.py", "test_faults.py", "test_readme.py", "test_submissions.py"),
)


def pytest_collection_modifyitems(items):
    """Mark slow tests, and have the longest files begin first."""
    for item in items:
        if item.path.name in SLOW or item.path.parent.name == "slurm":
            item.add_marker(pytest.mark.slow)
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONGEST)))
