"""Settings of methods, one module per family."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from neuropeft.config.methods.adapters import Adapters
from neuropeft.config.methods.combined import Combined, with_kind
from neuropeft.config.methods.convolutional import Convolutional
from neuropeft.config.methods.hugging_face import HuggingFace
from neuropeft.config.methods.low_rank import LowRank
from neuropeft.config.methods.prompts import Prompt
from neuropeft.config.methods.scaling import Scaling
from neuropeft.config.methods.selective import Selective

Method = Annotated[
    Selective | LowRank | Scaling | Adapters | Prompt | Convolutional | HuggingFace | Combined,
    Field(discriminator="kind"),
    BeforeValidator(with_kind),
]
