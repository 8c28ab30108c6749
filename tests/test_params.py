"""The paper's Table 1, and Med-Tuning's table, to the last parameter."""

import csv
from importlib.resources import files
from typing import get_args

import pytest
import torch

from kinds import method_settings
from neuropeft.backbones.build import build_backbone, build_predictor
from neuropeft.backbones.decoders_2d import UPerNet
from neuropeft.backbones.heads import Predictor
from neuropeft.cli import main
from neuropeft.config.methods import Method
from neuropeft.methods import MODULES
from neuropeft.methods.adapt import adapt
from neuropeft.methods.counts import BACKBONES, COLUMNS, Counts, count, table1
from neuropeft.methods.overview import overview


@pytest.fixture(scope="module")
def rows():
    return {(row["backbone"], row["method"]): row for row in table1()}


# Written out here too: a change of the packaged table must not change what the test demands.
PUBLISHED = {
    ("vit_b", "scratch"): 88_204_034,
    ("vit_b", "full"): 88_204_034,
    ("vit_b", "attention"): 28_349_954,
    ("vit_b", "lora"): 1_181_308,
    ("vit_b", "layernorm"): 38_400,
    ("vit_s", "scratch"): 12_220_800,
    ("vit_s", "full"): 12_220_800,
    ("vit_s", "attention"): 3_548_930,
    ("vit_s", "lora"): 295_804,
    ("vit_s", "layernorm"): 10_754,
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_the_published_count_is_reproduced_exactly(rows, key):
    row = rows[key]
    assert row["published"] == PUBLISHED[key]
    assert row["as_published"] == PUBLISHED[key]
    assert row["total"] == row["encoder"] + row["head"]
    method, said = key[1], row["contains"]
    assert ("+ 2-class head" in said) == (row["as_published"] >= row["total"]), "as it is counted"
    assert ("unused" in said) == (row["as_published"] > row["total"])
    parts = {"attention": "qkv and out projection", "lora": "r=32 on q and v", "layernorm": "every LayerNorm"}
    assert said.removeprefix("LoRA ").startswith(parts.get(method, "encoder"))


def test_only_lora_needs_the_unused_layer(rows):
    difference = {key: rows[key]["as_published"] - rows[key]["total"] for key in PUBLISHED}
    assert {key[1] for key, value in difference.items() if value > 0} == {"lora"}
    assert difference["vit_b", "lora"] == difference["vit_s", "lora"] == 122


def test_the_ten_come_first_and_densenet_after_them(rows):
    assert list(rows)[:10] == list(PUBLISHED)
    assert rows["densenet121", "scratch"]["total"] == 11_244_674
    assert all(tuple(row) == COLUMNS for row in rows.values())


def test_count_sees_only_what_is_trained():
    model = build_predictor({"kind": "vit", "width": 48, "depth": 2, "heads": 4}, 3)
    adapt(model, {"kind": "layernorm"}, torch.default_generator)
    assert count(model) == Counts(encoder=5 * 2 * 48, head=3 * 49, total=5 * 2 * 48 + 3 * 49)


@pytest.mark.slow
def test_every_kind_of_method_is_listed_with_what_it_trains(capsys):
    main(["methods"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {"kind", *MODULES}
    found = {line.split()[0]: line.split()[2:5] for line in lines}
    assert found["layernorm"] == ["38,400", "9,984", "-"]


SLICES = {**BACKBONES["vit_b"], "kind": "vit_slices", "channels": 4, "image_size": 128}
# Of Shen 2024: ours, and the millions of tuned parameters as printed.
MED_TUNING = {
    "scratch": ({"kind": "scratch"}, 100.849),
    "full": ({"kind": "full"}, 100.849),
    "head": ({"kind": "linear"}, 15.007),
    "vpt_shallow": ({"kind": "vpt_shallow"}, 15.015),
    "vpt_deep": ({"kind": "vpt_deep"}, 15.100),
    "adapter": ({"kind": "houlsby", "reduction": 8}, 18.567),
    "adaptformer": ({"kind": "adaptformer"}, 16.197),
    "pro_tuning": ({"kind": "pro_tuning", "kernel": 5}, 19.812),
    "st_adapter": ({"kind": "st_adapter"}, 22.118),
    "med_tuning": ({"kind": "med_tuning"}, 17.853),
}


def med_tunings_rows():
    reference = files("neuropeft") / "publish" / "reference" / "medtuning_brats_counts.csv"
    return list(csv.DictReader(reference.read_text(encoding="utf-8").splitlines()))


def test_all_rows_of_med_tunings_table_are_reproduced():
    assert [row["method"] for row in med_tunings_rows()] == list(MED_TUNING)


@pytest.mark.parametrize("row", med_tunings_rows(), ids=lambda row: row["method"])
def test_med_tunings_count_is_reproduced_exactly(row):
    method, millions = MED_TUNING[row["method"]]
    with torch.device("meta"):
        backbone = build_backbone(SLICES)
        model = Predictor(backbone, UPerNet(backbone.gives.width, 4))
        own = sum(value.numel() for value in backbone.parameters())
        adapt(model, method_settings(method).model_dump(), torch.default_generator)
    counts = count(model)
    assert counts.head == 14_956_804
    whole = method["kind"] in ("scratch", "full")
    assert counts.encoder == (own if whole else int(row["inserted_exact"]))
    # Beside the decoder, the authors always train positions and the final norm, which our methods leave.
    beside = 0 if whole else backbone.positions.numel() + 2 * 768
    assert beside in (0, 50_688)
    assert round((counts.total + beside) / 1e6, 3) == millions


# Trainable parameters of the encoder, without the head, as published or as their formula gives.
COUNTS = {
    ("vit_b", "scratch"): 88_202_496,
    ("vit_b", "linear"): 0,
    ("vit_b", "partial"): 7_089_408,
    ("vit_b", "partial_4"): 28_353_024,
    ("vit_b", "attention"): 28_348_416,
    ("vit_b", "attention_qv"): 14_174_208,
    ("vit_b", "layernorm"): 38_400,
    ("vit_b", "lora"): 294_912,
    ("vit_b", "bitfit"): 102_912,
    ("vit_b", "houlsby"): 3_559_680,
    ("vit_b", "pfeiffer"): 1_189_632,
    ("vit_b", "parallel"): 7_091_712,
    ("vit_b", "adaptformer"): 1_189_632,
    ("vit_b", "adapter_plus"): 165_984,
    ("vit_b", "adapter_drop"): 521_808,
    ("vit_b", "compacter"): 57_088,
    ("vit_b", "adapter_bias"): 46_092,
    ("vit_b", "pro_tuning"): 4_810_752,
    ("vit_b", "st_adapter"): 7_110_144,
    ("vit_b", "convpass"): 355_200,
    ("vit_b", "med_tuning"): 2_842_744,
    ("vit_s", "scratch"): 12_220_800,
    ("vit_s", "layernorm"): 9_984,
    ("vit_s", "adapter_drop"): 18_840,
    ("vit_s", "med_tuning"): 391_484,
    ("vit_b", "difffit"): 102_912 + 19_200 + 12 * 2 * 768,  # biases, scales of norms, new scales
    ("vit_b", "fairtune"): 28_348_416 + 12 * 2 * 768,  # attention and norm1
    ("vit_b", "gps"): 2 * 12 * 9 * 768,  # one weight and the bias of each neuron
    ("vit_b", "gps_3"): 4 * 12 * 9 * 768,
    ("vit_b", "vpt_shallow"): 7_680,
    ("vit_b", "vpt_deep"): 92_160,
    ("vit_b", "vpt_deep_50"): 460_800,
    ("vit_b", "prefix"): 184_320,
    ("vit_b", "prefix_mlp"): 9_857_024,
    ("vit_s", "attention_qv"): 6 * 2 * 384 * 385,
    ("vit_s", "vpt_deep"): 6 * 10 * 384,
    ("vit_l", "scratch"): 24 * (12 * 1024**2 + 13 * 1024) + 4097 * 1024 + 2 * 1024,
    ("vit_b", "rslora"): 294_912,
    ("vit_b", "lora_plus"): 294_912,
    ("vit_b", "dora"): 294_912 + 2 * 12 * 768,  # and one per adapted row
    ("vit_b", "lnlora"): 626_688,
    ("vit_b", "adalora"): 2 * 12 * (2 * 12 * 768 + 12),
    ("vit_b", "dylora"): 294_912,
    ("vit_b", "vera"): 2 * 12 * (256 + 768),
    ("vit_b", "fact_tk"): 30_976,
    ("vit_b", "fact_tt"): 61_440,
    ("vit_b", "repadapter"): 2 * 12 * (8 * 768 + 8 + 4 * 768 + 768),
    ("vit_b", "ssf"): 205_824,
    ("vit_b", "ia3"): 55_296,
    ("vit_s", "dora"): 73_728 + 2 * 6 * 384,
    ("vit_s", "vera"): 2 * 6 * (256 + 384),
    ("vit_s", "ia3"): 6 * 6 * 384,
    ("densenet121", "scratch"): 11_242_624,
    ("densenet121", "linear"): 0,
    ("densenet121", "bitfit"): 41_824,
    ("resnet50", "scratch"): 46_155_072,
    ("resnet50", "bitfit"): 26_560,
    # Of a CNN: every convolution has a batch norm, of scale and shift; 58 and 16 kernels have 3^3 voxels.
    ("densenet121", "batchnorm"): 83_648,
    ("densenet121", "last_block"): 3_339_776,
    ("densenet121", "ssf_conv"): 20_480,
    ("densenet121", "lora_conv"): 1_954_744,
    ("densenet121", "tsa"): 58 * 128 * 32,
    ("densenet121", "series"): 58 * 32**2,
    ("densenet121", "conv_adapter"): 58 * (128 * 27 + 32 + 32 * 32 + 2 * 32),
    ("resnet50", "batchnorm"): 53_120,
    ("resnet50", "last_block"): 29_120_512,
    ("resnet50", "ssf_conv"): 53_120,
    ("resnet50", "lora_conv"): 1_180_856,
    ("resnet50", "tsa"): 3 * 64**2 + 4 * 128**2 + 6 * 256**2 + 3 * 512**2,
    ("resnet50", "series"): 3 * 64**2 + 4 * 128**2 + 6 * 256**2 + 3 * 512**2,
}
OPTIONS = {
    "houlsby": {"reduction": 8},
    "pfeiffer": {"reduction": 12},
    **{kind: {"r": 8} for kind in ("lora", "rslora", "lora_plus", "dora")},
    "partial_4": {"kind": "partial", "blocks": 4},
    "fairtune": {"mask": ["norm1+attn"]},
    "gps_3": {"kind": "gps", "connections": 3},
    "vpt_deep_50": {"kind": "vpt_deep", "prompts": 50},
    "prefix": {"prompts": 10},
    "prefix_mlp": {"kind": "prefix", "prompts": 10, "reparameterised": True},
}
SHAPES = {**BACKBONES, "vit_l": {"kind": "vit", "width": 1024, "depth": 24, "heads": 16}}


@pytest.mark.parametrize(("backbone", "kind"), COUNTS, ids=["-".join(pair) for pair in COUNTS])
def test_as_many_parameters_are_trained_as_published(backbone, kind):
    method = method_settings({"kind": kind, **OPTIONS.get(kind, {})}).model_dump()
    with torch.device("meta"):
        model = build_predictor(SHAPES.get(backbone, {"kind": backbone}), 2)
        adapt(model, method, torch.default_generator)
    assert count(model).encoder == COUNTS[backbone, kind]


@pytest.mark.slow
def test_every_kind_is_listed_with_what_it_trains_where_a_backbone_has_what_it_needs():
    rows = {row["kind"]: row for row in overview()}
    assert len(rows) == len(get_args(get_args(Method)[0]))
    trained = {kind: [rows[kind][name] for name in BACKBONES] for kind in ("lora", "bitfit", "fairtune")}
    assert trained["lora"] == ["1,179,648", "294,912", "-"]
    assert trained["bitfit"][2] == "41,824", "CNNs have biases"
    assert trained["fairtune"] == 3 * ["as set"]
