"""Where everything lies: the one place that knows paths below the results folder.

Rules use the patterns as they are, with their wildcards in braces; Python fills them in.
"""

from pathlib import Path

RESULTS = "results"


class Place(str):
    """A path in the results folder, with wildcards in braces."""

    __slots__ = ()

    def __new__(cls, below: str) -> "Place":
        """Make a place from its path below the results folder."""
        return super().__new__(cls, f"{RESULTS}/{below}")

    def of(self, **names: object) -> str:
        """Return the path, from the folder that holds the results, with its wildcards filled in."""
        return self.format(**names)

    def at(self, results: Path, **names: object) -> Path:
        """Return the path with its wildcards filled in, in a results folder of any name."""
        return results / self.format(**names).removeprefix(f"{RESULTS}/")


def chunk_table(step: str) -> Place:
    """Return the place of chunk tables after a step of a kind of input."""
    return Place(f"cohorts/{{cohort}}/chunks/{{chunk}}/{step}.tsv")


def predicted_files(predictions: Path, subset: str, split: str) -> Path:
    """Return the folder of the label maps or images that a cell predicts, beside the table of predictions."""
    return predictions.with_suffix("") / subset / split


# -- what the main process alone writes, and no job reads but by its own name --
DIGESTS = Place("_state/digests.json")
TABLE_CACHE = Place("_state/tables/{digest}.tsv")

# -- cohorts: tables, preprocessing, stores --
SCANS = Place("cohorts/{cohort}/scans.tsv")
SUBJECTS = Place("cohorts/{cohort}/subjects.tsv")
SITES = Place("cohorts/{cohort}/sites.tsv")
MORPHOMETRY = Place("cohorts/{cohort}/morphometry.tsv")
LABELS = Place("tasks/{task}/{cohort}.tsv")
LEFT_OUT = Place("tasks/{task}/left_out/{cohort}.tsv")
N4_FOLDER = Place("cohorts/{cohort}/chunks/{chunk}/n4")
EXCLUDED = Place("cohorts/{cohort}/excluded.tsv")
DERIVATIVES = Place("derivatives/{cohort}")
STORE = Place("cohorts/{cohort}/store")
VOLUMES = Place("cohorts/{cohort}/store/volumes.npy")
STORED_SCANS = Place("cohorts/{cohort}/store/scans.tsv")
SIGNATURES = Place("cohorts/{cohort}/store/signatures.npy")
TISSUE = Place("cohorts/{cohort}/store/tissue.npy")
QC_PAGE = Place("qc/{cohort}/index.html")
QC_TABLE = Place("qc/{cohort}/qc.tsv")
SIMULATED = Place("simulated/{cohort}")
SIMULATED_PARTICIPANTS = Place("simulated/{cohort}/participants.tsv")
SIMULATED_DESCRIPTION = Place("simulated/{cohort}/dataset_description.json")
SIMULATED_CHUNK = Place("simulated/{cohort}/chunks/{chunk}.tsv")

# -- splits and what is checked about them; `split` is a name of `split_names` --
SPLIT = Place("splits/{task}/{split}.tsv")
LEAKS = Place("splits/{task}/leaks/{cohort}-{split}.tsv")
PRETRAINING_LEAKS = Place("splits/{task}/leaks/pretraining-{pretraining}{fold_part}/{cohort}.tsv")

# -- what is trained; `fold_part` is empty, or a folder where each fold has an encoder of its own --
ENCODER_PATH = "{pretraining}/{backbone}{fold_part}"
PRETRAINED = Place(f"pretraining/{ENCODER_PATH}")
ENCODER = Place(f"pretraining/{ENCODER_PATH}/encoder.safetensors")
KEPT_ENCODER = Place(f"pretraining/{ENCODER_PATH}/encoder-{{percent}}.safetensors")
PRETRAINING_HISTORY = Place(f"pretraining/{ENCODER_PATH}/history.csv")
PRETRAINING_COST = Place(f"pretraining/{ENCODER_PATH}/cost.json")
PRETRAINING_STATE = Place(f"_state/pretraining/{ENCODER_PATH}")
SEARCH_PATH = "search/{task}/{backbone}/{pretraining}/{method}{fold_part}"
TRIALS = Place(f"{SEARCH_PATH}/trials-{{first}}.tsv")  # by the number of the first trial of a job
CHOICES = Place(f"{SEARCH_PATH}/chosen.tsv")
TRIAL_STATES = Place("_state/search")
PACK = Place("packs/{task}/{backbone}/{pretraining}/{method}/{pack}.tsv")
CELL_PATH = "{task}/{backbone}/{pretraining}/{method}/{subset}/{split}"
CELL = Place(f"cells/{CELL_PATH}")
DELTA = Place(f"cells/{CELL_PATH}/delta.safetensors")
HISTORY = Place(f"cells/{CELL_PATH}/history.csv")
COST = Place(f"cells/{CELL_PATH}/cost.json")
CELL_PLACES = (DELTA, HISTORY, COST)
CELL_STATES = Place("_state/cells")
CELL_STATE = Place(f"_state/cells/{CELL_PATH}")

# -- what is predicted and scored --
PREDICTIONS = Place("predictions/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv")
VARIED = Place("varied/{analysis}/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv")
SALIENCY = Place("saliency/{task}/{backbone}/{pretraining}/{method}/{cohort}.npz")
LABEL_MAP = "{scan}_dseg"  # a predicted one, on its scan's own grid; .nii.gz, of images .png
IMAGE = "{scan}.png"  # a drawn one, of a scan's text
DRAWN = "images.tsv"  # which images are there, and their seeds
FEATURES_OF_IMAGES = "features.npz"  # of drawn images and of the real ones of their texts
DESCRIBED = Place("described/{task}.npz")  # features of a cohort's images, and agreement with texts
CONTROLS = Place("controls/{task}/{split}")
FEATURES = Place("features/{pretraining}/{backbone}{fold_part}/{cohort}.npy")
CONFOUNDS = Place("confounds/{task}.tsv")
PROBES = Place("probes/{task}/{backbone}/{pretraining}/{split}")

SCORES = Place("scores/{scored}.tsv")  # of contenders that are predicted together
SCORE_DRAWS = Place("scores/{scored}.npy")

# -- what is published --
TABLES = Place("tables")
PARAMETER_COUNTS = Place("tables/parameter_counts.csv")
FIGURES = Place("figures")
TABLE = Place("tables/{name}")
FIGURE = Place("figures/{name}")
REPORT = Place("report.html")
PARTIAL = Place("partial")
PARTIAL_PREDICTIONS = Place("partial/predictions/{task}/{backbone}/{pretraining}/{method}/{cohort}.tsv")
PARTIAL_TABLE = Place("partial/tables/{name}")
PARTIAL_COUNTS = Place("partial/parameter_counts.csv")

# -- logs that Python reads --
PRETRAIN_LOG = Place(f"logs/pretrain/{ENCODER_PATH}.log")
FINETUNE_LOG = Place("logs/finetune/{task}/{backbone}/{pretraining}/{method}/{pack}.log")
