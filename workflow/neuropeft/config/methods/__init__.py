"""Settings of methods, one module per family."""

from typing import Annotated

from pydantic import Field

from neuropeft.config.methods.low_rank import LowRank
from neuropeft.config.methods.scaling import Scaling
from neuropeft.config.methods.selective import Selective

Method = Annotated[Selective | LowRank | Scaling, Field(discriminator="kind")]
