"""Tile the real slides that CLAM was recorded on."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.common.files import sha256_file
from data_prep.medical.wsi.patches.grid import place, rules_at_level
from data_prep.medical.wsi.patches.tissue import Damage, Segmentation, find_tissue
from data_prep.medical.wsi.slides.reader import open_slide

SLIDES = Path(__file__).parents[3] / "shared" / "data" / "wsi"


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """Slides are no part of the project: without them there is nothing to replay."""
    result: dict[str, Tensor] = {}
    for name, case in json.loads(metadata["config"]).items():
        path = SLIDES / case["slide"]
        if not path.is_file():
            pytest.skip(f"{path} is not there: real slides are not part of the project")
        assert sha256_file(path) == case["sha256"], f"{path} is another file than the recorded one"
        result |= {f"output/{name}/{key}": value for key, value in tile(path, case).items()}
    return {name: result[name] for name in wanted}


def tile(path: Path, case: dict[str, Any]) -> dict[str, Tensor]:
    given = {"seg_level": case.get("seg_level", -1), **case["seg"], **case["filter"]}
    options = Segmentation(**{field.name: given[field.name] for field in fields(Segmentation) if field.name in given})
    with open_slide(path) as slide:
        pieces = find_tissue(slide, options, Damage(slide)).pieces
        level, size, step = case["patch_level"], case["patch_size"], case["step_size"]
        rules = rules_at_level(slide, level, size, step, case["contour_fn"], use_padding=case["use_padding"])
        coords = place(pieces, rules, slide.width, slide.height)
    return {
        "coords": torch.tensor(coords),
        "contour_area": torch.tensor([cv2.contourArea(piece.outline) for piece in pieces], dtype=torch.float32),
        "contour_bbox": torch.tensor(
            np.array([cv2.boundingRect(piece.outline) for piece in pieces], np.int64).reshape(-1, 4)
        ),
    }
