"""Images drawn from texts: scores, controls, and, where diffusers is installed, training and drawing."""

import json
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

import tiny_cells
import tiny_pipeline
from kinds import method_settings
from neuropeft import layout
from neuropeft.config.read import load_config
from neuropeft.contenders import contenders
from neuropeft.errors import UserError
from neuropeft.evaluate.against_controls import _is_control as is_control
from neuropeft.evaluate.bootstrap import bootstrap_draws, percentile_interval
from neuropeft.evaluate.described import Described, memorised
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.evaluate.real_images import write_controls
from neuropeft.files import read_tsv, write_tsv
from neuropeft.grid import cell_spec, cells, skipped
from neuropeft.records import file_digest
from neuropeft.subsets import fraction
from neuropeft.tasks import of_spec
from neuropeft.tasks.frechet import frechet
from neuropeft.tasks.generation import Generation

needs_diffusers = pytest.mark.skipif(not tiny_pipeline.INSTALLED, reason="diffusers is not installed")
RANDOM = np.random.default_rng(0)
METHODS = ("attention", "bitfit", "layernorm", "difffit", "svdiff", "full", "lora_conv", "tsa", "series")


def features(n, width=5, shift=0.0):
    return RANDOM.normal(size=(n, width)) @ RANDOM.normal(size=(width, width)) + shift


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width"), [(30, 5), (6, 20)])
def test_the_distance_is_that_of_two_gaussians_and_influences_are_its_derivatives(n, width):
    first, second = features(n, width), features(n, width, 0.5)

    def by_definition(weights):
        share = weights / weights.sum()
        means = [share @ one for one in (first, second)]
        sets = [
            (one - mean) * np.sqrt(share)[:, None] for one, mean in zip((first, second), means, strict=True)
        ]
        covariances = [one.T @ one * n / (n - 1) for one in sets]
        root = np.trace(sqrtm(covariances[0] @ covariances[1]).real)
        return ((means[0] - means[1]) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * root

    distance, influence = frechet(first, second)
    assert distance == pytest.approx(by_definition(np.ones(n)), rel=1e-5)
    assert influence.sum() == pytest.approx(0, abs=1e-8 * distance)
    step = 1e-3
    for place in range(3):
        more, less = np.ones(n), np.ones(n)
        more[place], less[place] = 1 + step, 1 - step
        slope = (by_definition(more) - by_definition(less)) / (2 * step)
        assert influence[place] / n == pytest.approx(slope, rel=1e-3, abs=1e-3 * distance / n)
    assert frechet(first, first)[0] == pytest.approx(0, abs=1e-8)


def test_an_interval_of_the_distance_lies_around_it_though_few_images_are_tested():
    kind = Generation(0)
    score = np.hstack([np.ones((12, 2)), features(12, 40), features(12, 40, 1.0)])
    y, rule = np.array(["a"] * 12), np.full(12, np.nan)
    distance = float(kind.measure(y, score, rule)["frechet"])
    low, high = percentile_interval(bootstrap_draws(kind, [(y, score, rule)], draws=500)["frechet"])
    assert low < distance < high < 2 * distance


def described(n, width=6):
    subjects = np.array([f"s{place // 2:02}" for place in range(n)])
    scans = np.array([f"{one}_{place % 2}" for place, one in enumerate(subjects)])
    words = RANDOM.normal(size=(n, 4))
    return Described(scans, subjects, features(n, width), words, words)


def test_a_training_image_is_a_copy_of_itself_and_others_are_not():
    train = described(40)
    near, copied = memorised(np.vstack([train.features[:5], features(5, 6, 9.0)]), train)
    np.testing.assert_allclose(near[:5], 0)
    assert (near[5:] > 1).all()
    assert copied.tolist() == [1] * 5 + [0] * 5
    among = memorised(train.features[::2], train._replace(features=train.features + 1e-3))[0]
    assert np.median(among) < 0.1, "a subject's other images do not say how far apart images are"


def test_the_control_draws_training_images_for_test_texts(tmp_path):
    found = described(40)
    rows = [
        {"scan_id": scan, "subject": subject, "session": scan[-1], "y": f"text: {scan}", "sex": "F", "age": 1}
        for scan, subject in zip(found.scans, found.subjects, strict=True)
    ]
    write_tsv(tmp_path / layout.LABELS.of(task="t", cohort="C").removeprefix("results/"), rows, list(rows[0]))
    sides = ["train"] * 24 + ["val"] * 6 + ["test"] * 10
    order = [*(place // 2 for place in range(24)), 0, 0, 1, 1, 2, 2, *[None] * 10]
    split = tmp_path / layout.SPLIT.of(task="t", split="seed-0").removeprefix("results/")
    with_side = [{**row, "side": s, "order": o} for row, s, o in zip(rows, sides, order, strict=True)]
    write_tsv(split, with_side, ["scan_id", "subject", "side", "order", "y"])
    path = tmp_path / layout.DESCRIBED.of(task="t").removeprefix("results/")
    path.parent.mkdir(parents=True)
    np.savez(path, **found._asdict())
    kind = Generation(0, json.dumps({"encoder": "e", "agreement": "a"}))
    write_controls(kind, ["real_images"], ["text"], split, [fraction(100)], ["C"], tmp_path / "out")
    run = read_predictions(tmp_path / "out" / "C.tsv", kind)[RunKey("real_images", fraction(100), 0, "test")]
    assert len(run.subjects) == 5, "the first image of each"
    values = kind.measure(run.y, run.score, np.full(5, np.nan))
    assert (values["nearest"], values["copied"]) == (pytest.approx(0, abs=1e-6), 1)
    assert values["frechet"] > 0
    assert abs(values["agreement"]) > 0
    np.savez(tmp_path / "out/C/fraction-100/seed-0/features.npz", scan_id=[], drawn=[], real=[])
    with pytest.raises(UserError, match="lacks s15_0"):
        read_predictions(tmp_path / "out" / "C.tsv", kind)


# -- configurations --------------------------------------------------------------------------------


def raw(**task):
    return {
        "cohorts": {"C": {"table": "c.csv", "input": "image"}},
        "preprocessing": {"size": 64},
        "tasks": {
            "notes": {"kind": "generation", "text": "note", "train": "C", "encoder": "e", **task},
            "ages": {"kind": "regression", "target": "age", "train": "C"},
        },
        "backbones": {"sd": {"kind": "diffusion", "folder": "sd"}, "resnet": {"kind": "resnet50_2d"}},
        "pretraining": {"sd": {"weights": "unet.safetensors"}},
        "methods": {
            "lora": {"kind": "lora", "lr": 1},
            "ia3": {"kind": "ia3", "lr": 1},
            "untuned": {"kind": "untuned"},
        }
        | {"scratch": {"kind": "scratch", "lr": 1}},
        "grid": [
            {
                "tasks": ["notes", "ages"],
                "backbones": ["sd", "resnet"],
                "pretraining": ["sd", "none"],
                "methods": ["lora", "ia3", "untuned", "scratch"],
                "seeds": [0],
            }
        ],
    }


def test_what_does_not_fit_is_skipped_with_a_line_that_says_why():
    config = load_config(raw(), None)
    lines = "\n".join(skipped(config))
    for line in (
        "ia3 on sd needs block, which the backbone does not provide",
        "untuned on resnet needs denoiser, which the backbone does not provide",
        "scratch on sd would start from random weights, from which nothing is drawn",
        "lora on sd cannot start from none: it needs pretrained weights",
        "ages on sd needs one that reads images",
        "notes on resnet needs a backbone that draws images",
    ):
        assert line in lines
    assert {cell[:4] for cell in cells(config)} == {
        *(("notes", "sd", "sd", method) for method in ("lora", "untuned")),
        ("ages", "resnet", "none", "scratch"),
    }
    drawn = [one for one in contenders(config) if one.task == "notes"]
    assert [(one.label, one.is_control) for one in drawn] == [
        ("sd LoRA", False),
        ("Control: sd Untuned", True),
        ("Control: training images", True),
    ]
    tuned, untuned, real = drawn
    assert is_control(untuned, tuned)
    assert not is_control(real, tuned), "no method need be better than real images"


def test_how_images_are_drawn_and_scored_trains_nothing_anew():
    specs = [
        cell_spec(config, cells(config)[1])
        for config in (load_config(raw(**more), None) for more in ({}, {"steps": 20, "agreement": "clip"}))
    ]
    assert specs[0] == specs[1]
    with pytest.raises(UserError, match="a generation is scored on the cohort that it is trained on"):
        load_config(raw(zero_shot=["C2"]), None)


def test_the_distance_is_called_fid_with_fids_own_network_alone():
    labels = [
        Generation(0, json.dumps({"encoder": one})).metrics[0].label for one in ("clip", "inception.pt")
    ]
    assert labels == ["Fréchet distance", "FID"]


def test_without_diffusers_the_error_says_how_to_get_it(monkeypatch):
    from neuropeft.backbones.diffusion import build

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"needs diffusers .*pip install 'neuropeft\[generation\]'"):
        build({"folder": "sd", "image_size": 16})


# -- training and drawing --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, a CLIP model, an encoder file, and a store of images with what is said of them."""
    from neuropeft.backbones.diffusion import build
    from neuropeft.pretraining.imported import import_encoder
    from neuropeft.train.describe import write_described

    folder = tmp_path_factory.mktemp("made")
    pipeline = tiny_pipeline.make_pipeline(folder / "sd", "v_prediction")
    clip = tiny_pipeline.make_clip(folder / "clip")
    store = tiny_cells.make_store(folder / "store")
    size = (24, 3, tiny_pipeline.EDGE, tiny_pipeline.EDGE)
    np.save(store / "volumes.npy", RANDOM.uniform(size=size).astype(np.float16))
    split = tiny_cells.make_split(folder / "seed-0.tsv", store, test=4)
    rows = [{**row, "y": f"text: {row['subject']} is well, as all of them are"} for row in read_tsv(split)]
    write_tsv(split, rows, list(rows[0]))
    backbone = {"kind": "diffusion", "folder": str(pipeline), "image_size": tiny_pipeline.EDGE}
    import_encoder(
        pipeline / "unet" / "diffusion_pytorch_model.safetensors",
        folder / "encoder.safetensors",
        build(backbone),
        {},
    )
    told = {"encoder": str(clip), "agreement": str(clip), "steps": 2, "guidance": 3.0}
    write_described(split, store, told, folder / "described.npz")
    return folder, backbone, json.dumps(told)


def cell(backbone, method, **changes):
    task = {"name": "notes", "kind": "generation", "size": 0}
    settings = method_settings(method).model_dump(exclude={"shuffle_labels"})
    training = {"augment": {}, "epochs": 2, "batch_size": 8}
    return tiny_cells.cell(method=settings, backbone=backbone, task=task, training=training, **changes)


def trained(made, method, out):
    folder, backbone, _ = made
    spec = cell(backbone, method)
    tiny_cells.finetune(
        spec,
        folder / "store",
        folder / "seed-0.tsv",
        folder / "encoder.safetensors",
        out / "cell",
        out / "state",
        1e9,
    )
    return out / "cell" / "delta.safetensors"


def predicted(made, delta, table, **changes):
    from neuropeft.train.predict import predict

    folder, _, told = made
    told = json.dumps(json.loads(told) | changes)
    given = (
        [delta],
        [folder / "encoder.safetensors"],
        folder / "store",
        [folder / "seed-0.tsv"],
        table,
        "cpu",
    )
    predict(*given, told=told, described=folder / "described.npz")
    kind = of_spec({"kind": "generation", "size": 0, "told": told})
    return kind, read_predictions(table, kind)[RunKey("", fraction(100), 0, "test")]


@needs_diffusers
def test_images_are_drawn_once_and_scored_as_often_as_is_asked(made, tmp_path):
    delta = trained(
        made, {"kind": "lora", "r": 2, "alpha": 2, "targets": ["q", "k", "v", "proj", "fc1"]}, tmp_path
    )
    kind, run = predicted(made, delta, tmp_path / "p.tsv")
    assert len(run.subjects) == 4
    assert all(
        np.isfinite(value) for value in kind.measure(run.y, run.score, run.score[:, 0] * np.nan).values()
    )
    folder = tmp_path / "p" / "fraction-100" / "seed-0"
    images = {path: (file_digest(path), path.stat().st_mtime_ns) for path in folder.glob("*.png")}
    assert len(images) == 4
    _, again = predicted(made, delta, tmp_path / "p.tsv", agreement=None)
    assert images == {path: (file_digest(path), path.stat().st_mtime_ns) for path in images}, "not drawn anew"
    np.testing.assert_array_equal(again.score[:, -8:], run.score[:, -8:])
    predicted(made, delta, tmp_path / "p.tsv", steps=3)
    assert all(file_digest(path) != digest for path, (digest, _) in images.items())


@needs_diffusers
def test_what_is_untuned_trains_nothing_and_draws_what_the_pipeline_draws(made, tmp_path):
    from diffusers import StableDiffusionPipeline

    delta = trained(made, {"kind": "untuned"}, tmp_path)
    assert json.loads((tmp_path / "cell" / "cost.json").read_text())["steps"] == 0
    _, run = predicted(made, delta, tmp_path / "p.tsv")
    row = read_tsv(tmp_path / "p/fraction-100/seed-0/images.tsv")[0]
    pipeline = StableDiffusionPipeline.from_pretrained(made[1]["folder"], safety_checker=None)
    generator = torch.Generator().manual_seed(int(row["image_seed"]))
    text = run.y[0].removeprefix("text: ")
    options = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.0}
    expected = pipeline(text, generator=generator, output_type="np", **options).images[0]
    from PIL import Image

    drawn = np.asarray(Image.open(tmp_path / f"p/fraction-100/seed-0/{row['scan_id']}.png"))
    np.testing.assert_allclose(drawn / 255, expected, atol=0.003)


@needs_diffusers
@pytest.mark.parametrize("method", METHODS)
def test_a_method_starts_as_the_pipeline_and_lowers_the_loss(made, method):
    from neuropeft.backbones.diffusion import build_predictor
    from neuropeft.methods.adapt import adapt, parameter_groups

    torch.manual_seed(0)
    plain = build_predictor(made[1], 1, None)
    x, times = torch.randn(4, 4, 8, 8), torch.tensor([0, 20, 50, 90])
    texts = torch.randn(4, 12, 16)
    wanted = torch.randn(4, 4, 8, 8)
    settings = method_settings({"kind": method, "weight_decay": 0}).model_dump()
    with torch.no_grad():
        before = plain.backbone.denoised(x, times, texts)
        adapt(plain, settings, torch.Generator().manual_seed(0))
        at_start = plain.backbone.denoised(x, times, texts)
    if not method_settings({"kind": method}).changes_at_start:
        torch.testing.assert_close(at_start, before)
    optimizer = torch.optim.AdamW(parameter_groups(plain, settings), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = (plain.backbone.denoised(x, times, texts) - wanted).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@needs_diffusers
def test_noise_is_added_as_ddpm_does_and_micro_batches_add_up(made):
    from neuropeft.backbones.diffusion import build
    from neuropeft.train.denoise import corrupted

    unet = build(made[1])
    held = torch.stack([torch.randn(3, 4, 8, 8), torch.zeros(3, 4, 8, 8)], dim=1)
    levels = torch.tensor([0.0, 0.5, 0.99])
    noisy, wanted, times = corrupted(unet, held, 0, ["a", "b", "c"], levels)
    kept = unet.noise.alphas_cumprod[times].view(-1, 1, 1, 1)
    added = (noisy - kept.sqrt() * held[:, 0]) / (1 - kept).sqrt()
    velocity = kept.sqrt() * added - (1 - kept).sqrt() * held[:, 0]
    torch.testing.assert_close(wanted, velocity, atol=1e-4, rtol=1e-3)
    alone = corrupted(unet, held[1:], 0, ["b", "c"], levels[1:])
    torch.testing.assert_close(alone[0], noisy[1:])


@needs_diffusers
def test_other_parts_of_the_folder_than_the_weights_were_imported_with_are_refused(made, tmp_path):
    import shutil

    folder, backbone, _ = made
    other = shutil.copytree(backbone["folder"], tmp_path / "sd")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    from neuropeft.backbones.checkpoints import load_encoder
    from neuropeft.backbones.diffusion import build

    with pytest.raises(UserError, match=r"of another architecture \(vae"):
        load_encoder(folder / "encoder.safetensors", build(backbone | {"folder": str(other)}))


@needs_diffusers
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folder": "nowhere"}, "nowhere is no folder of a Stable Diffusion pipeline"),
        ({"image_size": 18}, "multiple"),
    ],
)
def test_a_folder_or_a_size_that_does_not_fit_is_told(made, change, words):
    from neuropeft.backbones.diffusion import build

    with pytest.raises(UserError, match=words):
        build(made[1] | change)


@needs_diffusers
def test_a_file_that_is_not_fids_own_network_is_refused(made, tmp_path):
    from neuropeft.train.describe import ImageNetworks

    (tmp_path / "other.pt").write_bytes(b"other")
    networks = ImageNetworks({"encoder": str(tmp_path / "other.pt"), "agreement": None}, torch.device("cpu"))
    with pytest.raises(UserError, match="is not FID's own network"):
        networks.features(np.zeros((1, 8, 8, 3), np.uint8))
