"""What a grid will take, told before it runs, and how the guess rests on exact counts."""

from pathlib import Path

import pytest

import tiny_cells
from neuropeft.cli import main
from neuropeft.cohorts.prepare import Tables, prepare
from neuropeft.config import Config
from neuropeft.config.read import read_config
from neuropeft.config.training import Search
from neuropeft.forecast.networks import of_cell, of_pretraining, token_bytes
from neuropeft.forecast.screen import screen
from neuropeft.forecast.seconds import training_seconds
from neuropeft.forecast.stages import START_SECONDS, WHOLE_COHORT_JOBS, Forecast, Stage, forecast
from neuropeft.grid import cells
from neuropeft.packs import packs
from neuropeft.peaks import peak_of
from neuropeft.status.estimate import Estimate
from test_estimates import CONFIG, VIT_B, VIT_S

TINY = Path(__file__).parent / "tiny.yaml"
H100 = peak_of("H100") or 0.0


@pytest.fixture(scope="module")
def config() -> Config:
    return read_config(TINY, None).model_copy(update={"cells_per_job": 2})


@pytest.fixture(scope="module")
def tables(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return prepare(config, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def found(config: Config, tables: Tables) -> Forecast:
    return forecast(config, tables, H100)


def stage(found: Forecast, name: str) -> Stage:
    return next(one for one in found.stages if one.name == name)


@pytest.mark.parametrize(
    ("backbone", "gflop", "batch_size", "scans_per_second"),
    [
        (VIT_B, 67.0, 16, 16 / 0.0104),
        (VIT_B, 46.3, 16, 16 / 0.0084),
        (VIT_B, 45.0, 16, 16 / 0.0073),
        (VIT_S, 6.46, 16, 16 / 0.0057),
        (VIT_B, 67.0, 128, 2875),
        (VIT_B, 46.3, 128, 3219),
        (VIT_B, 28.9, 512, 5731),
    ],
    ids=["full", "LoRA", "LayerNorm", "LoRA, ViT-S", "full, 128", "LoRA, 128", "MAE"],
)
def test_the_guess_is_near_what_an_h100_took(backbone, gflop, batch_size, scans_per_second) -> None:
    guess = training_seconds(backbone, gflop * 1e9, 100, batch_size, H100)
    assert guess == pytest.approx(100 * batch_size / scans_per_second, rel=0.21)


def test_cnns_take_longer_for_the_same_operations() -> None:
    cnn, vit = CONFIG.backbones["densenet121"], VIT_B
    seconds = [training_seconds(backbone, 60e9, 1000, 16, H100) for backbone in (cnn, vit)]
    assert seconds[0] > 4 * seconds[1]


@pytest.mark.parametrize("augment", [{"flip": True}, {}], ids=["changed", "held"])
def test_a_network_is_counted_as_its_training_then_finds_it(tmp_path: Path, augment: dict) -> None:
    method = tiny_cells.LORA if augment else {"kind": "linear"}
    spec = tiny_cells.cell(method=method, training={"augment": augment})
    store = tiny_cells.make_store(tmp_path / "store")
    split = tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    tiny_cells.finetune(spec, store, split, None, tmp_path / "out", tmp_path / "state")
    cost, network = tiny_cells.read_cost(tmp_path / "out"), of_cell(spec)
    assert network.flops == cost["flops_per_sample"]
    assert network.stored_bytes == 4 * cost["stored"]
    assert 0 < cost["delta_bytes"] - network.stored_bytes < 10_000, "names and settings beside the numbers"
    assert network.weight_bytes >= 4 * 4 * cost["total"]


def test_memory_is_that_of_weights_and_of_what_the_backward_pass_needs() -> None:
    backbone = VIT_B.model_dump(exclude={"decoder"}) | {"image_size": 80}
    full, linear = (
        of_cell(tiny_cells.cell(method={"kind": kind}, backbone=backbone)) for kind in ("full", "linear")
    )
    assert full.weight_bytes == pytest.approx(16 * 88.2e6, rel=0.01)
    assert linear.weight_bytes == pytest.approx(4 * 88.2e6, rel=0.01)
    assert 39e6 < full.scan_bytes < 4 * 39e6, "about 39 MB in bfloat16"
    assert linear.scan_bytes < full.scan_bytes / 10
    assert token_bytes(backbone) == 125 * 768 * 2


def test_an_autoencoder_takes_what_its_shape_implies() -> None:
    backbone = VIT_S.model_dump(exclude={"decoder"}) | {"image_size": 80}
    spec = tiny_cells.pretraining(backbone=backbone, decoder={"width": 384, "depth": 8, "heads": 12})
    network = of_pretraining(spec, 80)
    # 15.3 GFLOP, if all 125 patches were embedded and predicted: 31 are embedded, and 94 predicted.
    layer = 2 * 125 * 384 * 16**3
    saved = 2 * layer * 94 / 125 + 3 * layer * 31 / 125
    assert network.flops == pytest.approx(15.3e9 - saved, rel=0.01)
    assert network.stored_bytes == pytest.approx(4 * 12.22e6, rel=0.01)


def test_every_stage_is_counted(config: Config, tables: Tables, found: Forecast) -> None:
    chunks = sum(len(tables.chunks(cohort)) for cohort in ("SimA", "SimB"))
    assert stage(found, "preparation").jobs == 4 * chunks + 2 * WHOLE_COHORT_JOBS
    assert (stage(found, "pretraining").jobs, stage(found, "search").jobs) == (1, 0)
    tuning = stage(found, "fine-tuning")
    assert (tuning.jobs, tuning.cells) == (len(packs(config, cells(config))), len(cells(config))) == (6, 10)
    assert tuning.seconds == pytest.approx(sum(found.cell_seconds.values()) + 6 * START_SECONDS)
    assert set(found.cell_seconds) == set(cells(config))
    assert found.disk["stores"] == 14 * 32**3 * 2
    # Four methods and tasks on two cohorts; tokens of the encoder and of the untrained network.
    assert stage(found, "prediction").jobs == 4 * 2 + 2 * 2


def test_a_search_takes_its_share_of_the_steps_on_each_fold(
    config: Config, tables: Tables, found: Forecast
) -> None:
    search = Search(trials=6, trials_per_job=4, share=0.25)
    training = config.training.model_copy(update={"search": search})
    searching = forecast(config.model_copy(update={"training": training}), tables, H100)
    searched = stage(searching, "search")
    assert (searched.jobs, searched.cells) == (4 * 2, 4 * 6)
    each = next(iter(found.cell_seconds.values()))
    assert searched.seconds == pytest.approx(4 * (6 * 0.25 * each + 2 * START_SECONDS), rel=0.1)
    assert stage(searching, "fine-tuning").seconds == stage(found, "fine-tuning").seconds


def test_finished_cells_replace_the_guess(found: Forecast) -> None:
    on_gpu = list(screen(found, "H100", Estimate(7200.0, 6, 4, 0, ("NVIDIA H100",)), 3600.0))
    assert "4 of 10 cells are done, on NVIDIA H100" in "\n".join(on_gpu)
    on_cpu = list(screen(found, "H100", Estimate(7200.0, 6, 4, 0, ("cpu",)), 3600.0))
    for lines, device in ((on_gpu, "GPU"), (on_cpu, "CPU")):
        (line,) = (one for one in lines if one.startswith("fine-tuning"))
        assert line.split()[:5] == ["fine-tuning", "6", "10", "3", device]
    assert any("In all 3 GPU-hours, 1.5 to 6.1" in line for line in on_gpu)
    assert any("In all 0.0" in line for line in on_cpu), "hours of a CPU are none of a GPU"


def test_the_command_says_what_it_rests_on_and_writes_nothing(tmp_path: Path, capsys) -> None:
    results = tmp_path / "results"
    assert main(["estimate", "--configfile", str(TINY), "--results", str(results), "--gpu", "A100"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("An estimate for one A100", "no measurement", "peak of 312 TFLOP/s", "core", "Disk: 1"):
        assert part in said
    assert "are done, on" not in said
    assert not results.exists()
