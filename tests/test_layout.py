"""Paths below the results folder are spelt in one place."""

import re
from pathlib import Path

from neuropeft import layout
from neuropeft.grid import Cell, Encoder
from neuropeft.subsets import fraction
from workflow_command import ROOT

PLACES = {value for value in vars(layout).values() if isinstance(value, layout.Place)}
FIRST = "|".join(sorted({place.split("/")[1] for place in PLACES}))


def test_places_are_filled_in_for_rules_and_for_python():
    cell = Cell("ad", "vit_b", "mae", "lora", fraction(10), 3, fold=2)
    path = "results/cells/ad/vit_b/mae/lora/fraction-10/seed-3_fold-2"
    assert layout.CELL.of(**cell.names) == path
    assert layout.CELL.at(Path("/elsewhere"), **cell.names) == Path(path.replace("results", "/elsewhere"))
    folds = {fold: layout.PRETRAINED.of(**Encoder("mae", "vit_b", fold).names) for fold in (0, 2)}
    assert folds == {0: "results/pretraining/mae/vit_b", 2: "results/pretraining/mae/vit_b/fold-2"}


def test_no_other_file_spells_one():
    spelt = re.compile(rf"""results/(?!logs|benchmarks|README)\w|results? / ["'](?:{FIRST})["']""")
    files = [*ROOT.glob("workflow/rules/*.smk"), *ROOT.glob("workflow/neuropeft/**/*.py")]
    code = {path: re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL) for path in files}
    found = {path.name: match[0] for path, text in code.items() if (match := spelt.search(text))}
    assert found == {}
