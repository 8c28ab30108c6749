"""Tuners of Hugging Face's library PEFT, in the backbone's linear layers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from neuropeft.backbones.base import Backbone
from neuropeft.errors import UserError, suggest
from neuropeft.methods.base import Method

OPTIONS: dict[str, dict[str, Any]] = {
    "dora": {"peft_type": "LORA", "use_dora": True}
}  # what is no type of PEFT
TARGETS = ("qkv",)
# What describes a language model or a file that was downloaded.
FOREIGN = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "modules_to_save"),
}


class HuggingFace(Method):
    """Let a tuner of PEFT replace the layers that its configuration names.

    The network gets no wrapper of PEFT's around it. PEFT draws from torch's own generator, which is lent
    another state for that.
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put the tuner's layers in.

        Raises:
            UserError: PEFT is not installed, or refuses the configuration.
        """
        backbone.sites("linear")
        backbone.recordable = (
            False  # some tuners solve equations or look for indices, and wait for the result
        )
        try:
            from peft import PeftType
            from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
        except ImportError as error:
            raise UserError(
                f"a method of kind hf needs the package peft ({error}): `pip install 'neuropeft[hf]'`"
            ) from error
        tuner = settings["tuner"]
        options = dict(OPTIONS.get(tuner, {}))
        kind = PeftType(options.pop("peft_type", tuner.upper()))
        configuration = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        known = {field.name for field in fields(configuration) if field.init} - FOREIGN - options.keys()
        for key in settings["config"]:
            if key not in known:
                raise UserError(f"unknown key {key!r} in `config` of tuner {tuner}: {suggest(key, known)}")
        chosen = {"target_modules": list(TARGETS), **settings["config"], **options}
        try:
            with _drawn_by(generator):
                # What `inject_adapter_in_model` does, which refuses tuners that share tensors between layers.
                PEFT_TYPE_TO_TUNER_MAPPING[kind](backbone, configuration(**chosen), "default")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"PEFT refuses tuner {tuner} with `target_modules` {chosen['target_modules']} on "
                f"{type(backbone).__name__}: {error}; change its `config`"
            ) from error


@contextmanager
def _drawn_by(generator: torch.Generator) -> Iterator[None]:
    """Let torch's own generator of the CPU go on from a seed that `generator` draws, and put it back."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device="cpu")))
    try:
        yield
    finally:
        torch.set_rng_state(state)


METHODS = {"hf": HuggingFace()}
