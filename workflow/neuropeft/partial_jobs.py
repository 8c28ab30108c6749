"""What jobs need that are asked for while the workflow runs: the files of what is finished now."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from neuropeft import grid, layout, probe_grid
from neuropeft.cells.status import Cells
from neuropeft.grid import base_of, names_of
from neuropeft.jobs import Jobs


def there(*paths: str | Path) -> list[str]:
    """Return absolute paths, which are nobody's outputs: the files are read as they are, not made anew."""
    return [str(Path(path).absolute()) for path in paths]


class PartialJobs:
    """What is finished of the run table of `jobs`."""

    def __init__(self, jobs: Jobs, cells: Cells) -> None:
        """Look at nothing yet."""
        self.jobs, self.cells = jobs, cells

    def inputs(self, wildcards: Any) -> dict[str, list[str]]:
        """Return what the finished cells of a group are predicted from on a cohort."""
        # A seed or fold that has just begun may lack its checks of this cohort.
        deltas = {
            cell: delta
            for cell, delta in self.cells.deltas.get(base_of(wildcards), {}).items()
            if all(Path(report).exists() for report in self.jobs.test_checks(wildcards, [cell]))
        }
        names = grid.splits_of(deltas)
        subjects = self.jobs.evaluated_subjects(wildcards.task, wildcards.cohort, names)
        return {
            "deltas": there(*deltas.values()),
            "encoders": there(*self.jobs.encoders(deltas)),
            "volumes": there(self.jobs.volumes(wildcards.cohort)),
            "subjects": there(*subjects),
            "leaks": there(*self.jobs.test_checks(wildcards, deltas)),
            "described": there(*self.jobs.described(wildcards.task)),
        }

    def predictions(self) -> list[str]:
        """Return the predictions of what is finished: a group's own if they are of all of it, or partial."""
        found = []
        for base, deltas in self.cells.deltas.items():
            for cohort in self.jobs.task_cohorts(base[0]):
                names = names_of(base) | {"cohort": cohort}
                group, whole = SimpleNamespace(**names), Path(layout.PREDICTIONS.of(**names))
                if self.cells.predicted(base, whole) == deltas.keys():
                    found += there(whole)
                    continue
                inputs = self.inputs(group)
                if inputs["deltas"] and all(
                    Path(path).exists() for paths in inputs.values() for path in paths
                ):
                    found.append(layout.PARTIAL_PREDICTIONS.of(**names))
        return found

    def result_files(self, wildcards: Any) -> list[str]:
        """Return everything that tables of what is finished derive from."""
        trained = [
            delta.with_name("cost.json") for deltas in self.cells.deltas.values() for delta in deltas.values()
        ]
        controls = [
            Path(layout.CONTROLS.of(task=task, split=split), f"{cohort}.tsv")
            for task in self.jobs.tasks
            for split in self.jobs.splits(task)
            for cohort in self.jobs.task_cohorts(task)
        ]
        tables = (layout.STORED_SCANS, layout.EXCLUDED, layout.SUBJECTS)
        cohorts = [Path(table.of(cohort=cohort)) for cohort in self.jobs.cohorts for table in tables]
        probes = [
            path
            for one, split in self.jobs.probed_splits()
            for path in probe_grid.probe_folder(self.jobs.results, one, split).glob("*.tsv")
        ]
        present = [path for path in (*controls, *probes, *cohorts) if path.is_file()]
        return [*self.predictions(), *there(*trained, *present)]
