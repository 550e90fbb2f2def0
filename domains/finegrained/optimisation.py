"""Groups of parameters for the optimiser: which decay, which learn slower, which faster."""

from __future__ import annotations

from typing import Any

from torch import nn

from domains.common.errors import ConfigError
from domains.finegrained.dcal import DCAL

EMBEDDINGS = ("pos_embed", "cls_token", "reg_token")


def parameter_groups(
    net: DCAL, *, lr: float, weight_decay: float, layer_decay: float = 1.0, bias_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for any optimiser of torch.

    Biases, norms, embeddings of places and of the class token, and `uncertainty_w` do not decay. With `layer_decay` d,
    layer l of L learns with `lr * d^(L + 1 - l)`: patches are layer 0, heads and GLCA L + 1 (H. Bao et al., BEiT, ICLR
    2022, arXiv 2106.08254, appendix).

    Args:
        net: the network.
        lr: learning rate of the last layer.
        weight_decay: of what decays.
        layer_decay: factor from each layer to the one before it; 1: all learn alike.
        bias_lr: factor on the learning rate of biases; 2 in the recipe of re-identification with SGD.

    Raises:
        ConfigError: factors that cannot work.
    """
    if not 0.0 < layer_decay <= 1.0 or bias_lr <= 0.0:
        raise ConfigError(f"layer_decay={layer_decay}, bias_lr={bias_lr}: they lie in (0, 1] and above 0")
    top = len(net.trunk.blocks) + 1
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        fixed = parameter.ndim < 2 or name.split(".")[-1] in EMBEDDINGS
        factor = layer_decay ** (top - _layer(name, top)) * (bias_lr if name.endswith(".bias") else 1.0)
        groups.setdefault((lr * factor, 0.0 if fixed else weight_decay), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def _layer(name: str, top: int) -> int:
    parts = name.split(".")
    if parts[0] != "trunk" or parts[1] == "norm":
        return top
    return int(parts[2]) + 1 if parts[1] == "blocks" else 0
