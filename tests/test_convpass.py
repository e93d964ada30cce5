"""``convpass``: its numbers at every position, where the grid of the tokens is, and where there is none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import fxtune
from families import FAMILIES, build, generator
from forms import awaken, tuners
from fxtune.errors import PlanError, RuleError
from fxtune.tuners import Placement
from fxtune.tuners import build as make
from fxtune.tuners.convpass import Convpass
from test_tuner_forms import agree, assert_caught, awake, close, draw

# ---- the tuner -------------------------------------------------------------------------------------------------------


def gelu(x: Tensor) -> Tensor:
    return x / (1 + (-1.702 * x).exp())


def written_out(tuner: Any, x: Tensor) -> Tensor:
    """A map B x D x H x W, position by position: nine neighbours, those outside left out."""
    hidden = gelu(torch.einsum("bdhw,md->bmhw", x, tuner.down.weight) + tuner.down.bias[:, None, None])
    height, width = x.shape[2:]
    rows = []
    for i in range(height):
        for j in range(width):
            total: Any = tuner.conv.bias
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        kernel = tuner.conv.weight[:, :, 1 + di, 1 + dj]
                        total = total + hidden[:, :, i + di, j + dj] @ kernel.T
            rows.append(gelu(total) @ tuner.up.weight.T + tuner.up.bias)
    return tuner.factor * torch.stack(rows, 2).unflatten(2, (height, width))


def is_as_written_out(
    cls: type[Convpass], seed: int, width: int, dim: int, sizes: tuple[int, int], scale: float
) -> None:
    tuner: Any = awake(cls(Placement(width, 1, "ffn"), dim=dim, scale=scale), seed).eval()
    x = draw(seed, 2, width, *sizes).requires_grad_()
    agree(lambda: tuner.on_map(x), lambda: written_out(tuner, x), [x, *tuner.parameters()])


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4))
DRAWN = (st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5), SIZES, st.sampled_from([1.0, 0.1, 10.0]))


@given(*DRAWN)
def test_it_is_as_written_out(seed: int, width: int, dim: int, sizes: tuple[int, int], scale: float) -> None:
    is_as_written_out(Convpass, seed, width, dim, sizes, scale)


class Turned(Convpass):
    def on_map(self, x: Tensor) -> Tensor:
        return super().on_map(x.mT).mT


class OneActivation(Convpass):
    def on_map(self, x: Tensor) -> Tensor:
        z: Tensor = self.conv(gelu(self.down(x.movedim(1, -1))).movedim(-1, 1)).movedim(1, -1)
        return (self.factor * self.up(z)).movedim(-1, 1)


@pytest.mark.parametrize("faulty", [Turned, OneActivation])
def test_a_fault_is_seen(faulty: type[Convpass]) -> None:
    assert_caught(is_as_written_out, faulty, *DRAWN)


def test_it_starts_as_its_paper_says() -> None:
    tuner: Any = make("convpass", {"dim": 3}, Placement(50, 1, "mha"), method="on_map", seed=0)
    state = tuner.state_dict()
    assert {name for name, tensor in state.items() if not tensor.any()} == {
        "down.bias", "conv.bias", "up.weight", "up.bias"
    }  # fmt: skip
    assert sum(tensor.numel() for tensor in state.values()) == 2 * 50 * 3 + 9 * 3 * 3 + 2 * 3 + 50
    assert 0.9 * (6 / 53) ** 0.5 < tuner.down.weight.abs().max() <= (6 / 53) ** 0.5
    z = torch.randn(2, 3, 4, 5)
    assert torch.allclose(tuner.conv(z), z, atol=1e-6)
    for dtype in (torch.float32, torch.bfloat16):
        added = tuner(torch.randn(2, 50, 4, 5, dtype=dtype))
        assert added.dtype == dtype and not added.any()
    drawn = make("convpass", {"dim": 3, "conv": "xavier"}, Placement(50, 1, "mha"), seed=0)
    assert 0.8 * (6 / 54) ** 0.5 < drawn.conv.weight.abs().max() <= (6 / 54) ** 0.5
    tuner.train()(torch.randn(2, 50, 4, 5)).sum().backward()
    assert tuner.up.weight.grad.any()


def test_a_published_number_of_weights() -> None:
    """0.33 million on ViT-B/16."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    data = {"train": ["tuners"], "rules": [{"at": at, "insert": "convpass"} for at in ("mha", "ffn")]}
    patch = fxtune.inspect(model, data).patch
    assert patch is not None and len(patch.insertions) == 24
    assert {(i.place.prefix, i.place.grid) for i in patch.insertions} == {(1, (14, 14))}
    assert 24 * sum(p.numel() for p in Convpass(patch.insertions[0].place).parameters()) == 327_552


# ---- in vision transformers ------------------------------------------------------------------------------------------


def timm_vit(**settings: Any) -> nn.Module:
    usual: dict[str, Any] = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**usual, "num_classes": 3, **settings})


def hybrid() -> nn.Module:
    """Tokens of a small convolutional network's map."""
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    return timm_vit(embed_layer=lambda **settings: HybridEmbed(backbone, **settings), patch_size=2)


def torchvision_vit() -> nn.Module:
    model: nn.Module = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=40, num_classes=3
    )
    nn.init.normal_(model.heads[0].weight)
    return model


def hf(kind: str, **more: Any) -> Callable[[], nn.Module]:
    def built() -> nn.Module:
        config = getattr(transformers, f"{kind}Config")(
            hidden_size=24, num_attention_heads=2, num_hidden_layers=2, patch_size=8, **more
        )
        model: nn.Module = getattr(transformers, f"{kind}Model")(config)
        return model

    return built


def image(height: int = 32, width: int = 48, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=generator(batch), dtype=torch.float64)


TIMM = ("blocks.{}.norm1", "blocks.{}.attn", "blocks.{}.norm2", "blocks.{}.mlp")
TORCHVISION = tuple(f"encoder.layers.encoder_layer_{{}}.{end}" for end in ("ln_1", "dropout", "ln_2", "mlp"))

VITS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], int, Tensor]] = {
    # how it is built; the norms and the ends of the branches; the tokens before the grid; images
    "class token": (timm_vit, TIMM, 1, image()),
    "layer scale": (
        lambda: timm_vit(init_values=0.5),
        ("blocks.{}.norm1", "blocks.{}.ls1", "blocks.{}.norm2", "blocks.{}.ls2"),
        1,
        image(),
    ),
    "registers": (lambda: timm_vit(reg_tokens=2, no_embed_class=True), TIMM, 3, image()),
    "distilled": (
        lambda: timm.models.deit.VisionTransformerDistilled(
            img_size=(32, 48), patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
        ),
        TIMM,
        2,
        image(),
    ),
    "no prefix": (lambda: timm_vit(class_token=False, global_pool="avg"), TIMM, 0, image()),
    "hybrid": (hybrid, TIMM, 1, image()),
    "torchvision": (torchvision_vit, TORCHVISION, 1, image(32, 32)),
    "any size": (lambda: timm_vit(dynamic_img_size=True), TIMM, 1, image()),
}
RULES: dict[str, Any] = {"rules": [{"at": at, "insert": {"convpass": {"dim": 3}}} for at in ("mha", "ffn")]}


def hooked(model: nn.Module, places: tuple[str, ...], own: Any, prefix: int, sizes: tuple[int, int]) -> nn.Module:
    """The model, the tuners written out and hung beside its branches."""
    model = copy.deepcopy(model)
    norms: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda module, args, output: norms.update({name: output})

    def add(norm: str, tuner: nn.Module) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            x, behind = norms[norm], prefix + sizes[0] * sizes[1]
            alone = [written_out(tuner, x[:, i, :, None, None]).flatten(1)[:, None] for i in range(x.shape[1])]
            grid = x[:, prefix:behind].permute(0, 2, 1).reshape(len(x), -1, *sizes)
            together = written_out(tuner, grid).flatten(2).permute(0, 2, 1)
            return output + torch.cat([*alone[:prefix], together, *alone[behind:]], 1)

        return hook

    for block in range(2):
        for norm, end, tuner in ((places[0], places[1], own[2 * block]), (places[2], places[3], own[2 * block + 1])):
            model.get_submodule(norm.format(block)).register_forward_hook(remember(norm.format(block)))
            model.get_submodule(end.format(block)).register_forward_hook(add(norm.format(block), tuner))
    return model


def in_order(model: nn.Module, tuned: nn.Module, x: Tensor) -> list[nn.Module]:
    """The tuners by block, that of the attention first."""
    patch = fxtune.inspect(model, RULES, example_inputs=(x,)).patch
    assert patch is not None
    found = sorted(patch.insertions, key=lambda insertion: (insertion.site.block, insertion.site.kind != "mha"))
    return [tuned.get_submodule(insertion.path) for insertion in found]


@pytest.mark.parametrize("name", VITS)
def test_it_stands_beside_each_branch_of_a_vision_transformer(name: str) -> None:
    make_model, places, prefix, x = VITS[name]
    model = make_model().double().eval()
    tuned = fxtune.apply(model, RULES, example_inputs=(x,), dtype=torch.float64, seed=0).eval()
    own = in_order(model, tuned, x)
    assert len(own) == 4
    with torch.no_grad():  # torchvision's attention computes by a shorter way in evaluation, a few bits off
        close(tuned(x), model(x), 1e-14 if name == "torchvision" else 0.0)
    awaken(tuned)
    sizes = [(x.shape[2] // 8, x.shape[3] // 8)] + [(7, 2)] * (name == "any size")
    for rows, columns in sizes:
        images = image(8 * rows, 8 * columns, 3)
        expected = hooked(model, places, own, prefix, (rows, columns))(images)
        assert (expected - model(images)).abs().max() > 1e-2 * expected.abs().max()
        close(tuned(images).detach(), expected.detach(), 1e-12)


@pytest.mark.parametrize(
    ("kind", "more", "prefix"),
    [
        ("ViT", {"image_size": [32, 48], "intermediate_size": 40}, 1),
        ("DeiT", {"image_size": [32, 48], "intermediate_size": 40}, 2),
        ("Dinov2WithRegisters", {"image_size": 48, "num_register_tokens": 3, "mlp_ratio": 2}, 4),  # images of any size
    ],
)
def test_it_knows_the_grid_of_other_libraries(kind: str, more: dict[str, Any], prefix: int) -> None:
    model = hf(kind, **more)().eval()
    x = {"pixel_values": image().float()}
    patch = fxtune.inspect(model, RULES, example_inputs=((), x)).patch
    assert patch is not None and len(patch.insertions) == 4
    assert {(i.place.prefix, i.place.grid) for i in patch.insertions} == {(prefix, (4, 6))}
    tuned = fxtune.apply(model, RULES, example_inputs=((), x)).eval()
    awaken(tuned)
    assert not torch.equal(tuned(**x)[0], model(**x)[0])


@pytest.mark.parametrize("name", ["class token", "any size"])
def test_a_tuned_vision_transformer_is_an_ordinary_model(name: str) -> None:
    """Copied, saved and checkpointed it computes the same; only what is read is computed where that is asked for."""
    make_model, _, _, x = VITS[name]
    model, x = make_model().eval(), x.float()
    tuned = fxtune.apply(model, RULES, example_inputs=(x,), seed=0).eval()
    awaken(tuned)
    output = tuned(x)
    assert torch.equal(copy.deepcopy(tuned)(x), output)
    lean = fxtune.apply(model, RULES, example_inputs=(x,), optimize=True).eval()
    lean.load_state_dict(tuned.state_dict())
    close(lean(x), output, 1e-5)
    both = []
    for checkpointing in (False, True):
        tuned.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        both.append(torch.autograd.grad(tuned.train()(x).sum(), list(tuners(tuned).values())))
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))
    assert tuned.strip() is model


@pytest.mark.parametrize("order", [["vpt_shallow", "convpass"], ["convpass", "vpt_shallow"]], ids="+".join)
@pytest.mark.parametrize("settings", [{}, {"class_token": False, "global_pool": "avg"}], ids=["class token", "none"])
def test_prompts_are_no_positions(order: list[str], settings: dict[str, Any]) -> None:
    """Rows that have joined the tokens behind the grid are maps of one position each, as the class token is."""
    model, x = timm_vit(**settings).double().eval(), image()
    tuned = fxtune.apply(model, order, example_inputs=(x,), dtype=torch.float64, tokens=2).eval()
    awaken(tuned)
    (prompts,) = (weight for name, weight in tuned.named_parameters() if name.endswith("prompts"))
    reference: Any = hooked(model, TIMM, in_order(model, tuned, x), 0 if settings else 1, (4, 6))
    reference.norm_pre.register_forward_hook(
        lambda module, args, output: torch.cat([output, prompts.expand(len(output), -1, -1)], 1)
    )
    reference.blocks[-1].register_forward_hook(lambda module, args, output: output[:, :-2])
    close(tuned(x).detach(), reference(x).detach(), 1e-12)


@pytest.mark.parametrize("layout", [False, True], ids=["channels last", "channels first"])
def test_maps_are_read_as_they_are(layout: bool) -> None:
    settings = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 3, "conv_mlp": layout}
    model = timm.models.ConvNeXt(ls_init_value=0.5, **settings).double().eval()
    x = image(64, 96)
    rules = {"rules": [{"at": "ffn", "insert": {"convpass": {"dim": 3}}}]}
    tuned = fxtune.apply(model, rules, example_inputs=(x,), dtype=torch.float64).eval()
    awaken(tuned)
    reference = copy.deepcopy(model)
    for stage in range(4):
        block = reference.get_submodule(f"stages.{stage}.blocks.0")
        tuner = next(
            m for n, m in tuned.named_modules() if n.startswith(f"stages.{stage}.") and isinstance(m, Convpass)
        )
        beside(block, tuner, layout)
    close(tuned(x).detach(), reference(x).detach(), 1e-12)


def beside(block: Any, tuner: nn.Module, channels_first: bool) -> None:
    """A ConvNeXt block with the tuner, written out, beside its feed-forward network."""

    def forward(x: Tensor) -> Tensor:
        h = block.conv_dw(x)
        h = h if channels_first else h.permute(0, 2, 3, 1)
        h = block.norm(h)
        y = block.mlp(h)
        read, y = (h, y) if channels_first else (h.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2))
        return x + y * block.gamma.reshape(1, -1, 1, 1) + written_out(tuner, read)

    block.forward = forward


# ---- where it does not go --------------------------------------------------------------------------------------------


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(1,), num_heads=(2,), num_classes=5
    )


class Shuffled(nn.Module):
    """Tokens of a map in another order, or of two maps."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order, self.patches, self.other = order, nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(3, 8, 4, stride=4)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        if self.order == "rolled":
            tokens = tokens + tokens.roll(1, 1)
        elif self.order == "behind":
            tokens = torch.cat([tokens, tokens.new_zeros(len(tokens), 1, 8)], 1)
        elif self.order == "two maps":
            tokens = torch.cat([tokens, self.other(x).flatten(2).mT], 1)
        elif self.order == "columns":
            tokens = self.patches(x).mT.flatten(2).mT
        y: Tensor = tokens + self.down(torch.relu(self.up(self.norm(tokens))))
        return y


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str, str]] = {
    "bert": (lambda: build("bert"), FAMILIES["bert"].inputs(2), "mha", "no map of a convolution is flattened"),
    "windows": (swin, {"x": image(32, 32).float()}, "mha", "no longer in rows of one sequence"),
    "patch dropout": (
        lambda: timm_vit(patch_drop_rate=0.5).train(), {"x": image().float()}, "mha", "its tokens are a map's positions"
    ),
    **{
        order: (lambda order=order: Shuffled(order), {"x": image(16, 24).float()}, "ffn", found)
        for order, found in {
            "rolled": "no map of a convolution",
            "behind": "not all of them in their order at the end",
            "two maps": "not all of them in their order at the end",
            "columns": "not all of them in their order at the end",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_site_without_a_grid_is_refused(name: str) -> None:
    make_model, inputs, at, found = REFUSED[name]
    rules = {"rules": [{"at": at, "insert": "convpass"}]}
    with pytest.raises(PlanError, match="convpass computes on maps, and finds none at the") as error:
        fxtune.apply(make_model(), rules, example_inputs=((), inputs))
    assert found in str(error.value) and f"the {at} at `" in str(error.value)


def test_tokens_in_their_order_are_not_refused() -> None:
    rules = {"rules": [{"at": "ffn", "insert": "convpass"}]}
    assert fxtune.apply(Shuffled("plain"), rules, example_inputs=(image(16, 24).float(),)).trainable


def test_it_has_one_form_and_no_place_in_a_bypass() -> None:
    with pytest.raises(RuleError, match="has none"):
        fxtune.apply(build("vit"), "convpass", form="original")
    with pytest.raises(PlanError):
        fxtune.apply(build("vit"), {"bypass": {"horizontal": "convpass"}})
