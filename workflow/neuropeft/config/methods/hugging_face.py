"""Methods of Hugging Face's library PEFT."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from neuropeft.config.methods.base import MethodSettings

Tuner = Literal[
    "lora",
    "dora",
    "delora",
    "gralora",
    "hira",
    "loha",
    "lokr",
    "oft",
    "boft",
    "psoft",
    "hra",
    "vera",
    "randlora",
    "ia3",
    "shira",
    "road",
    "miss",
    "waveft",
    "fourierft",
    "c3a",
    "ln_tuning",
]
TEXT = "prompts are tokens of a language model, which there is none of"
REFUSED = {
    **dict.fromkeys(("prompt_tuning", "multitask_prompt_tuning", "p_tuning", "cpt", "cartridge"), TEXT),
    "prefix_tuning": "it prepends keys and values in a language model's cache, which there is none of",
    "adaption_prompt": "it goes into the attention of a language model, which there is none of",
    "trainable_tokens": "it trains embeddings of a language model's vocabulary, which there is none of",
    "xlora": "it mixes trained adapters of a language model, which there is none of",
    "shadow": "it runs beside a language model, which there is none of",
    "adalora": "it shares out its ranks by a schedule of its own, which this training does not call",
    "poly": "it chooses adapters by the task of each sample, and there is one task",
}
NOT_PLAIN = {
    "fourierft": "its coefficients are drawn at the start, as published",
    "c3a": "its kernels are drawn at the start, as published",
    "hra": "its reflections cancel each other up to rounding",
}


class HuggingFace(MethodSettings):
    """A tuner of Hugging Face's PEFT, in linear layers; the package is an extra, `neuropeft[hf]`."""

    label: ClassVar[str] = "Hugging Face PEFT"
    family: ClassVar[str] = "low-rank"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    kind: Literal["hf"]
    tuner: Tuner
    config: dict[str, Any] = Field(
        default={}, description="the tuner's own configuration; `target_modules` is [qkv] if absent"
    )

    @field_validator("tuner", mode="before")
    @classmethod
    def _can_be_used(cls, value: object) -> object:
        if value in REFUSED:
            raise ValueError(f"{value} cannot be used here, for {REFUSED[str(value)]}: choose another tuner")
        return value

    @property
    def changes_at_start(self) -> str:  # type: ignore[override]
        """It depends on the tuner."""
        return NOT_PLAIN.get(self.tuner, "")
