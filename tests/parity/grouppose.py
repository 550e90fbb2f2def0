"""Replay Group Pose: the small and the full network, the criterion, the preparation of images, the evaluators."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.pose.grouppose import GroupPose, GroupPoseOutput, Predictions
from domains.pose.grouppose_criterion import GroupPoseCriterion, Persons
from domains.pose.grouppose_post import detections, packed_predictions
from domains.pose.grouppose_transforms import (
    Picture,
    cropped,
    flipped,
    normalised,
    relative_boxes,
    resized,
    target,
)
from domains.pose.grouppose_weights import from_official, official_state, to_official
from domains.pose.keypoint_ap import COCO_SIGMAS, CROWDPOSE_SIGMAS, Annotations, Found, evaluate

Tensors = dict[str, Tensor]
SIGMAS = {17: COCO_SIGMAS, 14: CROWDPOSE_SIGMAS}
FLIP_PAIRS = {17: [(i, i + 1) for i in range(1, 17, 2)], 14: [(i, i + 1) for i in range(0, 12, 2)]}
BACKBONES = {"resnet50": "r50", "swin_T": "swin_t", "swin_B": "swin_b", "swin_L": "swin_l"}
ALIASES = ("transformer.decoder.class_embed.", "transformer.decoder.pose_embed.")


def replay(metadata: dict[str, str], given: Tensors, wanted: list[str]) -> Tensors:
    config = json.loads(metadata["config"])
    kind = metadata["system"].removeprefix("grouppose").lstrip("-.") or "small"
    replayers = {"small": replay_small, "criterion": replay_criteria, "full": replay_full, "eval": replay_evaluation}
    result = replayers[kind](config, given)
    return {name: result[name].detach() for name in wanted}


def inputs(given: Tensors, prefix: str = "input/") -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}


def persons(found: Tensors, image: int) -> Persons:
    """Annotations of an image, whose keypoints are 2 K coordinates and K flags."""
    packed = found[f"target{image}_keypoints"]
    points = packed.shape[1] // 3
    return Persons(
        packed[:, : 2 * points].unflatten(-1, (points, 2)),
        packed[:, 2 * points :],
        found[f"target{image}_area"],
        found[f"target{image}_labels"],
    )


def replay_small(config: dict[str, Any], given: Tensors) -> Tensors:
    weights, found = inputs(given, "weight/"), inputs(given)
    net = from_official(weights, config)
    maps = [found[f"feat{i}"] for i in range(len(config["backbone_channels"]))]
    output = net.detect(maps, found["image_mask"].bool())
    result = network_outputs(output)
    images = len(found["image_mask"])
    targets = [persons(found, image) for image in range(images)]
    criterion = GroupPoseCriterion(SIGMAS[net.keypoints].tolist())
    losses = criterion(output, targets)
    losses["total"].backward()
    losses["total_weighted"] = losses.pop("total")
    result |= {f"loss/{name}": value for name, value in losses.items()}
    for name, head in heads(output).items():
        result |= matches(criterion, head, targets, name)
    result |= post(output.final, found["orig_sizes_hw"], config["num_select"])
    return result | gradients(net)


def network_outputs(output: GroupPoseOutput) -> Tensors:
    result = {"output/memory": output.memory.tokens, "output/topk_index": output.selected}
    result["output/memory_mean_per_channel"] = output.memory.tokens.mean(1)
    for layer, (hidden, reference) in enumerate(zip(output.decoded.hidden, output.decoded.references, strict=False)):
        result |= {f"output/hs{layer}": hidden, f"output/ref{layer}": reference.flatten(2)}
    result[f"output/ref{len(output.decoded.hidden)}"] = output.decoded.references[-1].flatten(2)
    named = {"pred": output.final} | {f"aux{i}": head for i, head in enumerate(output.auxiliary)}
    for name, head in named.items():
        result |= {f"output/{name}_logits": head.logits, f"output/{name}_keypoints": packed_predictions(head)}
    result["output/interm_logits"] = output.two_stage.logits
    result["output/interm_keypoints"] = packed_predictions(output.two_stage, visibility=False)
    return result


def heads(output: GroupPoseOutput) -> dict[str, Predictions]:
    found = {"final": output.final, "interm": output.two_stage}
    return found | {f"aux{i}": head for i, head in enumerate(output.auxiliary)}


def matches(criterion: GroupPoseCriterion, head: Predictions, targets: list[Persons], name: str) -> Tensors:
    costs, pairs = criterion.pairs(head, targets)
    parts = costs.total().split([len(target) for target in targets], -1)
    result = {f"output/match_{name}_{image}": torch.stack(pair) for image, pair in enumerate(pairs)}
    return result | {f"output/cost_{name}_{image}": part[image] for image, part in enumerate(parts)}


def post(final: Predictions, sizes: Tensor, select: int) -> Tensors:
    result = {}
    for image, found in enumerate(detections(final, sizes.tolist(), select)):
        parts = {"keypoints": found.packed(), "labels": found.labels, "scores": found.scores}
        result |= {f"output/post{image}_{part}": value for part, value in parts.items()}
    return result


def gradients(net: GroupPose) -> Tensors:
    """Gradients under the official names: those of a network whose weights are the gradients."""
    twin = GroupPose(**net.arguments)
    state = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in net.named_parameters()
    }
    twin.load_state_dict(state)
    return {f"grad/{name}": tensor for name, tensor in to_official(twin).items()}


def replay_full(config: dict[str, Any], given: Tensors) -> Tensors:
    found = inputs(given)
    backbone = next(own for theirs, own in BACKBONES.items() if config["backbone"].startswith(theirs))
    options = {"queries": config["num_queries"], "backbone": backbone}
    with torch.device("cpu"):
        blank = official_state(GroupPose(config["num_body_points"], **options))
    device = found["image0"].device
    net = from_official({name: generated(name, tensor).to(device) for name, tensor in blank.items()}, config).eval()
    images = [found[f"image{i}"] for i in range(len(found))]
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width, device=device)
    padding = torch.ones(len(images), height, width, dtype=torch.bool, device=device)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
        padding[i, : image.shape[1], : image.shape[2]] = False
    with torch.no_grad():
        maps = net.backbone(batch)
        result = network_outputs(net.detect(maps, padding))
    for i, features in enumerate(maps):
        result |= {f"output/feat{i}": features, f"output/feat{i}_mean": features.mean((2, 3))}
    return result


def generated(name: str, like: Tensor) -> Tensor:
    """The weights of the recipe that the full cases describe; integers are no weights and stay."""
    if not like.is_floating_point():
        return like
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(like.shape))
    r = torch.from_numpy(drawn.astype(np.float32))
    rules = (
        (name.endswith("running_var"), lambda: 1 + 0.25 * r.abs()),
        (name.endswith("running_mean"), lambda: 0.1 * r),
        (name.endswith(("bn3.weight", "downsample.1.weight")), lambda: 0.3 * r),
        (name.endswith("sampling_offsets.weight"), lambda: 0.02 * r),
        (name.endswith("sampling_offsets.bias"), lambda: r),
        (r.ndim == 1 and name.endswith("weight"), lambda: 1 + 0.2 * r),
        (name.endswith("bias"), lambda: 0.1 * r),
        (name.endswith(("level_embed", "embedding.weight", "relative_position_bias_table")), lambda: 0.5 * r),
        (True, lambda: r * ((2 if r.ndim == 4 else 1) / r[0].numel()) ** 0.5),
    )
    return next(value() for fits, value in rules if fits)


def replay_criteria(config: dict[str, Any], given: Tensors) -> Tensors:
    result = {}
    for case, options in enumerate(config["criterion"]):
        part = replay_criterion(options, inputs(given, f"input/case{case}/"))
        result |= {name.replace("/", f"/case{case}/", 1): value for name, value in part.items()}
    for case, options in enumerate(config["transforms"]):
        part = replay_transforms(options, inputs(given, f"input/tf{case}/"))
        result |= {f"output/tf{case}/{name}": value for name, value in part.items()}
    return result


def replay_criterion(config: dict[str, Any], found: Tensors) -> Tensors:
    points = config["num_body_points"]
    leaves = {name: tensor.requires_grad_() for name, tensor in found.items() if "_pred_" in name}

    def head(name: str) -> Predictions:
        packed = leaves[f"{name}_pred_keypoints"][..., : 2 * points]
        return Predictions(leaves[f"{name}_pred_logits"], packed.unflatten(-1, (points, 2)))

    layers = sum(name.startswith("aux") and name.endswith("_pred_logits") for name in leaves)
    auxiliary = [head(f"aux{i}") for i in range(layers)]
    output = GroupPoseOutput(head("final"), auxiliary, head("interm"), *[None] * 3)  # type: ignore[arg-type]
    targets = [persons(found, image) for image in range(len(config["counts"]))]
    criterion = GroupPoseCriterion(SIGMAS[points].tolist(), config["weights"])
    losses = criterion(output, targets)
    losses["total"].backward()
    losses["total_weighted"] = losses.pop("total")
    result = {f"loss/{name}": value for name, value in losses.items()}
    result |= {f"grad/{name}": leaf.grad for name, leaf in leaves.items()}
    for name, predictions in heads(output).items():
        result |= matches(criterion, predictions, targets, name)
    return result | post(output.final, found["orig_sizes_hw"], config["num_select"])


def replay_transforms(config: dict[str, Any], found: Tensors) -> Tensors:
    image = found["image"].permute(2, 0, 1)
    picture = Picture(image, *(found[name] for name in ("keypoints", "boxes", "area", "labels")))
    result = {}
    stages = {}
    if config["hflip"]:
        stages["hflip"] = picture = flipped(picture, FLIP_PAIRS[config["num_body_points"]])
    stages["crop"] = picture = cropped(picture, *config["crop_ijhw"])
    stages["resize"] = picture = resized(picture, config["resize_size"], config["resize_max"])
    for name, stage in stages.items():
        parts = {part: getattr(stage, part) for part in ("keypoints", "boxes", "area", "labels")}
        parts["size"] = torch.tensor(stage.size)
        result |= {f"{name}_{part}": value for part, value in parts.items()}
    pixels, annotated = normalised(picture.image), target(picture)
    return result | {
        "norm_image_grid8": grid8(pixels),
        "norm_image_mean": pixels.mean((1, 2)),
        "norm_image_shape": torch.tensor(pixels.shape),
        "norm_keypoints": torch.cat([annotated.keypoints.flatten(1), annotated.visible], 1),
        "norm_boxes": relative_boxes(picture),
        "norm_area": annotated.area,
        "norm_noarea_area": target(picture, area_of_box=True).area,
        "norm_labels": picture.labels,
        "norm_size": torch.tensor(picture.size),
    }


def grid8(pixels: Tensor) -> Tensor:
    """Eight by eight pixels from all over the image."""
    rows, columns = (torch.linspace(0, size - 1, 8).long() for size in pixels.shape[1:])
    return pixels[:, rows][:, :, columns]


def replay_evaluation(config: dict[str, Any], given: Tensors) -> Tensors:
    result = {}
    for name in config:
        case = {part: tensor.cpu().numpy() for part, tensor in inputs(given, f"input/{name}/").items()}
        truth = Annotations(
            *(case[f"gt_{part}"] for part in ("image_id", "keypoints", "bbox", "area", "iscrowd", "num_keypoints"))
        )
        kept = case["dt_category_id"] == 1
        found = Found(*(case[f"dt_{part}"][kept] for part in ("image_id", "keypoints", "score")))
        crowdpose = name.startswith("crowdpose")
        sigmas = case.get("sigmas", CROWDPOSE_SIGMAS if crowdpose else COCO_SIGMAS)
        options = {"protocol": "crowdpose", "crowd_index": case["crowd_index"]} if crowdpose else {}
        numbers = list(evaluate(truth, found, case["image_id"], sigmas, **options).values())
        if crowdpose:  # the official program keeps two unused places
            numbers[3:3] = [0.0, 0.0]
        result[f"output/{name}/stats"] = torch.tensor(numbers, dtype=torch.float64)
    return result
