"""How things are called in tables, figures and the summary, one place for all of them."""

from neuropeft.config import Config
from neuropeft.evaluate.scores import CONTROL
from neuropeft.grid import NO_PRETRAINING, Group, cells
from neuropeft.probe_grid import is_probe

CONTROL_LABELS = {
    "mean": "predict the mean",
    "age_sex": "age + sex, except the target",
    "ridge_voxels": "linear model on voxels",
}
PROBE_LABELS = {
    "probe_mean": "linear probe, mean-pooled tokens",
    "probe_concat": "linear probe, all tokens",
    "knn": "k-NN",
}
METHOD_LABELS = {
    "scratch": "Scratch",
    "full": "Full fine-tune",
    "attention": "Attention fine-tune",
    "lora": "LoRA",
    "layernorm": "LayerNorm fine-tune",
}


def backbone_label(backbone: str) -> str:
    """Return `vit_b` as ViT-B and `densenet121` as DenseNet121; other names as they are."""
    if backbone.startswith("vit_"):
        return "ViT-" + backbone.removeprefix("vit_").upper()
    return {"densenet121": "DenseNet121"}.get(backbone, backbone)


def method_label(config: Config, method: str) -> str:
    """Return the name of a method or probe; a control on permuted labels says so."""
    if method in PROBE_LABELS:
        return PROBE_LABELS[method]
    if config.methods[method].shuffle_labels:
        return f"{config.methods[method].kind} on shuffled labels"
    return METHOD_LABELS.get(method, method)


def short_method_label(config: Config, method: str) -> str:
    """Return the name of a method where the surroundings tell that it is a way to fine-tune."""
    return method_label(config, method).removesuffix(" fine-tune")


def start_label(config: Config, group: Group) -> str:
    """Return the method, and the pretraining where the backbone has several."""
    label = method_label(config, group.method)
    starts = {cell.pretraining for cell in cells(config) if cell.backbone == group.backbone}
    if group.pretraining != NO_PRETRAINING and len(starts - {NO_PRETRAINING}) > 1:
        label += f" from {group.pretraining}"
    return label


def group_label(config: Config, group: Group, separator: str = " ") -> str:
    """Return backbone, method and, where a backbone has several, pretraining; frozen, of a probe."""
    if group.backbone == CONTROL:
        return f"Control:{separator}{CONTROL_LABELS[group.method]}"
    if is_probe(group):
        untrained = "untrained " if group.pretraining == NO_PRETRAINING else ""
        name = f"{untrained}{backbone_label(group.backbone)}"
        return f"Frozen {name}:{separator}{start_label(config, group)}"
    label = f"{backbone_label(group.backbone)}{separator}{start_label(config, group)}"
    return f"Control: {label}" if is_control(config, group) else label


def is_control(config: Config, group: Group) -> bool:
    """Whether the group is a control, a method on permuted labels included and a probe not."""
    if is_probe(group):
        return False
    return group.backbone == CONTROL or config.methods[group.method].shuffle_labels


def cohort_label(config: Config, cohort: str) -> str:
    """Return the cohort's name, and that it is simulated or synthetic if it is."""
    if is_synthetic(config, cohort):
        return f"{cohort} (synthetic)"
    return f"{cohort} (simulated)" if is_simulated(config, cohort) else cohort


def is_synthetic(config: Config, cohort: str) -> bool:
    """Whether a cohort is synthetic: painted, to pretrain on only."""
    return config.cohorts[cohort].synthetic is not None


def is_simulated(config: Config, cohort: str) -> bool:
    """Whether a cohort is simulated; a synthetic one, which no score is about, is not."""
    return config.cohorts[cohort].simulated is not None


def seeds_text(config: Config, seeds: int) -> str:
    """Return `1 seed` or `3 seeds`, of so many folds each where there are folds."""
    text = f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"
    return f"{text}, {folds_text(config)}" if config.splits.folds else text


def folds_text(config: Config) -> str:
    """Return `5-fold`; empty where all seeds share a fixed test side."""
    return f"{config.splits.folds}-fold" if config.splits.folds else ""
