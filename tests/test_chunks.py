"""Chunks: a new scan disturbs the chunk that it joins and no other."""

from neuropeft.cohorts.chunks import assign_chunks, chunk_digest


def groups(chunks: dict[str, str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for scan_id, chunk in chunks.items():
        found.setdefault(chunk, set()).add(scan_id)
    return found


def keys(subjects: int, sessions: int = 1) -> list[tuple[str, str]]:
    return [(f"sub-{s}_ses-{v}", str(s)) for s in range(subjects) for v in range(sessions)]


def test_small_cohort_is_one_chunk() -> None:
    assert set(assign_chunks(keys(5), 5).values()) == {"x"}


def test_chunks_hold_no_more_than_a_job_takes() -> None:
    chunks = groups(assign_chunks(keys(200, 2), 8))
    assert max(map(len, chunks.values())) <= 8
    assert sum(map(len, chunks.values())) == 400
    assert all(chunk[0] == "x" and set(chunk[1:]) <= {"0", "1"} for chunk in chunks)
    assert not any(one != other and one.startswith(other) for one in chunks for other in chunks)


def test_names_depend_on_no_order_and_no_process() -> None:
    assert assign_chunks(keys(9)[::-1], 4) == assign_chunks(keys(9), 4)
    assert assign_chunks([("sub-a", "a"), ("sub-b", "b")], 1) == {"sub-a": "x1", "sub-b": "x0"}


def test_new_scan_changes_only_the_chunk_it_joins() -> None:
    old_keys = keys(100)
    old = groups(assign_chunks(old_keys, 8))
    for new in range(100, 130):
        now = groups(assign_chunks([*old_keys, (f"sub-{new}_ses-0", str(new))], 8))
        changed = [chunk for chunk, members in old.items() if now.get(chunk) != members]
        assert len(changed) <= 1
        joined = {scan for chunk, members in now.items() if old.get(chunk) != members for scan in members}
        assert joined <= set.union({f"sub-{new}_ses-0"}, *(old[chunk] for chunk in changed))


def test_one_scan_a_job() -> None:
    chunks = assign_chunks(keys(5, 4), 1)
    assert len(set(chunks.values())) == 20
    assert max(map(len, chunks.values())) < 100, "chunks name files"


def test_digest_follows_the_raw_files() -> None:
    row = {"scan_id": "a", "path": "p", "size": 1, "mtime_ns": 2, "chunk": "x", "session": "1"}
    row |= {"mask": None, "mask_size": None, "mask_mtime_ns": None}
    other = row | {"scan_id": "b"}
    digest = chunk_digest([row, other])
    assert chunk_digest([other, row]) == digest
    assert chunk_digest([{**row, "size": "1", "mtime_ns": "2", "mask_size": "n/a"}, other]) == digest, (
        "as read back"
    )
    changes = {"scan_id": "c", "size": 2, "mtime_ns": 3, "mask_size": 4, "mask_mtime_ns": 5}
    for column, value in changes.items():
        assert chunk_digest([row | {column: value}, other]) != digest
    assert chunk_digest([row | {"session": "2", "chunk": "x0", "path": "q"}, other]) == digest
