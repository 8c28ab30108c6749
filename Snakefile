# neuropeft: preprocess cohorts, pretrain a masked autoencoder, fine-tune every cell, publish tables and curves.
# The package behind the rules is workflow/neuropeft. There layout.py says where everything lies (PREDICTIONS, say), cells/
# why a result is made again, and methods/ how each method works; README.md, "Add your own", how to add one.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


# A file given with --configfile replaces config.yaml whole instead of being merged into it.
if not workflow.overwrite_configfiles:

    configfile: Path(workflow.basedir, "config.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


# Snakemake refuses an image in a folder whose path has a space, whether it is used or not.
if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:

    container: str(Path(workflow.basedir, "envs", "neuropeft.sif"))  # envs/neuropeft.def says how to build it


include: "workflow/rules/resources.smk"  # what jobs ask for
include: "workflow/rules/cohorts.smk"  # who is in a cohort: labels, sites; simulated scans
include: "workflow/rules/t1w.smk"  # heads -> brains in MNI152
include: "workflow/rules/prepare.smk"  # images and volumes -> arrays
include: "workflow/rules/stores.smk"  # the arrays of a cohort, what was excluded, its QC page
include: "workflow/rules/splits.smk"  # who is trained, validated and tested on; no leaks
include: "workflow/rules/pretrain.smk"  # encoders, trained here or imported
include: "workflow/rules/search.smk"  # the settings that cells are trained with
include: "workflow/rules/finetune.smk"  # the cells
include: "workflow/rules/evaluate.smk"  # predictions, controls, scores, confounds
include: "workflow/rules/probes.smk"  # linear models and k-NN on frozen backbones
include: "workflow/rules/analyses.smk"  # what trained cells are asked more: other weights, changed scans
include: "workflow/rules/publish.smk"  # tables, figures, report
include: "workflow/rules/partial.smk"  # status, and tables of what is finished by now


rule all:
    default_target: True
    input:
        TABLES,
        FIGURES,
        DIAGNOSTICS,
        ANALYSES,
        layout.REPORT,
        expand(layout.QC_PAGE, cohort=JOBS.scanned),
        expand(layout.SIMULATED_PARTICIPANTS, cohort=JOBS.simulated),
    localrule: True
