"""Which pictures of the identities of a test are queries, and which are searched in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.common.hashing import hash_strings
from data_prep.finegrained.records import GALLERY, QUERY


@dataclass(frozen=True)
class Seen:
    """Pictures of identities.

    Args:
        identities: of each picture; empty: junk or a distractor.
        cameras: of each picture.
        ignore_camera: pictures of one camera match, too.
    """

    identities: Sequence[str]
    cameras: Sequence[str]
    ignore_camera: bool

    def usable(self) -> set[str]:
        """Identities with a picture that another one can be found by: in another camera, unless cameras are ignored."""
        views: defaultdict[str, set[object]] = defaultdict(set)
        for row, (identity, camera) in enumerate(zip(self.identities, self.cameras, strict=True)):
            if identity:
                views[identity].add(row if self.ignore_camera else camera)
        return {identity for identity, found in views.items() if len(found) > 1}

    def with_match(self, roles: Sequence[str]) -> set[int]:
        """Queries that have a picture of their identity in the gallery (in another camera)."""
        gallery: defaultdict[str, set[str]] = defaultdict(set)
        for identity, camera, role in zip(self.identities, self.cameras, roles, strict=True):
            if role == GALLERY:
                gallery[identity].add("" if self.ignore_camera else camera)
        return {
            row
            for row, (identity, camera, role) in enumerate(zip(self.identities, self.cameras, roles, strict=True))
            if role == QUERY and identity and gallery[identity] - (set() if self.ignore_camera else {camera})
        }


def draw_roles(seen: Seen, names: Sequence[str], queries: int | None, seed: int) -> list[str]:
    """Choose queries: of each identity some pictures of each camera, as in Market-1501; the others are the gallery.

    A picture is a query only if pictures of its identity stay in the gallery for this query and those before. Without
    cameras, an identity has as many queries in all.

    Args:
        seen: the pictures.
        names: of the pictures; the choice depends on them and on the seed, not on their order.
        queries: of each identity and camera; None: half of the pictures of each identity and camera.
        seed: another seed gives another choice.
    """
    roles = [GALLERY] * len(names)
    lots = hash_strings(list(names), seed).tolist()
    members: defaultdict[str, list[int]] = defaultdict(list)
    for row, identity in enumerate(seen.identities):
        if identity:
            members[identity].append(row)
    for rows in members.values():
        cameras = ["" if seen.ignore_camera else seen.cameras[row] for row in rows]
        left = {camera: cameras.count(camera) for camera in cameras}
        taken: dict[str, int] = dict.fromkeys(cameras, 0)
        most = {camera: max(count // 2, 1) if queries is None else queries for camera, count in left.items()}
        for row in sorted(rows, key=lambda row: (lots[row], names[row])):
            camera = "" if seen.ignore_camera else seen.cameras[row]
            if taken[camera] >= most[camera]:
                continue
            left[camera] -= 1
            asking = [other for other, count in taken.items() if count] + [camera]
            if all(_others(left, other, ignore=seen.ignore_camera) for other in asking):
                taken[camera] += 1
                roles[row] = QUERY
            else:
                left[camera] += 1
    return roles


def _others(left: dict[str, int], camera: str, *, ignore: bool) -> int:
    """Pictures that a query of a camera can find."""
    return sum(count for other, count in left.items() if ignore or other != camera)
