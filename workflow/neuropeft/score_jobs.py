"""What jobs read that score predictions, and that publish what came out."""

import json
from functools import cache, cached_property
from typing import Any

from neuropeft import contenders, grid, layout, numerics, tasks, variants
from neuropeft.contenders import Contender
from neuropeft.jobs import Jobs
from neuropeft.probe_grid import Probed
from neuropeft.variant_names import VARIED, variant_of


class ScoreJobs:
    """What becomes of the predictions of the run table of `jobs`; wildcards are those of the rules."""

    def __init__(self, jobs: Jobs) -> None:
        """Look at nothing yet."""
        self.jobs = jobs

    @cached_property
    def scored(self) -> dict[str, list[Contender]]:
        """The contenders that are scored together, by the name of what they share; few jobs ask."""
        return contenders.scored_together(contenders.contenders(self.jobs.config))

    @cached_property
    def varied(self) -> dict[str, list[Contender]]:
        """The variants that are scored together, by the name of what they share."""
        config = self.jobs.config
        every = [one for analysis in VARIED for one in variants.variants(config, analysis)]
        return contenders.scored_together(every)

    def together(self, wildcards: Any) -> list[Contender]:
        """Return the contenders, or variants, that are scored together."""
        return self.scored.get(wildcards.scored) or self.varied[wildcards.scored]

    def predictions_scored(self, wildcards: Any) -> list[str]:
        """Return the predictions of the contenders that are scored together."""
        some = self.together(wildcards)
        first = some[0]
        if first.sort in VARIED:
            names = grid.names_of((*first.group[:3], variant_of(first.method)[0]))
            cohorts = self.jobs.task_cohorts(first.task)
            changed = [layout.VARIED.of(analysis=first.sort, **names, cohort=cohort) for cohort in cohorts]
            return [*changed, layout.PREDICTIONS.of(**names, cohort=cohorts[0])]
        if first.sort in ("cells", "ensembles"):
            lines = [line for one in some for of_seed in one.members.values() for line, _ in of_seed]
            return [
                layout.PREDICTIONS.of(**grid.names_of((first.task, *line)), cohort=cohort)
                for line in dict.fromkeys(lines or [first.line])
                for cohort in self.jobs.task_cohorts(first.task)
            ]
        if first.sort == "probes":
            one = Probed(*first.group[:3])
            return [layout.PROBES.of(**one._asdict(), split=split) for split in self.jobs.splits(first.task)]
        return [layout.CONTROLS.of(task=first.task, split=split) for split in self.jobs.splits(first.task)]

    @property
    def analysis_tables(self) -> list[str]:
        """The tables of the analyses that are asked for and have something to say."""
        config = self.jobs.config
        named = [name for name, some in variants.varied(config).items() if some]
        return [*named, *(["retest"] if config.analyses.retest else [])]

    @property
    def analysis_figures(self) -> list[str]:
        """The figures of these analyses."""
        config = self.jobs.config
        named = [name for name, some in variants.varied(config).items() if some]
        return [*named, *dict.fromkeys(f"saliency_{one.task}" for one in variants.salient(config))]

    def varied_cells(self, wildcards: Any) -> list[grid.Cell]:
        """Return the cells that share a base and are varied: those of the largest subset of their task."""
        largest = max(grid.subsets_of(self.jobs.table, wildcards.task))
        return [cell for cell in self.jobs.group_cells(wildcards) if cell.subset == largest]

    def varied_deltas(self, wildcards: Any) -> list[str]:
        """Return the deltas of these cells."""
        return [layout.DELTA.of(**cell.names) for cell in self.varied_cells(wildcards)]

    def analysed(self, wildcards: Any) -> list[str]:
        """Return the scores of variants, and of what they are variants of."""
        bases = {"/".join(("cells", *scored.split("/")[1:])): None for scored in self.varied}
        scores = [
            place.of(scored=scored)
            for scored in (*self.varied, *bases)
            for place in (layout.SCORES, layout.SCORE_DRAWS)
        ]
        methods = variants.varied_methods(self.jobs.config) if self.jobs.config.analyses.retest else []
        predictions = [
            layout.PREDICTIONS.of(**grid.names_of(one.group[:4]), cohort=cohort)
            for one in methods
            for cohort in self.jobs.task_cohorts(one.task)
        ]
        maps = [
            layout.SALIENCY.of(**grid.names_of(one.group[:4]), cohort=self.jobs.task_cohorts(one.task)[0])
            for one in variants.salient(self.jobs.config)
        ]
        return [*scores, *predictions, *maps]

    def diagnosed(self, wildcards: Any) -> list[str]:
        """Return the files that diagnostics read: predictions, labels, sites, splits, controls."""
        predictions = [
            layout.PREDICTIONS.of(**grid.names_of(base), cohort=cohort)
            for base in grid.bases(self.jobs.config)
            for cohort in self.jobs.task_cohorts(base[0])
        ]
        people = [
            file
            for task in self.jobs.tasks
            for file in (*self.jobs.task_labels(task), *self.jobs.split_files(task, self.jobs.splits(task)))
        ]
        tested = dict.fromkeys(cohort for task in self.jobs.tasks for cohort in self.jobs.task_cohorts(task))
        people += [layout.SITES.of(cohort=cohort) for cohort in tested]
        controls = [
            layout.SCORES.of(scored=scored) for scored in self.scored if scored.startswith("controls/")
        ]
        return [*predictions, *people, *controls]

    def score_spec(self, wildcards: Any) -> str:
        """Return the specification of contenders that are scored together, as JSON."""
        return json.dumps(contenders.score_spec(self.jobs.config, self.together(wildcards)), sort_keys=True)

    def confound_inputs(self, wildcards: Any) -> list[str]:
        """Return the files from which site and sex of a training cohort are predicted."""
        cohort = self.jobs.config.tasks[wildcards.task].train
        spec = contenders.confound_spec(self.jobs.config, wildcards.task)
        names = [grid.names_of((wildcards.task, *one["line"])) for one in spec["contenders"]]
        tables = [layout.LABELS.of(task=wildcards.task, cohort=cohort), layout.SITES.of(cohort=cohort)]
        features = [layout.FEATURES.of(**one, cohort=cohort) for one in spec["features"]]
        predictions = [layout.PREDICTIONS.of(**one, cohort=cohort) for one in names]
        return [*tables, self.jobs.volumes(cohort), *features, *predictions]

    def confound_spec(self, wildcards: Any) -> str:
        """Return the specification of a task's confounds, as JSON."""
        return json.dumps(contenders.confound_spec(self.jobs.config, wildcards.task), sort_keys=True)

    def score_code(self, wildcards: Any) -> str:
        """Return the version of the code that scores contenders of a task."""
        kind = self.jobs.config.tasks[self.together(wildcards)[0].task].kind
        return numerics.version("evaluate.score", tasks.module_of(kind))

    @cache  # noqa: B019 (there is one, as long as the workflow)
    def result_files(self, wildcards: Any) -> list[str]:
        """Return everything that tables and figures derive from: scores, costs, histories and cohorts."""
        scores = [
            place.of(scored=scored) for scored in self.scored for place in (layout.SCORES, layout.SCORE_DRAWS)
        ]
        trained = [
            place.of(**cell.names) for cell in self.jobs.table for place in (layout.COST, layout.HISTORY)
        ]
        trained += [
            place.of(**encoder.names)
            for encoder in grid.encoders(self.jobs.config)
            for place in (layout.PRETRAINING_COST, layout.PRETRAINING_HISTORY)
        ]
        stores = [self.jobs.stored_scans(cohort) for cohort in self.jobs.cohorts]
        stores += [layout.SUBJECTS.of(cohort=cohort) for cohort in self.jobs.scanned]
        linear = [task for task in self.jobs.tasks if self.jobs.config.tasks[task].linear]
        confounds = [layout.CONFOUNDS.of(task=task) for task in linear]
        return [*scores, *confounds, *trained, *stores]

    def published_code(self, module: str) -> str:
        """Return the version of the code of a module and of the kinds of all tasks."""
        return numerics.version(
            module, *sorted({tasks.module_of(self.jobs.config.tasks[task].kind) for task in self.jobs.tasks})
        )
