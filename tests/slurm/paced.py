"""A Python whose trainings wait at each step, and whose Snakemake looks at its jobs every other second.

SLURM can stop such trainings midway while nothing computes. Those that last because they compute take the
cores of the tests beside them and, where the machine is busy, end before or long after what is to happen to
them. Snakemake by itself waits ten seconds longer from one look to the next, a minute in the end.
"""

import sysconfig
import venv
from pathlib import Path

# Runs when the Python starts, long before Snakemake or a training is imported.
SITE = """
import importlib.machinery, os, site, sys, time

site.addsitedir({packages!r})

def wait_at_steps(loop):
    scale = loop.lr_scale  # asked for once a step, and at each validation

    def slowly(*arguments):
        if os.path.exists({held!r}):
            time.sleep({seconds!r})
        return scale(*arguments)

    loop.lr_scale = slowly

def look_often(remote):
    always = property(lambda self: 2, lambda self, seconds: None)
    remote.RemoteExecutor.next_seconds_between_status_checks = always

CHANGED = {{
    "neuropeft.train.loop": wait_at_steps,
    "snakemake_interface_executor_plugins.executors.remote": look_often,
}}

class Changes:
    def find_spec(self, name, path, target=None):
        if name not in CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            CHANGED[name](module)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Changes())
"""


class Paced:
    """Trainings of this Python wait at each step until they are let go; then they are as fast as any."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Make the Python in a new folder; `seconds` is the wait of a step."""
        venv.create(folder, symlinks=True)
        self.python, self.held = folder / "bin" / "python", folder / "held"
        own = sysconfig.get_path("purelib", "venv", vars={"base": str(folder)})
        packages = sysconfig.get_path("purelib")
        text = SITE.format(packages=packages, held=str(self.held), seconds=seconds)
        Path(own, "sitecustomize.py").write_text(text)
        self.held.touch()

    def let_go(self) -> None:
        """Let all trainings go on without waiting."""
        self.held.unlink()
