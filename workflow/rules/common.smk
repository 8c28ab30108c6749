# Names that all rules share. Runs whenever a job starts, so it imports no heavy package and reads only caches.
import json
import os
import shlex
import signal
import sys
from functools import cache
from types import SimpleNamespace

sys.path.insert(0, str(Path(workflow.basedir, "workflow")))

from neuropeft import backbones, estimates, grid, methods, probe_grid
from neuropeft.cohorts import chunks
from neuropeft.cohorts.prepare import prepare
from neuropeft.cohorts.simulate import participants, scan_name
from neuropeft.config.read import load_config, read_yaml
from neuropeft.errors import UserError
from neuropeft.finished import deltas_by_base, finished_cells, made_after, state_folder
from neuropeft.packs import Pack, pack_of, packs
from neuropeft.split_names import FOLD_PART, SPLIT_PATTERN, fold_in, fold_part, seed_and_fold, split_name
from neuropeft.sources import source, sources
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

# SLURM's warning before the time limit goes to all processes of a job. It is for the training alone; Snakemake and the
# shells that lie between it and SLURM would die of it.
if "SLURM_JOB_ID" in os.environ:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# What is written of people is not for everybody on the machine. Jobs run below a process that has read this.
os.umask(0o027 | os.umask(0o027))

# Jobs use this checkout of the package and, unless conda or a container provides one, the Python that runs Snakemake;
# they import nothing that happens to lie in the working directory or at home.
PACKAGE = shlex.quote(f"{workflow.basedir}/workflow")
PREFIX = f"export PYTHONPATH={PACKAGE} PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1; "
if not {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER} & workflow.deployment_settings.deployment_method:
    PROGRAMS = shlex.quote(str(Path(sys.executable).parent))
    PREFIX += f'export PATH={PROGRAMS}:"$PATH"; '
shell.prefix(PREFIX)

try:
    CONFIG_FILES = workflow.overwrite_configfiles or [Path(workflow.basedir, "config.yaml")]
    if workflow.is_main_process:
        # Snakemake, which has read the files, drops a key that is given twice without a word.
        for file in CONFIG_FILES:
            read_yaml(Path(file))
    CONFIG = load_config(config, base=Path(workflow.basedir), source=Path(CONFIG_FILES[-1]).name)
    CELLS = grid.cells(CONFIG)
    if workflow.is_main_process:
        for line in grid.skipped(CONFIG):
            logger.info(f"The grid skips a combination: {line}.")
    PACKS = packs(CONFIG, CELLS)
    PACK_OF = pack_of(PACKS)
    COHORTS = grid.used_cohorts(CONFIG)
    SCANNED = grid.scanned_cohorts(CONFIG)
    SYNTHETIC = grid.synthetic_cohorts(CONFIG)
    TASKS = grid.used_tasks(CONFIG)
    if workflow.is_main_process:
        # What runs beside the workflow leaves the indexes alone, which the workflow's jobs read: a status, and what
        # Snakemake will refuse, or run dry, since the folder is locked. Targets are told by the command line alone.
        indexed = all(chunks.index_path(Path("results"), cohort).exists() for cohort in SCANNED)
        locked = any(Path(".snakemake/locks").glob("*"))
        if indexed and locked:
            logger.info(
                "Another run has locked this folder: cohorts and labels are as that run has read them."
            )
        if not (indexed and (locked or {"status", "tables_partial"} & set(sys.argv))):
            prepare(CONFIG, Path("results"))
except UserError as error:
    raise WorkflowError(str(error))

SIMULATED = [cohort for cohort in COHORTS if CONFIG.cohorts[cohort].simulated is not None]


wildcard_constraints:
    cohort="|".join(COHORTS),
    chunk="x[01]*",
    pack=r"(fold-\d+_)?x[01]*",
    task="|".join(TASKS),
    backbone="|".join(CONFIG.backbones),
    pretraining="|".join([*CONFIG.pretraining, grid.NO_PRETRAINING]),
    method="|".join(CONFIG.methods),
    fraction=r"\d+",
    split=SPLIT_PATTERN,
    fold_part=FOLD_PART,  # of an encoder: nothing where one serves all folds


def one_of(names):
    """Return the constraint of a wildcard that is one of the names, of which there may be none."""
    return "|".join(names) or "(?!)"


def kind_sources(module, backbone, method=None):
    """Return the files that a module's result depends on, those of one backbone and one method among them."""
    kinds = [backbones.module_of(CONFIG.backbones[backbone].kind)]
    if method is not None:
        kinds.append(methods.module_of(CONFIG.methods[method].kind))
    return sources(module, *kinds)


def volumes(cohort):
    """Return the volumes of a cohort's store."""
    return f"results/cohorts/{cohort}/store/volumes.npy"


def stored_scans(cohort):
    """Return the rows of a cohort's store."""
    return f"results/cohorts/{cohort}/store/scans.tsv"


def seeds(task):
    """Return the seeds of a task."""
    return grid.seeds_of(CELLS, task)


def splits(task):
    """Return the names of a task's splits, one for each seed and fold."""
    return grid.splits_of(cells(task=task))


def cells(**choice):
    """Return the cells whose fields have the given values."""
    return [cell for cell in CELLS if all(getattr(cell, field) == value for field, value in choice.items())]


def cell_folder(cell):
    """Return the folder of a cell's results."""
    return f"results/cells/{cell.path}"


def pack_table(cell):
    """Return what says that the pack of a cell has been trained."""
    return f"results/packs/{PACK_OF[cell].path}.tsv"


def pack_named(wildcards):
    """Return the pack that a fine-tune job's wildcards name."""
    return Pack(wildcards.task, wildcards.backbone, wildcards.pretraining, wildcards.method, wildcards.pack)


def split_files(task, names):
    """Return the files of a task's splits that are called so."""
    return [f"results/splits/{task}/{name}.tsv" for name in names]


def pack_splits(wildcards):
    """Return the names of the splits that a pack's cells are trained on."""
    return grid.splits_of(PACKS[pack_named(wildcards)])


def cell_of(wildcards):
    """Return the cell that wildcards name."""
    return grid.Cell(
        wildcards.task,
        wildcards.backbone,
        wildcards.pretraining,
        wildcards.method,
        int(wildcards.fraction),
        *seed_and_fold(wildcards.split),
    )


def pack_encoder(wildcards):
    """Return the pretrained encoder that a pack's cells start from, if they start from one."""
    return encoders(PACKS[pack_named(wildcards)])


def searched_cells(wildcards):
    """Return the cells of a method, one of each fold that starts from an encoder, to try learning rates with."""
    own = [cell for cell in group_cells(wildcards) if grid.encoder_fold(CONFIG, cell) == fold_of(wildcards)]
    return grid.searched(own)


def pack_search(wildcards):
    """Return the learning rates that a search has chosen for a pack's cells, if there is one."""
    cell = PACKS[pack_named(wildcards)][0]
    part = fold_part(grid.encoder_fold(CONFIG, cell))
    return f"results/search/{'/'.join(cell.base)}{part}.tsv" if CONFIG.training.search else []


def encoders(some):
    """Return the pretrained encoders that cells start from: one, or one for each fold, or none."""
    found = dict.fromkeys(grid.encoder_of(CONFIG, cell) for cell in some)
    return [f"results/{encoder}" for encoder in found if encoder is not None]


def fold_of(wildcards):
    """Return the fold that a wildcard `fold_part` names; 0 if none."""
    return fold_in(wildcards.fold_part)


def chunk_rows(cohort, chunk):
    """Return the index rows of a chunk."""
    return chunks.read_chunks(Path("results"), cohort)[chunk]


def chunk_tables(wildcards):
    """Return the last chunk table of every chunk of a cohort."""
    return chunks.chunk_tables(Path("results"), wildcards.cohort)


def simulated_chunk(wildcards):
    """Return what says that a chunk's scans have been simulated, for a simulated cohort."""
    return "results/simulated/{cohort}/chunks/{chunk}.tsv" if wildcards.cohort in SIMULATED else []


def simulated_participants(cohort, chunk):
    """Return the participants of a simulated cohort whose scans are in a chunk, as JSON."""
    wanted = {row["scan_id"] for row in chunk_rows(cohort, chunk)}
    everyone = participants(**CONFIG.cohorts[cohort].simulated.model_dump(exclude={"effect"}))
    return json.dumps([person for person in everyone if scan_name(person) in wanted])


def known_people(wildcards):
    """Return the ages and sexes of the cohort that is pretrained on, which are probed for; none of a synthetic one."""
    cohort = CONFIG.trained[wildcards.pretraining].cohort
    return [] if cohort in SYNTHETIC else f"results/cohorts/{cohort}/subjects.tsv"


def pretraining_start(wildcards):
    """Return the encoder that a pretraining goes on from, if it goes on from one."""
    start = CONFIG.trained[wildcards.pretraining].start
    if start is None:
        return []
    fold = fold_of(wildcards) if fold_of(wildcards) in grid.encoder_folds(CONFIG, start) else 0
    return f"results/{grid.encoder_folder(start, wildcards.backbone, fold)}/encoder.safetensors"


def held_out_splits(wildcards):
    """Return a split, of an encoder's fold, of every task trained on the cohort that is pretrained on."""
    cohort = CONFIG.trained[wildcards.pretraining].cohort
    # Its test side is that of every seed, so that other seeds pretrain nothing anew.
    name = split_name(0, fold_of(wildcards))
    return [f"results/splits/{task}/{name}.tsv" for task in TASKS if CONFIG.tasks[task].train == cohort]


def launcher(resources, threads):
    """Return what starts one training process per GPU of a job, on each of its nodes."""
    gpus = gpus_per_node(resources)
    # Told to stop, processes need time to finish a step, save, and ask SLURM: more than torchrun gives by itself.
    torchrun = f"-m torch.distributed.run --shutdown-timeout 110 --nproc-per-node {max(gpus, 1)}"
    if "mpi" not in resources.keys():
        return f"python -m neuropeft.train.lease {gpus} {torchrun} --standalone" if gpus > 1 else "python"
    # This shell runs on the job's first node, where the processes meet. SLURM's warning before the time limit reaches
    # torchrun too, which must not die of it.
    return (
        f"{resources.mpi} --nodes={resources.nodes} --ntasks={resources.nodes} --cpus-per-task={threads}"
        f""" bash -c 'trap "" USR1; exec "$@"' -- python {torchrun} --nnodes {resources.nodes}"""
        " --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID --rdzv-endpoint $(hostname):$((20000 + SLURM_JOB_ID % 20000))"
    )


def gpus_per_node(resources):
    """Return how many GPUs a job has on each of its nodes, from `gpu: 2`, `gres: gpu:2` or `gres: gpu:a100:2`."""
    for gres in str(resources.get("gres", "")).split(","):
        kind, *rest = gres.split(":")
        if kind == "gpu":
            return int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return int(resources.get("gpu", 0))


def group_cells(wildcards):
    """Return the cells that are predicted together, since they share a base."""
    return cells(
        task=wildcards.task,
        backbone=wildcards.backbone,
        pretraining=wildcards.pretraining,
        method=wildcards.method,
    )


def group_deltas(wildcards):
    """Return the deltas of the cells that are predicted together."""
    return [f"{cell_folder(cell)}/delta.safetensors" for cell in group_cells(wildcards)]


def task_cohorts(task):
    """Return the training cohort and the zero-shot cohorts of a task."""
    return [CONFIG.tasks[task].train, *CONFIG.tasks[task].zero_shot]


def task_labels(task):
    """Return the label tables of a task, one per cohort."""
    return [f"results/tasks/{task}/{cohort}.tsv" for cohort in task_cohorts(task)]


def evaluated_subjects(task, cohort, names):
    """Return what says who is predicted: the splits in the training cohort, everybody elsewhere."""
    if cohort != CONFIG.tasks[task].train:
        return [f"results/tasks/{task}/{cohort}.tsv"]
    return split_files(task, names)


def leak_checks(task, cohort, names):
    """Return the reports that no subject or image of a cohort is on two sides of a task's splits."""
    return [f"results/splits/{task}/leaks/{cohort}-{name}.tsv" for name in names]


def compared_cohort(wildcards):
    """Return labels and scans that a training cohort is compared with; with itself it always is."""
    if wildcards.cohort == CONFIG.tasks[wildcards.task].train:
        return []
    return [f"results/tasks/{wildcards.task}/{wildcards.cohort}.tsv", stored_scans(wildcards.cohort)]


def probed_splits():
    """Return (task, backbone, start) and split of every job that fits probes."""
    return [(one, split) for one in probe_grid.probed(CELLS) for split in splits(one.task)]


def task_features(wildcards):
    """Return the tokens of a frozen backbone for the cohorts of a task, the training cohort's first."""
    _, fold = seed_and_fold(wildcards.split)
    own = fold if fold in grid.encoder_folds(CONFIG, wildcards.pretraining) else 0
    return [
        str(probe_grid.features_file(Path("results"), wildcards.pretraining, wildcards.backbone, cohort, own))
        for cohort in task_cohorts(wildcards.task)
    ]


def frozen_encoder(wildcards):
    """Return the pretrained encoder whose tokens are computed, if it is not the untrained backbone."""
    if wildcards.pretraining == grid.NO_PRETRAINING:
        return []
    folder = grid.encoder_folder(wildcards.pretraining, wildcards.backbone, fold_of(wildcards))
    return f"results/{folder}/encoder.safetensors"


def test_checks(wildcards, some):
    """Return the reports that nothing which some cells of a group are tested on was trained or pretrained on."""
    reports = leak_checks(wildcards.task, wildcards.cohort, grid.splits_of(some))
    if wildcards.pretraining in CONFIG.trained:
        folder = f"results/splits/{wildcards.task}/leaks/pretraining-{wildcards.pretraining}"
        at_home = wildcards.cohort == CONFIG.tasks[wildcards.task].train
        # A zero-shot cohort is tested on whole in every fold, and pretrained encoders may be the same in all.
        of_encoders = grid.encoder_folds(CONFIG, wildcards.pretraining)
        folds = {cell.fold if at_home or cell.fold in of_encoders else 0 for cell in some}
        reports += [f"{folder}{fold_part(fold)}/{wildcards.cohort}.tsv" for fold in sorted(folds)]
    return reports


@cache
def result_files(wildcards):
    """Return everything that tables and figures derive from."""
    predictions = [
        f"results/predictions/{cell.task}/{cell.backbone}/{cell.pretraining}/{cell.method}/{cohort}.tsv"
        for cell in CELLS
        for cohort in task_cohorts(cell.task)
    ]
    trained = [f"{cell_folder(cell)}/{name}" for cell in CELLS for name in ("cost.json", "history.csv")]
    pretrained = [
        f"results/{grid.encoder_folder(*encoder)}/{name}"
        for encoder in grid.encoders(CONFIG)
        for name in ("cost.json", "history.csv")
    ]
    controls = [f"results/controls/{task}/{split}" for task in TASKS for split in splits(task)]
    controls += [str(probe_grid.probe_folder(Path("results"), *job)) for job in probed_splits()]
    labels = [table for task in TASKS for table in task_labels(task)]
    stores = [stored_scans(cohort) for cohort in COHORTS]
    stores += [f"results/cohorts/{cohort}/subjects.tsv" for cohort in SCANNED]
    return list(dict.fromkeys([*predictions, *trained, *pretrained, *controls, *labels, *stores]))


# -- what is finished, for partial tables ----------------------------------------------------------


@cache
def finished_deltas():
    """Return the deltas of the cells that are finished now, by what cells share that are predicted together."""
    return deltas_by_base(finished_cells(CONFIG, Path("results")))


def there(*paths):
    """Return absolute paths, which are nobody's outputs: the files are read as they are, and not made anew."""
    return [str(Path(path).absolute()) for path in paths]


def partial_inputs(wildcards):
    """Return what the finished cells of a group are predicted from on a cohort."""
    base = (wildcards.task, wildcards.backbone, wildcards.pretraining, wildcards.method)
    # A seed or fold that has just begun may lack its checks of this cohort.
    deltas = {
        cell: delta
        for cell, delta in finished_deltas().get(base, {}).items()
        if all(Path(report).exists() for report in test_checks(wildcards, [cell]))
    }
    return {
        "deltas": there(*deltas.values()),
        "encoders": there(*encoders(deltas)),
        "volumes": there(volumes(wildcards.cohort)),
        "subjects": there(*evaluated_subjects(wildcards.task, wildcards.cohort, grid.splits_of(deltas))),
        "leaks": there(*test_checks(wildcards, deltas)),
    }


def partial_predictions():
    """Return the predictions of what is finished: a group's own, if they are of all of it, or partial ones."""
    found = []
    for base, deltas in finished_deltas().items():
        for cohort in task_cohorts(base[0]):
            whole = Path("results/predictions", *base, f"{cohort}.tsv")
            task, backbone, pretraining, method = base
            group = SimpleNamespace(
                task=task, backbone=backbone, pretraining=pretraining, method=method, cohort=cohort
            )
            if made_after(whole, deltas.values()):
                found += there(whole)
                continue
            inputs = partial_inputs(group)
            if inputs["deltas"] and all(Path(path).exists() for paths in inputs.values() for path in paths):
                found.append(str(Path("results/partial/predictions", *base, f"{cohort}.tsv")))
    return found


def partial_result_files(wildcards):
    """Return everything that tables of what is finished derive from."""
    trained = [
        delta.with_name("cost.json") for deltas in finished_deltas().values() for delta in deltas.values()
    ]
    controls = [
        Path(f"results/controls/{task}/{split}/{cohort}.tsv")
        for task in TASKS
        for split in splits(task)
        for cohort in task_cohorts(task)
    ]
    cohorts = [
        Path(f"results/cohorts/{cohort}/{name}")
        for cohort in COHORTS
        for name in ("store/scans.tsv", "excluded.tsv", "subjects.tsv")
    ]
    probes = [
        path
        for one, split in probed_splits()
        for path in probe_grid.probe_folder(Path("results"), one, split).glob("*.tsv")
    ]
    present = [path for path in (*controls, *probes, *cohorts) if path.is_file()]
    return [*partial_predictions(), *there(*trained, *present)]
