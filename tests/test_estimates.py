"""What jobs ask for follows from the cohort, the backbone and the attempt."""

from pathlib import Path

import pytest
import yaml

from neuropeft import estimates
from neuropeft.config import Config

CONFIG = Config.model_validate(yaml.safe_load((Path(__file__).parents[1] / "config.yaml").read_text()))
VIT_B, VIT_S = CONFIG.backbones["vit_b"], CONFIG.backbones["vit_s"]
CUBE = (1, 80, 80, 80)


def minutes(backbone="vit_b", cells=3, scans=300, attempt=1):
    return estimates.finetune_minutes(CONFIG.backbones[backbone], CONFIG.training, 80, cells, scans, attempt)


def test_more_cells_scans_weights_and_attempts_take_longer():
    assert minutes() < minutes(cells=4)
    assert minutes() < minutes(scans=500)
    assert minutes("vit_s") < minutes()
    assert minutes(attempt=2) == pytest.approx(2 * minutes(), abs=1)
    assert estimates.scan_minutes(1.0, 32, 1) > estimates.scan_minutes(1.0, 4, 1) > 0
    assert estimates.predict_minutes(VIT_B, 80, 3, 300, 1) < minutes()
    pretraining = CONFIG.pretraining["mae_ukb"]
    small, large = (
        estimates.pretrain_minutes(VIT_S, pretraining.model_copy(update={"steps": steps}), 80, 1)
        for steps in (100, 1000)
    )
    assert small < large


def test_a_fine_tune_trains_at_least_its_least_steps():
    longer = CONFIG.training.model_copy(update={"min_steps": 10**4})
    few, many = (
        estimates.finetune_minutes(VIT_S, training, 80, 1, 100, 1) for training in (CONFIG.training, longer)
    )
    assert few < many


def test_no_job_asks_for_more_than_a_partition_gives():
    assert minutes(cells=64, scans=100_000) == estimates.LONGEST_MINUTES


def test_main_memory_has_room_for_the_volumes():
    assert estimates.volumes_mb(38_703, CUBE) == 39_632  # UK Biobank, as the design says
    assert estimates.training_mb(38_703, CUBE, 1) > 39_632
    four = estimates.training_mb(38_703, CUBE, 1, processes=4)
    assert four == 39_632 + 4 * estimates.MODEL_MB, "one copy of the volumes for all processes of a node"
    assert estimates.training_mb(100, CUBE, 2) == estimates.training_mb(100, CUBE, 1) + estimates.MODEL_MB


@pytest.mark.parametrize(("vit", "depth", "width"), [(VIT_B, 12, 768), (VIT_S, 6, 384)])
def test_operations_of_a_vit_are_those_of_its_matrices(vit, depth, width):
    # blocks of 12 width^2 weights and the patch embedding, at 125 tokens, and attention
    weights = depth * 12 * width**2 + width * 16**3
    assert vit.forward_flop(80) == 2 * 125 * weights + 4 * depth * width * 125**2
