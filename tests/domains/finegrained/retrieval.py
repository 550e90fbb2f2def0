"""Retrieval written out query by query, image by image, to compare with."""

from __future__ import annotations

import numpy as np
import torch

from domains.finegrained.reid_metrics import Identified


def by_loops(distances, query, gallery, *, depth=50, ignore_camera=False):
    """CMC, mAP by both rules, mINP and AP of each query, as the rules are told in words."""
    curves, aps, areas, inps, every = [], [], [], [], []
    wanted = [i for i, identity in enumerate(gallery.identities.tolist()) if identity != -1]
    for row in range(len(query)):
        ranked = sorted(wanted, key=lambda j: (float(distances[row, j]), j))
        hits = []
        for j in ranked:
            same = gallery.identities[j] == query.identities[row]
            if same and gallery.cameras[j] == query.cameras[row] and not ignore_camera:
                continue
            hits.append(bool(same))
        if not any(hits):
            every.append(float("nan"))
            continue
        places = [place for place, hit in enumerate(hits, start=1) if hit]
        precision = [found / place for found, place in enumerate(places, start=1)]
        before = [(found - 1) / (place - 1) if place > 1 else 1.0 for found, place in enumerate(places, start=1)]
        every.append(sum(precision) / len(places))
        aps.append(every[-1])
        areas.append(sum((a + b) / 2 for a, b in zip(precision, before, strict=True)) / len(places))
        inps.append(len(places) / places[-1])
        curves.append([float(places[0] <= k) for k in range(1, min(depth, len(wanted)) + 1)])
    return {
        "cmc": np.mean(curves, axis=0) if curves else None,
        "mean_ap": np.mean(aps) if aps else None,
        "trapezoid": np.mean(areas) if aps else None,
        "mean_inp": np.mean(inps) if aps else None,
        "ap": np.array(every),
    }


def made_set(seed, *, queries=9, gallery=40, identities=5, cameras=3):
    """Identities -1 (junk), 0 (background) and further ones, in both parts."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count, low):
        return Identified(
            torch.randint(low, identities, (count,), generator=generator),
            torch.randint(cameras, (count,), generator=generator),
        )

    return draw(queries, 1), draw(gallery, -1), generator
