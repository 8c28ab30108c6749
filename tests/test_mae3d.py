import pytest
import torch

from neuropeft.backbones.patches import patchify, unpatchify
from neuropeft.errors import UserError
from neuropeft.pretraining.mae3d import MAE3D, build_mae

BACKBONE = {"kind": "vit", "width": 48, "depth": 2, "heads": 4, "patch_size": 8, "image_size": 32}
DECODER = {"width": 24, "depth": 1, "heads": 4}
N = 64


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_mae(BACKBONE, DECODER, 0.75)


@pytest.fixture
def scans():
    return torch.randn(3, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return torch.rand(3, N, generator=torch.Generator().manual_seed(2))


def test_the_papers_scan_keeps_31_of_125_patches():
    mae = build_mae({**BACKBONE, "patch_size": 16, "image_size": 80}, DECODER, 0.75)
    assert mae.visible == 31
    assert build_mae({**BACKBONE, "patch_size": 16, "image_size": 80}, DECODER, 0.8).visible == 25
    mask = mae(torch.randn(2, 1, 80, 80, 80)).mask
    assert mask.sum(dim=1).tolist() == [94, 94]


def test_the_smallest_noise_stays_visible(model, scans, noise):
    out = model(scans, noise)
    visible = noise.argsort(dim=1)[:, :16]
    assert not out.mask.gather(1, visible).any()
    assert out.mask.sum(dim=1).tolist() == [48] * 3
    assert out.mask.gather(1, out.masked).all()
    assert out.prediction.shape == (3, 48, 512)


def test_masks_differ_between_scans_and_calls(model, scans):
    first, second = model(scans).mask, model(scans).mask
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_the_encoder_never_sees_masked_patches(model, scans, noise):
    out = model(scans, noise)
    patches = patchify(scans, 8)
    changed = torch.where(out.mask[..., None], patches + 5, patches)
    torch.testing.assert_close(model(unpatchify(changed, 8), noise).prediction, out.prediction)


def test_the_loss_ignores_visible_patches(model, scans, noise):
    # With the prediction held, the loss may depend on the masked patches only.
    out = model(scans, noise)
    target = patchify(scans, 8)
    target = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    masked = target.gather(1, out.masked[..., None].expand_as(out.prediction))
    torch.testing.assert_close(out.loss, (out.prediction - masked).square().mean())


def test_raw_targets_are_an_option(scans, noise):
    model = build_mae(BACKBONE, DECODER, 0.75, normalize_targets=False)
    out = model(scans, noise)
    target = patchify(scans, 8).gather(1, out.masked[..., None].expand_as(out.prediction))
    torch.testing.assert_close(out.loss, (out.prediction - target).square().mean())


def test_the_prediction_belongs_to_its_place(model, scans, noise):
    # The decoder works on sorted tokens: another order within the masked set must reorder the prediction.
    out = model(scans, noise)
    reversed_noise = noise.clone()
    order = noise.argsort(dim=1)
    reversed_noise.scatter_(1, order[:, 16:], noise.sort(dim=1).values[:, 16:].flip(1))
    other = model(scans, reversed_noise)
    assert torch.equal(other.masked, out.masked.flip(1))
    torch.testing.assert_close(other.prediction.flip(1), out.prediction, atol=1e-5, rtol=1e-5)


def test_background_patches_count_nothing(model, scans, noise):
    out = model(scans, noise)
    patches = patchify(scans, 8)
    empty = out.masked[:, :10]  # make ten masked patches of each scan constant
    patches.scatter_(1, empty[..., None].expand(-1, -1, 512), -0.7)
    loss = model(unpatchify(patches, 8), noise).loss
    target = patches.gather(1, out.masked[:, 10:, None].expand(-1, -1, 512))
    target = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    torch.testing.assert_close(loss, (out.prediction[:, 10:] - target).square().mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("level", [0.0, -0.7, 1e4])
def test_an_empty_scan_gives_finite_loss_and_gradients(model, level):
    loss = model(torch.full((2, 1, 32, 32, 32), level)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_nearly_constant_patches_are_background(model, noise):
    scans = 1e-3 * torch.randn(3, 1, 32, 32, 32)
    assert model(scans, noise).loss == 0
    scans[:, :, 12:20, 12:20, 12:20] += torch.randn(3, 1, 8, 8, 8)
    loss = model(scans, noise).loss
    assert loss < 5


def test_a_reconstruction_keeps_visible_patches(model, scans, noise):
    image, mask = model.reconstruct(scans, noise)
    assert image.shape == mask.shape == scans.shape
    assert torch.equal(image[~mask], scans[~mask])
    assert not torch.equal(image[mask], scans[mask])
    assert mask.float().mean() == 0.75


def test_a_reconstruction_has_the_level_and_contrast_of_the_true_patches(model, scans, noise):
    # A perfect prediction of the normalised target gives the scan back.
    class Perfect(torch.nn.Module):
        def forward(self, _):
            target = patchify(scans, 8).gather(1, noise.argsort(dim=1)[:, 16:, None].expand(-1, -1, 512))
            return (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)

    model.decoder_pred = Perfect()
    torch.testing.assert_close(model.reconstruct(scans, noise)[0], scans, atol=1e-5, rtol=1e-5)


@pytest.fixture
def brain():
    """Return the places that hold brain: all but an outer layer on two sides."""
    places = torch.ones(4, 4, 4, dtype=torch.bool)
    places[0] = places[:, 3] = False
    return places.flatten()


@pytest.fixture
def of_brain(model, brain):
    return MAE3D(model.encoder, model.shape, 0.75, foreground=brain)


def test_background_is_neither_shown_nor_scored(of_brain, scans, noise, brain):
    assert (of_brain.used, of_brain.visible) == (36, 9)
    out = of_brain(scans, noise)
    assert brain[out.masked].all()
    assert out.masked.shape == (3, 27)
    assert not out.mask[:, ~brain].any()
    assert torch.equal(out.mask, of_brain.mask(noise))
    patches = patchify(scans, 8)
    patches[:, ~brain] = 7 * torch.randn(3, 28, 512)
    other = of_brain(unpatchify(patches, 8), noise)
    assert torch.equal(other.prediction, out.prediction)
    assert torch.equal(other.loss, out.loss)


def test_all_places_as_foreground_are_no_restriction(model, scans, noise):
    everywhere = MAE3D(model.encoder, model.shape, 0.75, foreground=torch.ones(N, dtype=torch.bool))
    everywhere.load_state_dict(model.state_dict())
    assert torch.equal(everywhere(scans, noise).prediction, model(scans, noise).prediction)


def test_a_reconstruction_leaves_the_background_as_it_is(of_brain, scans, noise, brain):
    image, mask = of_brain.reconstruct(scans, noise)
    assert torch.equal(patchify(image, 8)[:, ~brain], patchify(scans, 8)[:, ~brain])
    assert not patchify(mask, 8)[:, ~brain].any()


@pytest.mark.parametrize("ratio", [0.0, 0.999])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio):
    with pytest.raises(UserError, match="mask_ratio"):
        build_mae(BACKBONE, DECODER, ratio)


def test_a_decoder_that_cannot_be_built_is_refused():
    with pytest.raises(UserError, match="decoder width 512"):
        build_mae(BACKBONE, {"width": 512, "depth": 8, "heads": 12}, 0.75)
