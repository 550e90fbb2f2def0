"""A peer that needs nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.worker import Step, Work


@dataclass(frozen=True)
class Setting:
    batch: int
    fails_at: int = -1


def build(setting: Setting, kind: str = "rows") -> Step:
    def step(i: int) -> Work:
        print("a peer that talks")
        if i == setting.fails_at:
            raise ValueError("no such batch")
        return Work({kind: setting.batch}, {"loss": 1.0 / sum(range(20_000 + i))})

    return step
