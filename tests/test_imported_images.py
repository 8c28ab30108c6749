"""Weights of other libraries' networks of images give the features that those networks give."""

import pytest
import torch
import torch.nn.functional as F

from neuropeft.backbones.build import build_backbone
from neuropeft.backbones.checkpoints import load_encoder, save_tensors
from neuropeft.errors import UserError
from neuropeft.pretraining.images import import_vit_2d
from neuropeft.pretraining.imported import import_encoder

WIDTH, DEPTH, HEADS, PATCH, SIZE = 48, 2, 4, 8, 32
VIT = {
    "kind": "vit_2d",
    "width": WIDTH,
    "depth": DEPTH,
    "heads": HEADS,
    "patch_size": PATCH,
    "image_size": SIZE,
}
RESNET = {"kind": "resnet50_2d", "image_size": 64}
MEAN, SD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SHAPES = {
    "vit_b_16": (768, 12, 16, 224, False),
    "vit_l_16": (1024, 24, 16, 224, False),
    "dinov2_s_14": (384, 12, 14, 518, True),
    "dinov2_b_14": (768, 12, 14, 518, True),
    "dinov2_l_14": (1024, 24, 14, 518, True),
}


def drawn(*shape):
    return 0.1 * torch.randn(shape) if torch.empty(0).device.type == "cpu" else torch.empty(shape)


def timm_vit(width=WIDTH, depth=DEPTH, patch=PATCH, size=SIZE, layer_scale=False, channels=3):
    """Return random weights of a ViT by timm's names, which MAE and DINOv2 share."""
    state = {
        "cls_token": drawn(1, 1, width),
        "pos_embed": drawn(1, 1 + (size // patch) ** 2, width),
        "patch_embed.proj.weight": drawn(width, channels, patch, patch),
        "patch_embed.proj.bias": drawn(width),
        "norm.weight": 1 + drawn(width),
        "norm.bias": drawn(width),
    }
    layers = {
        "attn.qkv": (width, 3),
        "attn.proj": (width, 1),
        "mlp.fc1": (width, 4),
        "mlp.fc2": (4 * width, 0.25),
    }
    for block in range(depth):
        for name, (inputs, factor) in layers.items():
            state[f"blocks.{block}.{name}.weight"] = drawn(int(inputs * factor), inputs)
            state[f"blocks.{block}.{name}.bias"] = drawn(int(inputs * factor))
        for norm in ("norm1", "norm2"):
            state[f"blocks.{block}.{norm}.weight"] = 1 + drawn(width)
            state[f"blocks.{block}.{norm}.bias"] = drawn(width)
        for scale in ("ls1", "ls2") if layer_scale else ():
            state[f"blocks.{block}.{scale}.gamma"] = 0.5 + drawn(width)
    return state


def hugging_face(state):
    """Return the same weights by the names of Hugging Face's `Dinov2Model`."""
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "blocks.": "encoder.layer.",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "attn.proj": "attention.output.dense",
    }
    renamed = {"embeddings.mask_token": torch.zeros(1, WIDTH)}
    for name, value in state.items():
        if name.startswith("norm."):
            name = f"layer{name}"
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            for one, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{one}")] = part
        else:
            renamed[name] = value
    return renamed


def vit_tokens(state, x):
    """Return the tokens [B, 1 + N, width] of standardised images, step by step, after the final norm."""

    def layer(name, y):
        return y @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, y):
        y = y - y.mean(-1, keepdim=True)
        y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return y * state[f"{name}.weight"] + state[f"{name}.bias"]

    weight = state["patch_embed.proj.weight"]
    patches = F.conv2d(x, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1])
    tokens = torch.cat([state["cls_token"].expand(len(x), 1, -1), patches.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + state["pos_embed"]
    for block in (f"blocks.{number}" for number in range(DEPTH)):
        mixed = []
        for q, k, v in zip(
            *(
                y.chunk(HEADS, -1)
                for y in layer(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens)).chunk(3, -1)
            ),
            strict=True,
        ):
            mixed.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
        tokens = tokens + layer(f"{block}.attn.proj", torch.cat(mixed, -1)) * state.get(
            f"{block}.ls1.gamma", 1
        )
        hidden = layer(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens))
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        tokens = tokens + layer(f"{block}.mlp.fc2", hidden) * state.get(f"{block}.ls2.gamma", 1)
    return norm("norm", tokens)


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def imported(settings, state, tmp_path):
    """Return the network that a checkpoint of `state` gives, and the report of its import."""
    torch.save({"model": state}, tmp_path / "theirs.pth")
    report = import_encoder(
        tmp_path / "theirs.pth", tmp_path / "ours.safetensors", build_backbone(settings), {}
    )
    network = build_backbone(settings).eval()
    load_encoder(tmp_path / "ours.safetensors", network)
    return network, report


@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("by", ["timm", "Hugging Face"])
@pytest.mark.parametrize("features", ["class", "mean"])
def test_features_of_a_vit_survive_the_import(images, tmp_path, layer_scale, by, features):
    state = timm_vit(layer_scale=layer_scale)
    tokens = vit_tokens(state, (images - MEAN) / SD)
    named = hugging_face(state) if by == "Hugging Face" else {**state, "head.weight": torch.zeros(3, WIDTH)}
    prefixed = {f"module.{name}": value for name, value in named.items()}
    settings = VIT | {"layer_scale": layer_scale, "features": features}
    network, report = imported(settings, prefixed, tmp_path)
    with torch.no_grad():
        found = network.tokens(images)
    torch.testing.assert_close(
        found, tokens[:, :1] if features == "class" else tokens[:, 1:], atol=1e-5, rtol=1e-5
    )
    left = "embeddings.mask_token" if by == "Hugging Face" else "head.weight"
    assert report == [f"ignored 1 tensors that the encoder has no use for: {left}"]


def test_fixed_positions_are_those_of_mae_and_an_autoencoders_decoder_is_left_out(images, tmp_path):
    state = timm_vit()
    columns, rows = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="xy")
    waves = 10000 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
    parts = [f(place.flatten()[:, None] * waves) for place in (columns, rows) for f in (torch.sin, torch.cos)]
    grid = torch.cat(parts, dim=1)  # MAE's get_2d_sincos_pos_embed
    torch.testing.assert_close(build_backbone(VIT | {"positions": "sincos"}).positions, grid)
    state["pos_embed"] = torch.cat([torch.zeros(1, WIDTH), grid])[None]
    others = {"decoder_embed.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1, 1, 2)}
    network, report = imported(VIT | {"positions": "sincos"}, state | others, tmp_path)
    assert "positions" not in dict(network.named_parameters())
    with torch.no_grad():
        expected = vit_tokens(state, (images - MEAN) / SD)[:, :1]
        torch.testing.assert_close(network.tokens(images), expected, atol=1e-5, rtol=1e-5)
    assert report == ["ignored 2 tensors that the encoder has no use for: decoder_embed.weight, mask_token"]


def test_one_channel_takes_the_sum_over_channels(images, tmp_path):
    state = timm_vit()
    grey = images[:, :1]
    settings = VIT | {"channels": 1, "mean": [0.5], "sd": [0.25]}
    network, report = imported(settings, state, tmp_path)
    expected = vit_tokens(state, ((grey - 0.5) / 0.25).expand(-1, 3, -1, -1))[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(network.tokens(grey), expected, atol=1e-5, rtol=1e-5)
    assert report == ["patch_embed.weight was summed over its 3 channels, as if each saw the same image"]


def test_positions_are_interpolated_to_another_grid(tmp_path):
    state = timm_vit(size=56)
    network, report = imported(VIT, state, tmp_path)
    assert report == ["positions of 49 places were interpolated to 16"]
    square = state["pos_embed"][0, 1:].T.view(1, WIDTH, 7, 7)
    expected = F.interpolate(square, (4, 4), mode="bicubic").view(WIDTH, 16).T
    torch.testing.assert_close(network.positions, expected)
    torch.testing.assert_close(network.class_token, (state["cls_token"][0, 0] + state["pos_embed"][0, 0]))


def test_a_class_token_without_use_is_dropped_and_said(tmp_path):
    _, report = imported(VIT | {"class_token": False, "features": "mean"}, timm_vit(), tmp_path)
    assert report == ["the class token was dropped: features differ from those of the network it was in"]


def test_an_image_networks_weights_fit_slices_of_volumes_of_more_channels(tmp_path):
    state = timm_vit()
    network, report = imported(VIT | {"kind": "vit_slices", "channels": 4}, state, tmp_path)
    theirs, ours = state["patch_embed.proj.weight"], network.patch_embed.weight
    assert report[-1] == "patch_embed.weight of 3 channels was repeated for 4"
    torch.testing.assert_close(ours, 0.75 * torch.cat([theirs, theirs[:, :1]], dim=1))
    torch.testing.assert_close(network.positions, state["pos_embed"][0, 1:])


@pytest.mark.parametrize("shape", SHAPES)
def test_published_shapes_fit(shape):
    width, depth, patch, size, layer_scale = SHAPES[shape]
    settings = {
        "kind": "vit_2d",
        "width": width,
        "depth": depth,
        "heads": width // 64,
        "layer_scale": layer_scale,
    }
    with torch.device("meta"):
        network = build_backbone(settings | {"patch_size": patch, "image_size": 224})
        state, _ = import_vit_2d(timm_vit(width, depth, patch, size, layer_scale), network)
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in network.fitted(state).items()} == wanted


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        network = build_backbone(
            VIT | {"width": 768, "depth": 12, "heads": 12, "patch_size": 16, "image_size": 224}
        )
        resnet = build_backbone(RESNET)
    # Of timm's 85,798,656 without a head 768 are the class token's position, which is in the token.
    assert sum(value.numel() for value in network.parameters()) == 85_798_656 - 768
    assert sum(value.numel() for value in resnet.parameters()) == 25_557_032 - (2048 * 1000 + 1000)


def resnet_map(state, x):
    """Return the last feature map of standardised images by torchvision's layout, step by step."""

    def norm(name, y):
        w = {
            part: state[f"{name}.{part}"].view(-1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        return (y - w["running_mean"]) / (w["running_var"] + 1e-5).sqrt() * w["weight"] + w["bias"]

    def conv(name, y, stride=1, padding=0):
        return F.conv2d(y, state[f"{name}.weight"], stride=stride, padding=padding)

    x = F.max_pool2d(norm("bn1", conv("conv1", x, 2, 3)).relu(), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for number in range(blocks):
            name, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            y = norm(f"{name}.bn1", conv(f"{name}.conv1", x)).relu()
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y, stride, 1)).relu()
            y = norm(f"{name}.bn3", conv(f"{name}.conv3", y))
            if number == 0:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = (x + y).relu()
    return x


def torchvision_resnet():
    """Return random weights of a ResNet-50 by torchvision's names, as of a file that counts no batches."""
    state = {"conv1.weight": drawn(64, 3, 7, 7), **batch_norm("bn1", 64)}
    inputs = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for number in range(blocks):
            name = f"layer{stage}.{number}"
            state[f"{name}.conv1.weight"] = drawn(width, inputs, 1, 1)
            state[f"{name}.conv2.weight"] = drawn(width, width, 3, 3)
            state[f"{name}.conv3.weight"] = drawn(4 * width, width, 1, 1)
            for norm, channels in (("bn1", width), ("bn2", width), ("bn3", 4 * width)):
                state |= batch_norm(f"{name}.{norm}", channels)
            if number == 0:
                state[f"{name}.downsample.0.weight"] = drawn(4 * width, inputs, 1, 1)
                state |= batch_norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def batch_norm(name, channels):
    values = {"weight": 1 + drawn(channels), "bias": drawn(channels), "running_mean": drawn(channels)}
    values["running_var"] = 5 + drawn(channels).abs()
    return {f"{name}.{part}": value for part, value in values.items()}


def test_features_of_torchvisions_resnet_survive_the_import(tmp_path):
    state, images = torchvision_resnet(), torch.rand(1, 3, 64, 64)
    network, report = imported(RESNET, state, tmp_path)
    assert report == ["ignored 2 tensors that the encoder has no use for: fc.bias, fc.weight"]
    with torch.no_grad():
        expected = resnet_map(state, (images - MEAN) / SD).flatten(2).transpose(1, 2)
        scale = expected.abs().max()
        torch.testing.assert_close(network.tokens(images) / scale, expected / scale, atol=1e-5, rtol=1e-5)


def test_another_librarys_safetensors_are_read_as_such(images, tmp_path):
    state = timm_vit()
    save_tensors(tmp_path / "model.safetensors", state, {"format": "pt"})
    network = build_backbone(VIT).eval()
    import_encoder(tmp_path / "model.safetensors", tmp_path / "ours.safetensors", network, {})
    with torch.no_grad():
        expected = vit_tokens(state, (images - MEAN) / SD)[:, :1]
        torch.testing.assert_close(network.tokens(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (VIT, {"layer_scale": True}, r"unexpected \['blocks.0.ls1.gamma'"),
        (VIT | {"layer_scale": True}, {}, r"missing \['blocks.0.ls1.gamma'"),
        (VIT | {"width": 96}, {}, "of another shape"),
        (VIT | {"depth": 1}, {}, r"unexpected \['blocks.1"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, settings, change, message):
    with pytest.raises(UserError, match=message):
        imported(settings, timm_vit(**change), tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    for settings, word in ((VIT, "patch_embed.proj.weight"), (RESNET, "layer1.0.conv1.weight")):
        with pytest.raises(UserError, match=word):
            imported(settings, {"conv.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(UserError, match="densenet121; choose another backbone"):
        imported({"kind": "densenet121"}, {"conv.weight": torch.zeros(1)}, tmp_path)


@pytest.mark.parametrize("name", ["ViT", "Dinov2"])
def test_features_are_those_of_hugging_faces_own_network(images, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    shape = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "patch_size": PATCH,
    }
    more = {"intermediate_size": 4 * WIDTH, "layer_norm_eps": 1e-6} if name == "ViT" else {}
    config = getattr(transformers, f"{name}Config")(**shape, **more, image_size=SIZE)
    theirs = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    network = build_backbone(VIT | {"layer_scale": name == "Dinov2"}).eval()
    import_encoder(tmp_path / "theirs" / "model.safetensors", tmp_path / "ours.safetensors", network, {})
    with torch.no_grad():
        expected = theirs((images - MEAN) / SD).last_hidden_state[:, :1]
        torch.testing.assert_close(network.tokens(images), expected, atol=1e-5, rtol=1e-5)
