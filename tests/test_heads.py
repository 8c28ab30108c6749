"""Heads: the outputs of a scan depend on that scan alone, however its tokens are pooled and standardised."""

import copy
import itertools

import numpy as np
import pytest
import torch

from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.decoders_2d import UPerNet
from neuropeft.backbones.heads import NORMS, POOLS, QUERIES, REDUCED, AttentivePool, FeatureNorm, Head
from neuropeft.errors import UserError
from neuropeft.tasks import task_kind
from neuropeft.tasks.linear import fit_linear
from neuropeft.train.probe_start import start_from_probe

WIDTH, TOKENS, OUTPUTS = 48, 8, 3
BACKBONE = {"kind": "vit", "width": WIDTH, "depth": 2, "heads": 4, "patch_size": 16, "image_size": 32}
KINDS = list(itertools.product(POOLS, NORMS))


def tokens(scans: int = 6, shared: float = 0.0) -> torch.Tensor:
    """Return tokens of scans; `shared` is what all scans have in common."""
    return shared + torch.randn(scans, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def network(pool: str, norm: str) -> torch.nn.Module:
    torch.manual_seed(1)
    return build_predictor(BACKBONE, OUTPUTS, pool, norm)


@pytest.mark.parametrize(("pool", "norm"), KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_scans_outputs_do_not_depend_on_its_neighbours(pool: str, norm: str, training: bool) -> None:
    model = network(pool, norm)
    scans = torch.randn(5, 1, 32, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.head.measure(model.backbone.tokens(scans[:3]))
        model.train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        whole, alone = model(scans), torch.cat([model(scan[None]) for scan in scans])
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("pool", "features", "own"),
    [
        ("mean", WIDTH, 0),
        ("attentive", QUERIES * WIDTH, QUERIES * WIDTH),
        ("concat", TOKENS * REDUCED, WIDTH * REDUCED),
    ],
)
def test_pools_have_these_shapes_and_parameters(pool: str, features: int, own: int) -> None:
    head = Head(WIDTH, TOKENS, OUTPUTS, pool)
    assert head(tokens()).shape == (6, OUTPUTS)
    assert head.linear.in_features == features
    assert sum(value.numel() for value in head.parameters()) == own + (features + 1) * OUTPUTS
    with_norm = Head(WIDTH, TOKENS, OUTPUTS, pool, "layer")
    assert sum(v.numel() for v in with_norm.parameters()) == own + (features + 1) * OUTPUTS + 2 * WIDTH


def test_the_mean_pool_is_a_linear_layer_on_the_mean_token() -> None:
    head = Head(WIDTH, TOKENS, OUTPUTS)  # with mean 0 and variance 1 until they are measured
    expected = torch.nn.functional.linear(tokens().mean(dim=1), head.linear.weight, head.linear.bias)
    torch.testing.assert_close(head(tokens()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", POOLS)
def test_what_all_scans_share_does_not_drown_what_tells_them_apart(pool: str) -> None:
    """Tokens of registered brains: 100 of the template and 0.1 of one brain."""
    own, head = tokens(64), Head(WIDTH, TOKENS, OUTPUTS, pool)
    close = 100 + 0.1 * own
    head.measure(close)
    features = close.mean(dim=1) if pool == "mean" else close
    standard = head.norm(features)
    torch.testing.assert_close(standard.mean(0), torch.zeros_like(standard[0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones_like(standard[0]), atol=5e-2, rtol=0)
    other = Head(WIDTH, TOKENS, OUTPUTS, pool)
    other.load_state_dict(head.state_dict())
    other.measure(own)
    if pool != "attentive":  # whose weights see tokens as they are
        torch.testing.assert_close(head(close), other(own), atol=2e-3, rtol=0.02)


def test_a_measured_norm_has_no_parameters_and_takes_constant_features() -> None:
    norm = FeatureNorm(4)
    assert not list(norm.parameters())
    norm.measure(torch.full((5, 4), 3.0))
    assert torch.equal(norm(torch.full((2, 4), 3.0)), torch.zeros(2, 4))


def test_a_layer_norm_measures_nothing_and_is_trained() -> None:
    head = Head(WIDTH, TOKENS, OUTPUTS, norm="layer")
    before = head(tokens())
    head.measure(tokens(shared=5.0))
    assert torch.equal(head(tokens()), before)
    assert all(value.requires_grad for value in head.norm.parameters())


def test_attention_looks_where_its_queries_point() -> None:
    pool = AttentivePool(WIDTH)
    looked_at = tokens(1)
    with torch.no_grad():
        pool.queries[:] = 1e4 * looked_at[0, 2]
        pooled = pool(looked_at, looked_at).view(QUERIES, WIDTH)
        torch.testing.assert_close(pooled, looked_at[0, 2].expand(QUERIES, WIDTH))
        pool.queries.zero_()
        pooled = pool(looked_at, looked_at).view(QUERIES, WIDTH)
        torch.testing.assert_close(pooled, looked_at[0].mean(dim=0).expand(QUERIES, WIDTH))


def test_concatenated_tokens_keep_their_places() -> None:
    head = Head(WIDTH, TOKENS, OUTPUTS, "concat")
    mixed = tokens().flip(1)
    assert not torch.allclose(head(tokens()), head(mixed))
    mean = Head(WIDTH, TOKENS, OUTPUTS)
    torch.testing.assert_close(mean(tokens()), mean(mixed), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("pool", "norm"), KINDS)
def test_a_head_starts_near_the_best_constant(pool: str, norm: str) -> None:
    head = Head(WIDTH, TOKENS, OUTPUTS, pool, norm)
    head.measure(tokens(64))
    assert not head.linear.bias.any()
    assert head(tokens()).abs().max() < 0.5


def test_the_head_works_in_float32_under_autocast() -> None:
    model = network("mean", "fixed").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(2, 1, 32, 32, 32)).dtype == torch.float32


def test_an_unknown_pool_or_norm_is_refused() -> None:
    for options in ({"pool": "max"}, {"norm": "batch"}):
        with pytest.raises(UserError, match=next(iter(options.values()))):
            Head(WIDTH, TOKENS, OUTPUTS, **options)


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_a_head_that_starts_as_a_probe_predicts_what_the_probe_predicts(kind: str) -> None:
    torch.manual_seed(0)
    tokens, subjects = torch.randn(60, 8, 12), [f"s{i // 2}" for i in range(60)]
    signal = tokens[:, 0, 0]
    targets = (
        {
            "regression": 60 + 10 * signal,
            "binary": (signal > 0).float(),
            "multiclass": (signal > 0).float() + (signal > 0.7).float(),
        }[kind]
        .double()
        .numpy()
    )
    task = task_kind(kind, {"binary": 2, "multiclass": 3}.get(kind, 0))
    goal = task.objective(targets, [1.0] * 60, "cell")
    head = Head(12, 8, task.outputs, "concat")
    head.measure(tokens)
    start_from_probe(head, task, tokens, targets, subjects, goal)
    found = task.scores(head(tokens).detach(), goal.offset, goal.scale)
    features = head.features(tokens).detach().double().numpy()
    expected = task.model_scores(fit_linear(task, features, targets, np.array(subjects)), features)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def levels(scans: int, *slices: int) -> list[torch.Tensor]:
    """Return maps of four layers, [scans, WIDTH, *slices, 2, 2]."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(scans, WIDTH, *slices, 2, 2, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def upernet() -> UPerNet:
    torch.manual_seed(0)
    return UPerNet(WIDTH, OUTPUTS).eval()


@pytest.mark.parametrize("level", range(4))
def test_an_upernet_sees_every_level(upernet: UPerNet, level: int) -> None:
    images, maps = torch.zeros(1, 3, 32, 32), levels(1)
    with torch.no_grad():
        before = upernet(images, maps)
        maps[level] = maps[level] + 1
        assert before.shape == (1, OUTPUTS, 32, 32)
        assert not torch.allclose(upernet(images, maps), before, atol=1e-4)


def test_an_upernets_logits_of_a_slice_are_those_of_an_image_alone(upernet: UPerNet) -> None:
    volumes, maps = torch.zeros(2, 1, 32, 32, 5), levels(2, 5)
    with torch.no_grad():
        logits = upernet(volumes, maps)
        alone = upernet(volumes[:1, ..., 0], [level[1:, :, 3] for level in maps])
    assert logits.shape == (2, OUTPUTS, 32, 32, 5)
    torch.testing.assert_close(logits[1:, ..., 3], alone, atol=1e-5, rtol=1e-4)


def test_an_upernet_learns_from_a_lone_image(upernet: UPerNet) -> None:
    decoder = copy.deepcopy(upernet).train()
    decoder(torch.zeros(1, 3, 32, 32), levels(1)).square().sum().backward()
    without = [name for name, value in decoder.named_parameters() if not value.grad.abs().max() > 0]
    assert not without
