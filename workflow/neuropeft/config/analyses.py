"""What else is asked of the cells once they are trained; none of it is, unless it is asked for."""

from pydantic import Field

from neuropeft.config.base import Model


class Analyses(Model):
    """Questions that trained cells answer without another training."""

    ensembles: bool = Field(
        default=False,
        description="score the mean prediction of the seeds of each method, and of all methods of a start",
    )
