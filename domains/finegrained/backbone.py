"""Plain vision transformers of timm, with patches of pixels or of a ResNet's features; weights from local files.

A. Dosovitskiy et al. (ICLR 2021), arXiv 2010.11929; H. Touvron et al. (DeiT, ICML 2021), arXiv 2012.12877. Layers and
names are timm's own, so whatever was trained with timm or DeiT loads as it is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from domains.common.attention import PairwiseCrossAttention
from domains.common.errors import CheckpointMismatchError, ConfigError, MissingExtraError, UnsafeFileError
from domains.common.files import fill, local_path, read_tensors
from domains.common.foreign import read_foreign_tensors

# parts of timm's models behind the last block's norm, which have no place here
HEADS = ("head.", "head_dist.", "fc_norm.", "pre_logits.", "attn_pool.")
# modules of timm that make plain vision transformers, among others
FAMILIES = ("vision_transformer", "vision_transformer_hybrid", "deit")
SUPPORTED = (
    "take a plain vision transformer of timm with a class token: vit_*_patch* (not siglip, gap, rope, dinov3), its clip"
    " and dinov2 models, deit_* (not distilled), deit3_*, or with a ResNet in front vit_*_r26_*, vit_*_r50_*"
)


def build_trunk(
    name: str, image_size: Sequence[int], *, drop_path: float = 0.0, options: Mapping[str, Any] | None = None
) -> Any:
    """Build a plain vision transformer whose self-attention can attend to a second image, too.

    Args:
        name: of the model in timm, with or without the tag of its weights, which are not fetched.
        image_size: height and width of images, multiples of the patch.
        drop_path: stochastic depth of the last block; it grows from 0 along the blocks.
        options: in the place of what the name says: `patch_size`, `embed_dim`, `depth`, `num_heads`, ...

    Raises:
        ConfigError: timm has no such model, it is no plain vision transformer with a class token, or the patches do not
            fill the image.
        MissingExtraError: timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise MissingExtraError("timm", "finegrained") from None
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.5)
        advice = f"near are {', '.join(near)}" if near else "timm.list_models('vit_*') lists them"
        raise ConfigError(f"backbone {name!r}: timm {timm.__version__} has no such model; {advice}")
    family = timm.models.model_entrypoint(architecture).__module__.split(".")[-1]
    if family in FAMILIES and "_distilled" in architecture:
        raise ConfigError(
            f"backbone {name!r} has a distillation token beside the class token; take the model without it"
            f" ({architecture.replace('_distilled', '')})"
        )
    # nothing is pooled here, and models without a class token must be built to be told apart
    arguments = {"num_classes": 0, "global_pool": "", "drop_path_rate": drop_path, **(options or {})}
    try:
        trunk: Any = timm.create_model(architecture, pretrained=False, img_size=tuple(image_size), **arguments)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        if family not in FAMILIES:  # they refuse the options of vision transformers, each in its own way
            raise ConfigError(_other_family(name, family)) from None
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"backbone {name!r} cannot be built with image_size {list(image_size)} and backbone_options"
            f" {dict(options or {})} ({reason}); correct them"
        ) from None
    _check_plain(name, family, trunk)
    _check_size(name, trunk, image_size)
    for block in trunk.blocks:
        block.attn = PairwiseCrossAttention.around(block.attn)
    return trunk


def _other_family(name: str, family: str) -> str:
    return (
        f"backbone {name!r} is of another family of networks (timm's {family}) than DCAL builds on, which follows the"
        f" attention of a class token through all layers; {SUPPORTED}"
    )


def _check_plain(name: str, family: str, trunk: Any) -> None:
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(trunk) is not VisionTransformer:
        raise ConfigError(_other_family(name, family))
    reason = ""
    if trunk.cls_token is None:
        reason = "it has no class token, whose attention DCAL follows and which decides: it pools its patches"
    elif trunk.pos_embed is None:
        reason = "it adds no position embeddings to its patches"
    else:
        for block in trunk.blocks:
            attention = getattr(block, "attn", None)
            if type(block) is not Block or type(attention) is not Attention:
                reason = "its blocks are not attention followed by a feed-forward network, one after the other"
            elif attention.gate is not None or not isinstance(attention.norm, nn.Identity):
                reason = "its attention is gated or normalised"
    if reason:
        raise ConfigError(f"backbone {name!r} is no plain vision transformer ({reason}); {SUPPORTED}")


def _check_size(name: str, trunk: Any, image_size: Sequence[int]) -> None:
    patch = trunk.patch_embed.feat_ratio(as_scalar=False)
    stride = re.search(r"_s(\d+)", name) if hasattr(trunk.patch_embed, "backbone") else None
    if stride is not None:  # a ResNet in front takes any size, and its features do not lie on a grid of pixels then
        patch = (int(stride[1]), int(stride[1]))
    if len(image_size) != 2 or any(side < step or side % step for side, step in zip(image_size, patch, strict=True)):
        near = [max(step, round(side / step) * step) for side, step in zip(image_size, patch, strict=False)]
        raise ConfigError(
            f"image_size {list(image_size)}: patches of {patch[0]} x {patch[1]} of {name!r} do not fill it; "
            f"take {' x '.join(map(str, near))}"
        )


def embed(trunk: Any, images: Tensor) -> Tensor:
    """Patches, class token and position embeddings: (B, 3, H, W) -> (B, prefix + N, D)."""
    x: Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))
    return x


def finish_block(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """Residual sums and feed-forward network of a block, after its attention (B, L, D)."""
    x = x + block.drop_path1(block.ls1(attended))
    out: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return out


def load_trunk(trunk: nn.Module, source: str | Path) -> None:
    """Load the weights of timm, DeiT or Google's `.npz`, or those of a DCAL; a classifier among them is left out.

    Position embeddings of another size are resampled (bicubic, with antialiasing).

    Args:
        trunk: of `build_trunk`.
        source: a local file or model directory. Nothing of it is executed.

    Raises:
        CheckpointMismatchError: names or shapes differ.
        UnsafeFileError: it is a URL, or no readable file of weights.
        CheckpointNotFoundError: it does not exist.
    """
    path = local_path(source)
    if path.suffix == ".npz":
        _load_npz(trunk, path)
        return
    known = path.is_dir() or path.suffix in (".safetensors", ".ckpt")
    fill(trunk, trunk_weights(trunk, read_tensors(path) if known else read_foreign_tensors(path), str(path)), str(path))


def trunk_weights(trunk: Any, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the weights of a trunk, by its names, among those of a program that trained one."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    marks = [name.removesuffix("cls_token") for name in weights if name.endswith("trunk.cls_token")]
    if marks:  # a DCAL, or its training checkpoint
        weights = {name.removeprefix(marks[0]): t for name, t in weights.items() if name.startswith(marks[0])}
    if "dist_token" in weights:
        raise CheckpointMismatchError(
            f"{source} (a distilled DeiT; take the one that is not)", unexpected=["dist_token"]
        )
    layer_scale = any("gamma_" in name for name in weights)
    weights = dict(weights)
    places = weights.pop("pos_embed", None)
    try:
        found = checkpoint_filter_fn(weights, trunk, adapt_layer_scale=layer_scale)
        if places is not None:
            found["pos_embed"] = places if marks else _resampled(trunk, places)
    except (RuntimeError, AssertionError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointMismatchError(f"{source} ({reason})", unexpected=["pos_embed or patch_embed"]) from None
    if "norm.weight" not in found:  # models that pool the mean of their tokens have their norm behind it
        found |= {f"norm.{part}": found[f"fc_norm.{part}"] for part in ("weight", "bias") if f"fc_norm.{part}" in found}
    return {name: tensor for name, tensor in found.items() if not name.startswith(HEADS) and name != "mask_token"}


def _resampled(trunk: Any, places: Tensor) -> Tensor:
    """Position embeddings for the grid of a trunk; those of a square number of patches are of a square image."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    side = round((places.shape[1] - prefix) ** 0.5)
    grid = trunk.patch_embed.grid_size
    if side * side != places.shape[1] - prefix or (side, side) == tuple(grid):
        return places  # the grid cannot be told from the number; it fits as it is, or not at all
    resampled: Tensor = resample_abs_pos_embed(places, grid, (side, side), num_prefix_tokens=prefix)
    return resampled


def _load_npz(trunk: Any, path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    try:
        trunk.load_pretrained(str(path))
    except Exception as error:  # a damaged or foreign archive can raise anything
        with torch.no_grad():
            trunk.load_state_dict(before)
        reason = str(error).split("\n")[0][:160]
        raise UnsafeFileError(f"{path}: no readable weights of a vision transformer of this size ({reason})") from None
