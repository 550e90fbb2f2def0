"""The peers of the HumanEva benchmark are what they say, and its held-out part is never trained on."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers.videopose3d_direct import LinearModel, TemporalModel
from benchmarks.pose_humaneva import GAP, SHARE, hold_out, score, train
from domains.pose.data3d import SequenceData
from tests.domains.pose.sequence_helpers import write_prepared


def test_strided_convolutions_are_the_dilated_ones_of_the_paper():
    torch.manual_seed(0)
    network = TemporalModel(5, frames=27, channels=8).eval()
    keypoints = torch.randn(3, 27, 5, 2)
    x = network.expand[1:](torch.nn.functional.conv1d(keypoints.flatten(2).transpose(1, 2), network.expand[0].weight))
    for power, (temporal, single) in enumerate(zip(network.temporal, network.single, strict=True), start=1):
        dilation = 3**power
        inner = torch.nn.functional.conv1d(x, temporal[0].weight, dilation=dilation)
        x = x[:, :, dilation:-dilation] + single(temporal[1:](inner))
    want = network.shrink(x)
    assert want.shape == (3, 15, 1)
    assert torch.allclose(network(keypoints), want[:, :, 0].view(3, 5, 3), atol=1e-5)


def test_the_size_of_the_published_network():
    # 8.56 M parameters for 17 joints and 27 frames (arXiv 1811.11742, table of receptive fields)
    assert sum(p.numel() for p in TemporalModel(17).parameters()) == pytest.approx(8.56e6, rel=0.005)
    with pytest.raises(ValueError, match="power of 3"):
        TemporalModel(17, frames=26)


def test_the_end_of_long_clips_is_held_out(tmp_path):
    prepared = write_prepared(tmp_path / "prepared", frames=70)
    data = SequenceData(str(hold_out(prepared, tmp_path / "held-out")), frames=27)
    before = SequenceData(str(prepared)).clips("train")
    kept, held = data.clips("train"), data.clips("test")
    assert len(kept.frame) == len(before.frame)
    long = [row for row in range(len(before.frame)) if before.frame["frames"][row] >= 60]
    assert len(held.frame) == len(long) > 0
    for number, row in enumerate(long):
        whole, first, last = before.read(row), kept.read(row), held.read(number)
        count = len(whole.pose)
        assert len(last.pose) == count // SHARE
        assert torch.equal(whole.pose[-(count // SHARE) :], last.pose)
        assert torch.equal(whole.pose[: len(first.pose)], first.pose)
        assert len(first.pose) + GAP + len(last.pose) == count


def test_a_peer_learns_until_its_time_is_over(tmp_path):
    data = SequenceData(str(write_prepared(tmp_path)), batch_size=32, frames=27, mirror="none")
    torch.manual_seed(0)
    network = LinearModel(data.joints)
    before = score(network, data)["mpjpe_mm"].mean()
    train(network, data, seconds=0.5, lr=1e-2, last=0.1)
    assert score(network, data)["mpjpe_mm"].mean() < before / 2
