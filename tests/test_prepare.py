"""What prepare writes of real and simulated cohorts, and what it refuses."""

import csv
from pathlib import Path

import pytest

from neuropeft.cohorts.chunks import read_chunks
from neuropeft.cohorts.prepare import prepare
from neuropeft.config.read import load_config
from neuropeft.errors import UserError
from neuropeft.files import read_tsv
from test_index import table, touch


def simulated_config(root: Path, **tasks: dict) -> dict:
    task = {"kind": "binary", "target": "group", "classes": {"CN": "CN", "AD": "AD"}, "train": "sim"}
    return {
        "cohorts": {
            "sim": {"simulated": {"subjects": 12, "scans_per_subject": 2}},
            "real": {"bids": str(root)},
        },
        "preprocessing": {"scans_per_job": 4},
        "tasks": {"ad": task} | tasks,
        "backbones": {"cnn": {"kind": "densenet121"}},
        "methods": {"scratch": {"kind": "scratch", "lr": 1e-3}},
        "grid": [{"tasks": ["ad", *tasks], "backbones": ["cnn"], "methods": ["scratch"], "seeds": [0]}],
    }


def test_scans_that_are_not_there_are_told_at_the_start(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.nii").touch()
    table(tmp_path / "scans.tsv", "path subject age", "a.nii a 61", "b.nii b 62", "c.nii c 63")
    config = simulated_config(tmp_path, age={"kind": "regression", "target": "age", "train": "real"})
    config["cohorts"]["real"] = {"table": str(tmp_path / "scans.tsv")}
    prepare(load_config(config, tmp_path), tmp_path / "results")
    assert "cohort real: 2 of 3 scans will be excluded" in capsys.readouterr().out


def test_subjects_who_left_a_cohort_are_told_as_long_as_their_scans_are_kept(tmp_path: Path, capsys) -> None:
    (tmp_path / "bids").mkdir()
    config = load_config(simulated_config(tmp_path / "bids"), tmp_path)
    tables = prepare(config, tmp_path / "results")
    assert "left" not in capsys.readouterr().out
    stays = tables.scans["sim"][0].subject
    for name in (stays, "withdrawn"):
        (tmp_path / f"results/derivatives/sim/sub-{name}").mkdir(parents=True)
    prepare(config, tmp_path / "results")
    assert "cohort sim: 1 subjects have left it" in (said := capsys.readouterr().out)
    assert "for example sub-withdrawn;" in said


def test_a_subset_without_enough_subjects_of_each_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bids").mkdir()
    raw = simulated_config(tmp_path / "bids")
    raw["grid"][0]["fractions"] = [10, 100]
    needed = r"10 % of the 8 training subjects of task ad are 1, but training needs 2; give at least 13"
    with pytest.raises(UserError, match=needed):
        prepare(load_config(raw, tmp_path), tmp_path / "results")
    raw["grid"][0]["fractions"] = [13, 100]
    prepare(load_config(raw, tmp_path), tmp_path / "results")
    raw["grid"][0]["shots"] = [1, 5]
    with pytest.raises(UserError, match=r"5 of each class of task 'ad' .* class \d has 4 training subjects"):
        prepare(load_config(raw, tmp_path), tmp_path / "results")


def test_jobs_read_what_is_published_and_a_cached_table_never_changes(tmp_path: Path) -> None:
    (tmp_path / "bids").mkdir()
    config = load_config(simulated_config(tmp_path / "bids"), tmp_path)
    results = tmp_path / "results"
    tables = prepare(config, results)
    assert not results.exists()
    tables.save()
    labels = results / "tasks/ad/sim.tsv"
    cached = tables.cached(labels)
    assert not labels.exists()
    assert not (results / "cohorts").exists()
    tables.publish(["sim"])
    files = [results / "cohorts/sim/scans.tsv", cached]
    times = [file.stat().st_mtime_ns for file in files]
    assert tables.chunks("sim") == read_chunks(results, "sim"), "the plan and the jobs have the same rows"
    rows = [row for rows in read_chunks(results, "sim").values() for row in rows]
    assert len(rows) == 24
    assert rows[0]["path"].startswith("results/simulated/sim/sub-")
    assert rows[0]["path"].endswith(f"/anat/{rows[0]['scan_id']}_T1w.nii.gz")
    assert {row["size"] for row in rows} == {"0"}
    chunks = read_chunks(results, "sim")
    assert max(map(len, chunks.values())) <= 4
    assert all(row["chunk"] == chunk for chunk, members in chunks.items() for row in members)
    assert {row["y"] for row in read_tsv(cached)} == {"0", "1"}
    assert tables.sizes[labels] == len(read_tsv(cached))
    assert "real" not in tables.scans, "the grid does not use that cohort"
    again = prepare(config, results)
    again.save()
    again.publish(["sim"])
    assert [file.stat().st_mtime_ns for file in files] == times
    config.tasks["ad"].classes.update({"CN": config.tasks["ad"].classes["AD"]} | {"AD": "CN"})
    other = prepare(config, results)
    other.save()
    assert other.cached(labels) != cached
    assert cached.stat().st_mtime_ns == times[1]


def three_cohorts(tmp_path: Path, link: bool) -> dict:
    for cohort in ("one", "two", "three"):
        touch(tmp_path / cohort, *(f"sub-{s}/anat/sub-{s}_T1w.nii.gz" for s in "abcdef"))
        lines = [f"sub-{subject} {'CN' if subject in 'abc' else 'AD'}" for subject in "abcdef"]
        table(tmp_path / cohort / "participants.tsv", "participant_id group", *lines)
    if link:
        scan = tmp_path / "two/sub-f/anat/sub-f_T1w.nii.gz"
        scan.unlink()
        scan.symlink_to(tmp_path / "one/sub-a/anat/sub-a_T1w.nii.gz")
    raw = simulated_config(tmp_path / "one")
    raw["cohorts"] = {cohort: {"bids": str(tmp_path / cohort)} for cohort in ("one", "two", "three")}
    raw["tasks"]["ad"] |= {"train": "one"}
    return raw


def test_zero_shot_cohort_may_reuse_subject_names_but_no_file(tmp_path: Path, capsys) -> None:
    raw = three_cohorts(tmp_path, link=False)
    raw["tasks"]["ad"]["zero_shot"] = ["three", "two"]
    tables = prepare(load_config(raw, tmp_path), tmp_path / "results")
    for cohort in ("one", "two", "three"):
        assert len(tables.scans[cohort]) == 6
        assert tables.sizes[tmp_path / f"results/tasks/ad/{cohort}.tsv"] == 6
    assert "6 of 6 subjects of two have a name that one has too, for example sub-a" in (
        capsys.readouterr().out
    )
    raw = three_cohorts(tmp_path, link=True)
    raw["tasks"]["ad"]["zero_shot"] = ["three", "two"]
    with pytest.raises(
        UserError, match=r"tasks\.ad\.zero_shot`: 1 scans of subjects on both sides.*one and in two"
    ):
        prepare(load_config(raw, tmp_path), tmp_path / "results")


@pytest.mark.parametrize(
    ("zero_shot", "message"), [(True, "which task ad only tests on"), (False, "both sides")]
)
def test_pretraining_must_not_see_what_is_tested(tmp_path: Path, zero_shot: bool, message: str) -> None:
    raw = three_cohorts(tmp_path, link=not zero_shot)
    raw["tasks"]["ad"]["zero_shot"] = ["two"] if zero_shot else []
    decoder = {"depth": 1, "heads": 1, "width": 6}
    raw["backbones"] = {"vit": {"kind": "vit", "width": 6, "depth": 1, "heads": 1, "decoder": decoder}}
    raw["pretraining"] = {"mae": {"cohort": "two"}}
    raw["methods"] = {"full": {"kind": "full", "lr": 1e-3}}
    raw["grid"][0] |= {"backbones": ["vit"], "methods": ["full"], "pretraining": ["mae"]}
    with pytest.raises(UserError, match=rf"pretraining\.mae\.cohort.*{message}"):
        prepare(load_config(raw, tmp_path), tmp_path / "results")


def test_one_file_under_two_subjects(tmp_path: Path) -> None:
    raw = three_cohorts(tmp_path, link=False)
    scan = tmp_path / "one/sub-f/anat/sub-f_T1w.nii.gz"
    scan.unlink()
    scan.hardlink_to(tmp_path / "one/sub-a/anat/sub-a_T1w.nii.gz")
    with pytest.raises(UserError, match=r"cohort 'one': .*sub-a_T1w.* and .*sub-f_T1w.* are one file"):
        prepare(load_config(raw, tmp_path), tmp_path / "results")


def test_ages_and_sexes_that_cannot_be_read_are_told(tmp_path: Path, capsys) -> None:
    raw = three_cohorts(tmp_path, link=False)
    lines = [f"sub-{s} {'CN' if s in 'abc' else 'AD'} {age} {sex}" for s, age, sex in zip(
        "abcdef", ("89+", "-9", "121", "43831", "63", "n/a"), "12FFMM", strict=True)]  # fmt: skip
    table(tmp_path / "one/participants.tsv", "participant_id group age sex", *lines)
    tables = prepare(load_config(raw, tmp_path), tmp_path / "results")
    told = capsys.readouterr().out
    assert (
        "age of 4 scans counts as unknown, for example '89+' of scan sub-a; write a number of years, 0 to 120"
        in told
    )
    assert (
        "cohort one: sex of 2 scans counts as unknown, for example '1' of scan sub-a; write F, female, M"
        in told
    )
    for file in ("cohorts/one/subjects.tsv", "tasks/ad/one.tsv"):
        ages = [row["age"] for row in of_text(tables.texts[tmp_path / "results" / file])]
        assert ages == [*["n/a"] * 4, "63.0", "n/a"]


@pytest.fixture
def with_regions(tmp_path: Path):
    """A function that prepares a cohort of six with a table of region volumes, and returns its rows."""
    (tmp_path / "bids").mkdir()
    for subject in "abcdef":
        (tmp_path / f"{subject}.nii").touch()
    lines = [f"{s}.nii {s} {60 + i} s{i % 2}" for i, s in enumerate("abcdef")]
    table(tmp_path / "scans.tsv", "path subject age site", *lines)
    raw = simulated_config(tmp_path / "bids", age={"kind": "regression", "target": "age", "train": "real"})
    raw["cohorts"]["real"] = {"table": str(tmp_path / "scans.tsv"), "morphometry": "regions.tsv"}

    def prepared(header: str, *lines: str) -> dict[str, list[dict[str, str]]]:
        table(tmp_path / "regions.tsv", header, *lines)
        tables = prepare(load_config(raw, tmp_path), tmp_path / "results")
        names = {name: tmp_path / f"results/cohorts/real/{name}.tsv" for name in ("sites", "morphometry")}
        return {name: of_text(tables.texts[path]) for name, path in names.items()}

    return prepared


def test_sites_and_region_volumes_of_each_scan_are_there_for_controls(with_regions, capsys) -> None:
    found = with_regions("subject csf hippocampus", "sub-b 900 4000", "a 1000 n/a", "z 1 1")
    assert [row["site"] for row in found["sites"]] == ["s0", "s1"] * 3
    values = [tuple(row.values()) for row in found["morphometry"]]
    assert values[:3] == [("sub-a", "1000.0", "n/a"), ("sub-b", "900.0", "4000.0"), ("sub-c", "n/a", "n/a")]
    assert "cohort real: 4 of 6 scans have no row in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("subject", "a", "needs a column `subject` and one per region"),
        ("person csf", "a 1", "needs a column `subject` and one per region"),
        ("subject csf", "a big", "line 2: csf is 'big'; write a number"),
        ("subject csf", "z 1", "none of its subjects, such as z, has a scan in cohort 'real'"),
        ("subject csf", "a 1\nsub-a 2", "line 3: a second row of a; keep one"),
    ],
)
def test_mistakes_in_region_volumes_are_told(with_regions, header: str, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_regions(header, *line.split("\n"))


def of_text(text: str) -> list[dict[str, str]]:
    """Return the rows of a table."""
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))
