"""A set of keypoints: names, what is drawn between them, left and right, and the tolerances that similarity needs.

All of it comes from the data: from the category in the JSON, and from a description in YAML where that says too little.

    layout: dog-6                        # optional: a name that tells this set from others with as many keypoints
    category: dog                        # where the JSON has several with keypoints
    licence: CC BY 4.0
    keypoints: [nose, left_ear, right_ear, tail, left_paw, right_paw]
    skeleton: [[nose, tail], [left_ear, right_ear]]
    flip: [[left_ear, right_ear], [left_paw, right_paw]]
    sigmas: 0.05                         # one for all, a list, or name: number
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import ConfigError
from data_prep.common.files import translate_os_errors

Pair = tuple[int, int]
FIELDS = ("layout", "category", "licence", "keypoints", "skeleton", "flip", "sigmas")
LARGEST_SIGMA = 1.0  # those of COCO are 0.025 to 0.107
_OTHER_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
_SHORT_SIDE = {"l": "r", "L": "R"}


@dataclass(frozen=True)
class KeypointSet:
    """Keypoints of one kind of object.

    Args:
        names: of the K keypoints, in order.
        skeleton: pairs that a drawing connects.
        flip_pairs: left keypoints and their right counterparts.
        sigmas: tolerance of each keypoint as a share of the object's size, as COCO defines it; empty: not known.
        layout: name of the set; empty where it has none.
    """

    names: tuple[str, ...]
    skeleton: tuple[Pair, ...] = ()
    flip_pairs: tuple[Pair, ...] = ()
    sigmas: tuple[float, ...] = ()
    layout: str = ""

    def entry(self) -> dict[str, Any]:
        """The `keypoints` entry of `dataset.json`."""
        return {
            "layout": self.layout,
            "names": list(self.names),
            "skeleton": [list(pair) for pair in self.skeleton],
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "sigmas": list(self.sigmas),
        }


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# T.-Y. Lin et al. (2014), arXiv 1405.0312; sigmas: cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py
COCO = KeypointSet(
    _words(
        "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
        "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
    ),
    (
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10)),
        *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    tuple((left, left + 1) for left in range(1, 17, 2)),
    (
        *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
        *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
    "coco-17",
)
# J. Li et al. (2019), arXiv 1812.00324; sigmas: Jeff-sjtu/CrowdPose @ 86fe5e1. The skeleton in its files is COCO's.
CROWDPOSE = KeypointSet(
    _words(
        "left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip "
        "left_knee right_knee left_ankle right_ankle head_top neck"
    ),
    (
        *((10, 8), (8, 6), (11, 9), (9, 7), (6, 7), (0, 6), (1, 7), (0, 1)),
        *((0, 2), (1, 3), (2, 4), (3, 5), (12, 13), (0, 13), (1, 13)),
    ),
    tuple((left, left + 1) for left in range(0, 12, 2)),
    (0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079),
    "crowdpose-14",
)
KNOWN = (COCO, CROWDPOSE)
_HEAD = {"head": "head_top", "top_head": "head_top"}  # what files of CrowdPose call it


def same_names(found: Sequence[str], wanted: KeypointSet) -> bool:
    """Whether the names in a file are those of a known set."""
    spelt = tuple(name.strip().lower().replace(" ", "_").replace("-", "_") for name in found)
    return spelt == wanted.names or tuple(_HEAD.get(name, name) for name in spelt) == wanted.names


def read_description(path: Path) -> dict[str, Any]:
    """Read the YAML that describes a set of keypoints.

    Raises:
        ConfigError: it is no YAML, or has fields that nobody reads.
    """
    with translate_os_errors(path):
        text = path.read_bytes()
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no YAML ({str(error)[:160]})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is no description; give fields such as {', '.join(FIELDS)}")
    unknown = [str(name) for name in found if name not in FIELDS]
    if unknown:
        raise ConfigError(f"{path}: field {unknown[0]!r} is unknown; the fields are {', '.join(FIELDS)}")
    for name in ("layout", "category", "licence"):
        if name in found and not isinstance(found[name], str):
            raise ConfigError(f"{path}: {name}: give a text, not {found[name]!r}")
    return found


def complete(category: Mapping[str, Any], given: Mapping[str, Any], where: str) -> tuple[KeypointSet, list[str]]:
    """The set of keypoints of a category, completed by a description.

    Args:
        category: `keypoints`, `skeleton` and, where the file has them, `sigmas` of the JSON's category.
        given: fields of the description; they come first.
        where: the files, for messages.

    Returns:
        The set, and remarks on what was derived or put right.

    Raises:
        ConfigError: names or sigmas are missing, or a field does not fit the others.
    """
    names = _names(given.get("keypoints", category.get("keypoints")), where)
    stored = category.get("keypoints")
    if stored and len(stored) != len(names):
        raise ConfigError(f"{where}: keypoints: the description has {len(names)}, the category {len(stored)}")
    known = next((each for each in KNOWN if same_names(names, each)), None)
    if known is not None:
        names = known.names
    remarks: list[str] = []
    skeleton: tuple[Pair, ...] = known.skeleton if known else ()
    if "skeleton" in given:
        skeleton = _pairs(given["skeleton"], names, "skeleton", where)
    elif known is None and category.get("skeleton"):
        skeleton, remark = _numbered(category["skeleton"], len(names), where)
        remarks += [remark] if remark else []
    if "flip" in given:
        flip = _check_flip(_pairs(given["flip"], names, "flip", where), names, where)
    elif known is not None:
        flip = known.flip_pairs
    else:
        flip = derive_flip(names, where)
        told = ", ".join(f"{names[left]}-{names[right]}" for left, right in flip) or "none"
        remarks.append(f"pairs of left and right, by their names: {told}; `flip` of the description says otherwise")
    sigmas = given.get("sigmas", category.get("sigmas"))
    if sigmas is None and known is not None:
        sigmas = list(known.sigmas)
    if sigmas is None:
        raise ConfigError(
            f"{where}: sigmas of these {len(names)} keypoints are not known; give `sigmas:` in the file of "
            "--description, one for each keypoint, or one number for all (0.05 is usual where nothing was measured)"
        )
    result = KeypointSet(names, skeleton, flip, _sigmas(sigmas, names, where), known.layout if known else "")
    return replace(result, layout=given.get("layout", result.layout)), remarks


def _names(found: Any, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(isinstance(name, str) and name for name in found):
        raise ConfigError(
            f"{where}: the names of the keypoints are not known; give `keypoints:` in the file of --description"
        )
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: keypoints: {twice!r} is there twice; give each its own name")
    return tuple(found)


def _pairs(found: Any, names: Sequence[str], field: str, where: str) -> tuple[Pair, ...]:
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise ConfigError(f"{where}: {field}: give pairs of names, as in [[left_eye, right_eye]]")
    unknown = next((name for pair in found for name in pair if name not in names), None)
    if unknown is not None:
        raise ConfigError(f"{where}: {field}: {unknown!r} is no keypoint; the keypoints are {', '.join(names)}")
    return tuple((names.index(one), names.index(other)) for one, other in found)


def _check_flip(pairs: tuple[Pair, ...], names: Sequence[str], where: str) -> tuple[Pair, ...]:
    members = [member for pair in pairs for member in pair]
    twice = next((member for member in members if members.count(member) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: flip: {names[twice]!r} is in two pairs, or in one twice; pair each once")
    return pairs


def _numbered(found: Any, count: int, where: str) -> tuple[tuple[Pair, ...], str]:
    """A skeleton of numbers, which start at 1 in COCO and at 0 in files of some tools."""
    valid = isinstance(found, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair) for pair in found
    )
    ends = [end for pair in found for end in pair] if valid else []
    first = 0 if 0 in ends else 1
    if not valid or any(not first <= end < count + first for end in ends):
        return (), f"{where}: the skeleton of the category does not fit its {count} keypoints: none is drawn"
    remark = f"{where}: the skeleton counts keypoints from 0, where COCO counts from 1" if first == 0 else ""
    return tuple((one - first, other - first) for one, other in found), remark


def derive_flip(names: Sequence[str], where: str) -> tuple[Pair, ...]:
    """Pairs of keypoints whose names differ in left and right (or in a part l and r) only.

    Raises:
        ConfigError: a left keypoint has no right one, or the other way round.
    """
    pairs = []
    for index, name in enumerate(names):
        other = _mirrored(name)
        if other is None:
            continue
        if other not in names:
            raise ConfigError(
                f"{where}: keypoint {name!r} has no counterpart {other!r}; give `flip:` in the file of --description"
            )
        pairs.append((index, names.index(other)))
    paired = {right for _, right in pairs}
    for index, name in enumerate(names):
        if "right" in name.lower() and index not in paired:
            raise ConfigError(
                f"{where}: keypoint {name!r} has no counterpart on the left; give `flip:` in the file of --description"
            )
    return tuple(pairs)


def _mirrored(name: str) -> str | None:
    """The right counterpart of a left name."""
    for left, right in _OTHER_SIDE.items():
        if left in name:
            return name.replace(left, right, 1)
    for mark in "_- .":
        parts = name.split(mark)
        if len(parts) > 1:
            sides = [_SHORT_SIDE.get(part, part) for part in parts]
            if sides != parts:
                return mark.join(sides)
    return None


def _sigmas(found: Any, names: Sequence[str], where: str) -> tuple[float, ...]:
    if isinstance(found, Mapping):
        missing = next((name for name in names if name not in found), None)
        if missing is not None:
            raise ConfigError(f"{where}: sigmas: {missing!r} has none; give one for each keypoint")
        found = [found[name] for name in names]
    if isinstance(found, int | float) and not isinstance(found, bool):
        found = [found] * len(names)
    if not isinstance(found, list) or len(found) != len(names):
        count = len(found) if isinstance(found, list) else found
        raise ConfigError(f"{where}: sigmas: {count!r} for {len(names)} keypoints; give one for each, or one number")
    for name, sigma in zip(names, found, strict=True):
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma <= LARGEST_SIGMA:
            raise ConfigError(
                f"{where}: sigmas: {sigma!r} of {name!r}; give a share of the object's size, above 0 and at most "
                f"{LARGEST_SIGMA:g} (those of COCO are 0.025 to 0.107)"
            )
    return tuple(float(sigma) for sigma in found)
