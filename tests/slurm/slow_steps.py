"""A Python whose trainings wait at each step: SLURM can stop them midway, and nothing computes meanwhile.

Trainings that last because they compute take the cores of the tests beside them and, where the machine is
busy, end before or long after what is to happen to them.
"""

import sysconfig
import venv
from pathlib import Path

# Runs when the Python starts, long before torch and the package are imported.
SITE = """
import importlib.machinery, os, site, sys, time

site.addsitedir({packages!r})

class SlowSteps:
    def find_spec(self, name, path, target=None):
        if name != "neuropeft.train.loop":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            scale = module.lr_scale  # asked for once a step, and at each validation

            def slowly(*arguments):
                if os.path.exists({held!r}):
                    time.sleep({seconds!r})
                return scale(*arguments)

            module.lr_scale = slowly

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, SlowSteps())
"""


class SlowSteps:
    """Trainings of this Python wait at each step until they are let go; then they are as fast as any."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Make the Python in a new folder; `seconds` is the wait of a step."""
        venv.create(folder, symlinks=True)
        self.python, self.held = folder / "bin" / "python", folder / "held"
        own = sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)})
        packages = sysconfig.get_path("purelib")
        text = SITE.format(packages=packages, held=str(self.held), seconds=seconds)
        Path(own, "sitecustomize.py").write_text(text)
        self.held.touch()

    def let_go(self) -> None:
        """Let all trainings go on without waiting."""
        self.held.unlink()
