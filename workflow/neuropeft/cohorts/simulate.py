"""Simulated cohorts: who takes part, and where their files go.

A simulated cohort makes the benchmark run where there is no data, and has a known truth: ageing widens the
ventricles and thins the cortex, group AD loses medial temporal tissue, group PD shows a subtle change of the
deep grey matter, group CN shows nothing. `simulate_scan` holds how a scan is made.

The list of participants is needed before any file exists, at every parse of the Snakefile, so this module
loads neither numpy nor an image library until a scan is asked for.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuropeft.errors import UserError
from neuropeft.files import atomic_path, write_text, write_tsv
from neuropeft.grouping import grouped

if TYPE_CHECKING:
    import nibabel as nib

GROUPS = ("CN", "AD", "PD")
SITES = ("A", "B")
YEARS_BETWEEN_SESSIONS = 1.5
AGE_JITTER = 1.0  # years, so that matched subjects do not share a birthday
PARTICIPANT_COLUMNS = ("participant_id", "age", "sex", "group", "site")
SESSION_COLUMNS = ("session_id", "age")
NAME = "Simulated T1-weighted cohort (no real people)"


def participants(
    subjects: int,
    seed: int,
    site: str,
    groups: Mapping[str, float],
    age: Sequence[float],
    scans_per_subject: int,
) -> list[dict[str, Any]]:
    """List the scans of a simulated cohort, one dict each.

    The list is a function of its arguments. A subject depends on those before it only, so a larger cohort
    starts with the smaller one. Groups have the given shares up to rounding; within every group and sex, ages
    follow the same evenly spread sequence, so that neither age nor sex predicts the group.

    Args:
        subjects: number of subjects.
        seed: seed of the cohort.
        site: the scanner, "A" or "B"; it is part of every subject's name.
        groups: share of each group, e.g. {"CN": 0.5, "AD": 0.5}.
        age: youngest and oldest age at the first session, in years.
        scans_per_subject: sessions of each subject, 1.5 years apart.

    Returns:
        Dicts with `participant_id`, `session` (None where subjects have one scan, else "ses-1" ...), `age` in
        years, `sex` (F or M), `group`, `site`, and the seeds `anatomy_seed` (one per subject) and `scan_seed`
        (one per scan).

    Raises:
        UserError: for a group or site that cannot be simulated.
    """
    for name, known, what in [(site, SITES, "site"), *((group, GROUPS, "group") for group in groups)]:
        if name not in known:
            raise UserError(f"the simulated {what} {name!r} does not exist; use one of {', '.join(known)}")
    youngest, oldest = age
    start = random.Random(_seed(seed, site)).random()
    in_group: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for number in range(1, subjects + 1):
        subject = f"sub-{site}{number:03d}"
        draw = random.Random(_seed(seed, subject))
        group = _next_group(groups, in_group)
        member = in_group[group]
        in_group[group] += 1
        # Half of the groups start with a woman, so that small cohorts are balanced over all groups too.
        sex = "FM"[(member + list(groups).index(group)) % 2]
        first_age = youngest + (oldest - youngest) * ((start + _van_der_corput(member // 2)) % 1)
        first_age = min(max(first_age + draw.uniform(-AGE_JITTER, AGE_JITTER), youngest), oldest)
        for visit in range(scans_per_subject):
            session = f"ses-{visit + 1}" if scans_per_subject > 1 else None
            rows.append(
                {
                    "participant_id": subject,
                    "session": session,
                    "age": round(first_age + visit * YEARS_BETWEEN_SESSIONS, 1),
                    "sex": sex,
                    "group": group,
                    "site": site,
                    "anatomy_seed": _seed(seed, subject, "anatomy"),
                    "scan_seed": _seed(seed, subject, visit),
                }
            )
    return rows


def simulate_scan(participant: Mapping[str, Any], effect: float) -> "nib.Nifti1Image":
    """Simulate the whole-head T1-weighted scan of one row of `participants`.

    Args:
        participant: the row.
        effect: size of the disease effects; 0 makes the groups alike, ageing stays.

    Returns:
        An int16 image of about 2 mm voxels with its own pose, axis order and contrast.
    """
    from neuropeft.cohorts.simulate_scan import simulate

    return simulate(participant, effect).image


def scan_path(participant: Mapping[str, Any], root: str | Path) -> Path:
    """Return where under the BIDS `root` the scan of a participant lies."""
    return _anat(participant, Path(root)) / f"{scan_name(participant)}_T1w.nii.gz"


def mask_path(participant: Mapping[str, Any], root: str | Path) -> Path:
    """Return where under the BIDS `root` the true brain mask of a scan lies."""
    folder = _anat(participant, Path(root) / "derivatives" / "brainmask")
    return folder / f"{scan_name(participant)}_desc-brain_mask.nii.gz"


def scan_name(participant: Mapping[str, Any]) -> str:
    """Return the BIDS stem of a scan: subject and, where there is one, session."""
    session = participant["session"]
    return f"{participant['participant_id']}_{session}" if session else str(participant["participant_id"])


def write_scan(participant: Mapping[str, Any], root: str | Path, effect: float) -> Path:
    """Simulate one scan and write it with its true brain mask; returns the path of the scan."""
    import nibabel as nib

    from neuropeft.cohorts.simulate_scan import simulate

    scan = simulate(participant, effect)
    path = scan_path(participant, root)
    for image, target in ((scan.mask, mask_path(participant, root)), (scan.image, path)):
        with atomic_path(target) as partial:
            nib.save(image, partial)
    return path


def write_cohort_tables(rows: Sequence[Mapping[str, Any]], root: str | Path) -> None:
    """Write the tables and descriptions that BIDS wants beside the scans."""
    root = Path(root)
    by_subject = grouped(rows, lambda row: row["participant_id"])
    write_tsv(root / "participants.tsv", [scans[0] for scans in by_subject.values()], PARTICIPANT_COLUMNS)
    for subject, scans in by_subject.items():
        if scans[0]["session"]:
            sessions = [{"session_id": scan["session"], "age": scan["age"]} for scan in scans]
            write_tsv(root / subject / f"{subject}_sessions.tsv", sessions, SESSION_COLUMNS)
    _write_description(root, NAME, "raw")
    _write_description(root / "derivatives" / "brainmask", f"{NAME}: true brain masks", "derivative")


def _next_group(groups: Mapping[str, float], counts: Mapping[str, int]) -> str:
    """Return the group that lags most behind its share, the first one at a tie."""
    total = sum(counts.values()) + 1
    weight = sum(groups.values())
    return max(groups, key=lambda group: round(groups[group] / weight * total - counts.get(group, 0), 9))


def _van_der_corput(index: int) -> float:
    """Return number `index` of the base-2 van der Corput sequence: evenly spread over 0..1 at any length."""
    value, scale = 0.0, 0.5
    while index:
        value += scale * (index & 1)
        index, scale = index >> 1, scale / 2
    return value


def _seed(*parts: object) -> int:
    """Hash `parts` to 32 bits; Python's own hash differs between runs."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _anat(participant: Mapping[str, Any], root: Path) -> Path:
    folder = root / participant["participant_id"]
    return (folder / participant["session"] if participant["session"] else folder) / "anat"


def _write_description(root: Path, name: str, kind: str) -> None:
    description: dict[str, Any] = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": kind}
    if kind == "derivative":
        description["GeneratedBy"] = [{"Name": "neuropeft"}]
    write_text(root / "dataset_description.json", json.dumps(description, indent=2) + "\n")
