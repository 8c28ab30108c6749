"""The paper's Table 1, and Med-Tuning's table, to the last parameter."""

import csv
from importlib.resources import files

import pytest
import torch

from kinds import method_settings
from neuropeft.backbones.build import build_backbone, build_predictor
from neuropeft.backbones.decoders_2d import UPerNet
from neuropeft.backbones.heads import Predictor
from neuropeft.cli import main
from neuropeft.methods import MODULES
from neuropeft.methods.adapt import adapt
from neuropeft.methods.counts import BACKBONES, COLUMNS, Counts, count, table1


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
