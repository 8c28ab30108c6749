import math
from dataclasses import replace

import pytest
import torch

from neuropeft.errors import UserError
from neuropeft.train.augment import Augmentation, augment, read_augmentation

ALL = Augmentation(
    flip=True, rotate_deg=10, scale=0.1, translate_voxels=2, intensity=0.2, noise=0.3, contrast=0.3,
    bias=0.2, sharpness=0.5,
)  # fmt: skip


def volumes(number: int = 6, edge: int = 12) -> torch.Tensor:
    return torch.randn(number, 1, edge, edge, edge, generator=torch.Generator().manual_seed(1))


def blob(edge: int = 21) -> torch.Tensor:
    """Return one volume with a smooth blob off the centre along the second axis."""
    axis = torch.arange(edge) - (edge - 1) / 2
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.exp(-(x**2 + (y - 5) ** 2 + z**2) / 8)[None, None]


def centre(volume: torch.Tensor) -> torch.Tensor:
    axis = torch.arange(volume.shape[-1]) - (volume.shape[-1] - 1) / 2
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    weight = volume[0, 0] / volume.sum()
    return torch.stack([(weight * a).sum() for a in (x, y, z)])


def test_nothing_on_changes_nothing() -> None:
    batch = volumes()
    assert torch.equal(augment(batch, Augmentation(), 0, 0), batch)


def test_same_arguments_same_changes_others_other_changes() -> None:
    batch = volumes()
    changed = augment(batch, ALL, 0, 3)
    torch.rand(7)
    assert torch.equal(changed, augment(batch, ALL, 0, 3))
    for seed, step in ((1, 3), (0, 4)):
        assert not torch.allclose(changed, augment(batch, ALL, seed, step))


def test_parts_of_a_batch_are_changed_as_in_the_whole() -> None:
    batch = volumes()
    whole = augment(batch, ALL, 0, 1)
    parts = [augment(batch[a:b], ALL, 0, 1, a, len(batch)) for a, b in ((0, 2), (2, 5), (5, 6))]
    assert torch.equal(whole, torch.cat(parts))


def test_flip_swaps_left_and_right_in_about_half() -> None:
    batch = volumes(200, 4)
    changed = augment(batch, Augmentation(flip=True), 0, 0)
    same = (changed == batch).flatten(1).all(dim=1)
    mirrored = (changed == batch.flip(2)).flatten(1).all(dim=1)
    assert bool((same ^ mirrored).all())
    assert 70 < int(mirrored.sum()) < 130


def test_translation_moves_by_at_most_the_given_voxels() -> None:
    places = [
        centre(augment(blob(), Augmentation(translate_voxels=2), seed, 0)) - torch.tensor([0.0, 5.0, 0.0])
        for seed in range(20)
    ]
    largest = torch.stack(places).abs().amax()
    assert 1 < largest < 2.05


def test_rotation_keeps_the_distance_and_stays_below_the_given_angle() -> None:
    angles = []
    for seed in range(20):
        place = centre(augment(blob(), Augmentation(rotate_deg=20), seed, 0))
        assert float(place.norm()) == pytest.approx(5, abs=0.15)
        angles.append(math.degrees(math.acos(min(1.0, float(place[1] / place.norm())))))
    assert 10 < max(angles) < 20 * math.sqrt(3)


def test_scale_changes_the_size_by_at_most_the_given_share() -> None:
    distances = [
        float(centre(augment(blob(), Augmentation(scale=0.2), seed, 0)).norm()) for seed in range(20)
    ]
    assert 5 / 1.2 - 0.1 < min(distances) < 4.7
    assert 5.3 < max(distances) < 5 / 0.8 + 0.1


def test_outside_is_filled_with_the_border() -> None:
    batch = torch.full((4, 1, 8, 8, 8), -0.7)
    moved = augment(batch, Augmentation(rotate_deg=20, translate_voxels=3), 0, 0)
    assert torch.allclose(moved, batch)


def test_intensity_scales_and_shifts_each_volume() -> None:
    batch = volumes(50)
    changed = augment(batch, Augmentation(intensity=0.1), 0, 0)
    contrast = changed.flatten(1).std(dim=1) / batch.flatten(1).std(dim=1)
    assert 0.9 <= float(contrast.min()) < 0.95 < 1.05 < float(contrast.max()) <= 1.1
    shift = (changed - contrast.view(-1, 1, 1, 1, 1) * batch).flatten(1)
    assert float(shift.std(dim=1).max()) < 1e-5
    assert 0.05 < float(shift.abs().max()) <= 0.1001


def test_contrast_bends_intensities_and_keeps_their_order_and_ends() -> None:
    batch = volumes(40)
    changed = augment(batch, Augmentation(contrast=0.5), 0, 0)
    bends = []
    for before, after in zip(batch.flatten(1), changed.flatten(1), strict=True):
        order = before.argsort()
        assert (after[order].diff() > -1e-5).all()
        for edge in (torch.amin, torch.amax):
            assert float(edge(after)) == pytest.approx(float(edge(before)), abs=1e-5)
        height = (before - before.min()) / (before.max() - before.min())
        middle = (height - 0.5).abs().argmin()
        bends.append(4 * float((after - before)[middle] / (before.max() - before.min())))
    assert -0.5 <= min(bends) < -0.3 < 0.3 < max(bends) <= 0.5


def test_a_bias_field_is_smooth_and_leaves_the_background() -> None:
    batch = torch.ones(6, 1, 12, 12, 12)
    batch[:, :, 0] = 0.0  # the background
    changed = augment(batch, Augmentation(bias=0.2), 0, 0)
    assert not changed[:, :, 0].any()
    field = changed[:, :, 1:]
    assert math.exp(-0.2) <= float(field.min()) < 0.95 < 1.05 < float(field.max()) <= math.exp(0.2)
    steps = torch.stack([field.diff(dim=axis).abs().amax() for axis in (2, 3, 4)])
    assert float(steps.max()) < 2 * 0.2 / 5
    assert not torch.equal(field[0], field[1])


def test_sharpness_weighs_detail_within_three_voxels() -> None:
    batch = volumes(30)
    changed = augment(batch, Augmentation(sharpness=0.5), 0, 0)
    smooth = torch.nn.functional.avg_pool3d(batch, 3, 1, 1, count_include_pad=False)
    detail, kept = (batch - smooth).flatten(1), (changed - smooth).flatten(1)
    weights = (detail * kept).sum(1) / detail.square().sum(1)
    torch.testing.assert_close(kept, weights[:, None] * detail, atol=1e-4, rtol=1e-4)
    assert 0.5 <= float(weights.min()) < 0.7 < 1.3 < float(weights.max()) <= 1.5
    flat = torch.full((3, 1, 6, 6, 6), 0.7)
    torch.testing.assert_close(augment(flat, Augmentation(sharpness=0.5), 0, 0), flat)


def test_noise_has_the_given_deviation() -> None:
    batch = torch.zeros(4, 1, 16, 16, 16)
    noise = augment(batch, Augmentation(noise=0.3), 0, 0)
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert not torch.equal(noise[0], noise[1])


def test_options_are_read_and_unknown_ones_refused() -> None:
    assert read_augmentation(None) == Augmentation()
    assert read_augmentation({"flip": False, "rotate_deg": False, "noise": 0}) == Augmentation()
    assert read_augmentation({"flip": True, "scale": 0.05}) == Augmentation(flip=True, scale=0.05)
    with pytest.raises(UserError, match="rotate_degrees"):
        read_augmentation({"rotate_degrees": 5})


def images(number: int = 8, channels: int = 3, edge: int = 24) -> torch.Tensor:
    return torch.rand(number, channels, edge, edge, generator=torch.Generator().manual_seed(1))


def spot(edge: int = 41) -> torch.Tensor:
    """Return one image with a smooth spot below the centre."""
    axis = torch.arange(edge) - (edge - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.exp(-((y - 10) ** 2 + x**2) / 8)[None, None]


def centre_of(image: torch.Tensor) -> torch.Tensor:
    axis = torch.arange(image.shape[-1]) - (image.shape[-1] - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([(image[0, 0] * place).sum() / image.sum() for place in (y, x)])


OF_IMAGES = replace(ALL, crop=0.4, colour=0.4)


def test_an_image_is_changed_in_the_same_way_on_any_number_of_processes() -> None:
    batch = images()
    whole = augment(batch, OF_IMAGES, 0, 3)
    assert whole.shape == batch.shape
    assert torch.isfinite(whole).all()
    assert all(not torch.equal(one, other) for one, other in zip(whole, batch, strict=True))
    parts = [augment(batch[i : i + 2], OF_IMAGES, 0, 3, first=i, total=8) for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.equal(augment(batch, OF_IMAGES, 0, 4), whole)


def test_left_and_right_of_an_image_are_its_last_axis() -> None:
    batch = images(40)
    mirrored = augment(batch, Augmentation(flip=True), 0, 0)
    flipped = [torch.equal(one, other.flip(2)) for one, other in zip(mirrored, batch, strict=True)]
    kept = [torch.equal(one, other) for one, other in zip(mirrored, batch, strict=True)]
    assert all(one != other for one, other in zip(flipped, kept, strict=True))
    assert 10 < sum(flipped) < 30


def test_images_turn_and_move_in_their_plane() -> None:
    angles, places = [], []
    for seed in range(20):
        y, x = centre_of(augment(spot(), Augmentation(rotate_deg=30), seed, 0))
        assert math.hypot(y, x) == pytest.approx(10, abs=0.2)
        angles.append(math.degrees(math.atan2(x, y)))
        places.append(centre_of(augment(spot(), Augmentation(translate_voxels=3), seed, 0)))
    assert -30.5 < min(angles) < -15 < 15 < max(angles) < 30.5
    moved = torch.stack(places) - torch.tensor([10.0, 0.0])
    assert 1.5 < moved.abs().amax() < 3.05


def test_a_crop_is_a_part_of_the_image_that_is_stretched_to_its_size() -> None:
    # Pixels that hold their own place show where a crop lies.
    axis = torch.linspace(-1, 1, 65)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    batch = torch.stack([rows, columns])[None].repeat(60, 1, 1, 1)
    found = augment(batch, Augmentation(crop=0.5), 0, 0)
    sides = (found.amax(dim=(2, 3)) - found.amin(dim=(2, 3))) / 2  # [60, 2], of height and width
    area, ratio = sides.prod(dim=1), sides[:, 1] / sides[:, 0]
    assert 0.45 < float(area.min()) < 0.6
    assert 0.85 < float(area.max()) < 1.02
    assert 0.74 < float(ratio.min()) < 0.85 < 1.18 < float(ratio.max()) < 1.36
    middle = found[:, :, 32, 32]
    assert middle.abs().amax() > 0.1
    assert ((middle.abs() + sides) < 1.02).all(), "inside the image"


def test_colour_changes_keep_luminance_and_grey() -> None:
    batch = images(40)
    changed = augment(batch, Augmentation(colour=0.4), 0, 0)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((changed * weights).sum(1), (batch * weights).sum(1), atol=1e-4, rtol=1e-4)
    grey = images(4, 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(augment(grey, Augmentation(colour=0.4), 0, 0), grey, atol=2e-3, rtol=2e-3)
    chroma = [(one - (one * weights).sum(1, keepdim=True)).flatten(1).norm(dim=1) for one in (changed, batch)]
    ratio = chroma[0] / chroma[1]
    assert float(ratio.min()) < 0.8 < 1.2 < float(ratio.max())


def test_what_is_for_images_is_refused_for_others() -> None:
    with pytest.raises(UserError, match=r"augment\.crop is for images"):
        augment(volumes(), Augmentation(crop=0.1), 0, 0)
    with pytest.raises(UserError, match=r"augment\.colour is for images of three channels"):
        augment(images(2, 1), Augmentation(colour=0.1), 0, 0)
