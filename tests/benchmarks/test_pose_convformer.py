"""The plain peer of the ConvFormer benchmark gives the same poses: it is the equations, written a second time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers.convformer_direct import Setting, make_video, make_weights, window_of
from benchmarks.peers.convformer_direct import lift as lift_directly
from domains.pose.convformer_weights import from_official
from domains.pose.lifting import lift


@pytest.mark.parametrize(("frames", "joints"), [(9, 17), (27, 15), (81, 17)])
def test_the_peer_gives_the_same_poses(frames, joints):
    setting = Setting(frames, joints, video=5)
    video, weights = make_video(setting), make_weights(setting)
    network = from_official(weights).eval()
    poses = lift(network, video)
    for i in range(len(video)):
        want = lift_directly(weights, window_of(video, i, frames))[0]
        assert (poses[i] - want).norm() < 1e-5 * want.norm()
        with torch.no_grad():
            assert (network(window_of(video, i, frames)[None])[0, 0] - want).norm() < 1e-5 * want.norm()
