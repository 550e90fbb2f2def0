"""Competitors of the ARBEx benchmark compute the same: the peer is the official form, written a second time."""

from __future__ import annotations

import pytest

from benchmarks.expression_inference import build_ours
from benchmarks.peers.arbex_direct import Setting, build


def test_all_forms_give_the_same_value():
    setting = Setting(batch=2)
    want = build(setting)(0).losses
    for form in ("plain", "fused"):
        assert build_ours(setting, form)(0).losses == pytest.approx(want, rel=1e-5)
