"""The estimate of a grid as a screen of text."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from neuropeft.cells.status import Cells
from neuropeft.cohorts.prepare import prepare
from neuropeft.config import Config
from neuropeft.forecast.seconds import APART, CONVOLUTIONS, SHARE, STEP_SECONDS
from neuropeft.forecast.stages import FINE_TUNING, GPU, START_SECONDS, Forecast, Stage, forecast
from neuropeft.peaks import PEAKS, peak_of
from neuropeft.status.estimate import Estimate, estimate
from neuropeft.status.text import aligned, number, wrapped

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
SHOWN = 100e3  # bytes: what takes less is not named


def print_estimate(config: Config, results: Path, gpu: str) -> None:
    """Print what a grid will take: jobs, hours, memory and disk, by stage; nothing is written.

    The scans of its cohorts are listed and its labels read, as when the workflow starts.

    Args:
        config: the configuration, with the paths of its cohorts.
        results: the results folder, whose finished cells replace the guess; it need not be there.
        gpu: a name of `PEAKS`.

    Raises:
        UserError: a cohort or a file of results is not right.
    """
    peak = peak_of(gpu)
    assert peak is not None, "a name of PEAKS"
    found = forecast(config, prepare(config, results), peak)
    statuses = Cells(config, results).statuses
    spent = sum(status.cost["train_seconds"] for status in statuses.values() if status.cost is not None)
    print("\n".join(screen(found, gpu, estimate(statuses), spent)))


def screen(found: Forecast, gpu: str, left: Estimate, spent: float) -> Iterator[str]:
    """Yield the lines of an estimate.

    `left` is what finished cells tell of the others, and `spent` the seconds that they have trained.
    """
    yield from wrapped(
        f"An estimate for one {gpu} at a time, no measurement: {APART} times more or less is no surprise.",
        "",
        "",
    )
    yield ""
    stages = [_measured(stage, left, spent) if stage.name == FINE_TUNING else stage for stage in found.stages]
    yield from _table([stage for stage in stages if stage.jobs])
    yield ""
    yield from wrapped(_sum(stages), "")
    if left.finished:
        on, cells = ", ".join(left.devices), left.finished + left.left
        guess = next(stage.seconds for stage in found.stages if stage.name == FINE_TUNING)
        yield from wrapped(
            f"{left.finished:,} of {number(cells, 'cell')} are done, on {on}: the hours of {FINE_TUNING} are "
            f"theirs and, by them, those of the others. The guess was {_hours(guess)} GPU-hours.",
            "",
        )
    yield from wrapped(_disk(found), "")
    yield from wrapped(
        f"Hours rest on operations per scan x scans / ({SHARE:.0%} of the peak of {PEAKS[gpu]} TFLOP/s), for "
        f"CNNs {CONVOLUTIONS} times as much, + {1000 * STEP_SECONDS:.0f} ms a step + {START_SECONDS:.0f} s a "
        "job: so it was on an H100 with ViTs; the rest has not been measured. Trainings count to their last "
        "step, without validations, preparation by the processor time of a scan. GPU memory is in float32, "
        "so mixed precision takes less; scans come to it if they fit. Main memory is what jobs ask for.",
        "",
    )


def _measured(stage: Stage, left: Estimate, spent: float) -> Stage:
    """Return the stage with the hours that finished cells tell, where there are any."""
    if left.seconds is None:
        return stage
    device = "CPU" if left.devices == ("cpu",) else GPU if "cpu" not in left.devices else "device"
    return replace(stage, seconds=spent + left.seconds, of=device)


def _table(stages: Sequence[Stage]) -> Iterator[str]:
    rows = [("Stage", "jobs", "trainings", "hours", "of a", "GPU memory", "+ scans", "main memory")]
    for stage in stages:
        rows.append(
            (
                stage.name,
                f"{stage.jobs:,}",
                f"{stage.cells:,}" if stage.cells else "-",
                _hours(stage.seconds),
                stage.of,
                _size(stage.gpu_bytes) if stage.gpu_bytes else "-",
                _size(stage.scan_bytes) if stage.scan_bytes else "-",
                _size(1e6 * stage.node_mb),
            )
        )
    yield from aligned(rows, text_columns=1)


def _sum(stages: Sequence[Stage]) -> str:
    seconds = sum(stage.seconds for stage in stages if stage.of == GPU)
    low, high = _hours(seconds / APART), _hours(seconds * APART)
    return f"In all {_hours(seconds)} GPU-hours, {low} to {high}; memory is that of a stage's largest job."


def _disk(found: Forecast) -> str:
    parts = [f"{what} {_size(size)}" for what, size in found.disk.items() if size >= SHOWN]
    kept = [f"{_size(size)} of each {what}" for what, size in found.running.items()]
    return (
        f"Disk: {_size(sum(found.disk.values()))} of results ({', '.join(parts)}); checkpoints take up to "
        f"{' and '.join(kept)} until it is done."
    )


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    if hours < 0.01:
        return "< 0.01"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _size(count: float) -> str:
    unit, name = next((pair for pair in UNITS if count >= pair[0]), UNITS[-1])
    return f"{count / unit:,.0f} {name}" if count >= 10 * unit else f"{count / unit:.2g} {name}"
