"""Whole videos: windows, the spatial stage once a frame, the test-time mirror."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from domains.common.errors import ConfigError
from domains.pose import lifting
from domains.pose.convformer import ConvFormer
from domains.pose.layouts import H36M_17, HUMANEVA_15, mirror
from domains.pose.lifting import flip_average, lift, windows


def make(frames=9, joints=17, **options):
    torch.manual_seed(0)
    net = ConvFormer(frames, joints, dim=8, heads=4, **options).eval()
    nn.init.normal_(net.pos_temporal, std=0.3)
    return net


def window_by_window(net, video):
    poses = []
    for i in range(len(video)):
        index = [min(max(i + j, 0), len(video) - 1) for j in range(-(net.frames // 2), net.frames // 2 + 1)]
        poses.append(net(video[index][None])[0, 0])
    return torch.stack(poses)


@settings(max_examples=15, deadline=None)
@given(
    frames=st.sampled_from([1, 3, 9, 27]),
    length=st.integers(1, 40),
    joints=st.sampled_from([1, 15, 17]),
    batch_size=st.one_of(st.none(), st.integers(1, 50)),
    path=st.sampled_from(["merged", "branches"]),
)
def test_a_whole_video_equals_window_by_window(frames, length, joints, batch_size, path):
    net = make(frames, joints, path=path).double()
    video = torch.randn(length, joints, 2, dtype=torch.float64)
    with torch.no_grad():
        want = window_by_window(net, video)
    torch.testing.assert_close(lift(net, video, batch_size=batch_size), want, atol=1e-11, rtol=1e-11)


def test_in_single_precision_and_with_the_fast_convolution():
    torch.manual_seed(0)
    net, video = ConvFormer(81, 17).eval(), torch.randn(5, 17, 2)
    with torch.no_grad():
        same = ConvFormer(**{**net.arguments, "path": "branches"}).eval()
        same.load_state_dict(net.state_dict())
        want = window_by_window(same, video)
    torch.testing.assert_close(lift(net, video), want, atol=1e-5, rtol=1e-4)


def test_split_into_batches_changes_nothing(monkeypatch):
    net, video = make(), torch.randn(23, 17, 2)
    whole = lift(net, video)
    monkeypatch.setattr(lifting, "ENCODED", 7)
    for size in (1, 4, 100):
        torch.testing.assert_close(lift(net, video, batch_size=size), whole, atol=1e-6, rtol=1e-5)


def test_the_spatial_stage_runs_once_a_frame(monkeypatch):
    net, seen = make(), []
    encode = ConvFormer.encode_frames
    monkeypatch.setattr(ConvFormer, "encode_frames", lambda self, x: seen.append(len(x)) or encode(self, x))
    lift(net, torch.randn(30, 17, 2))
    assert sum(seen) == 30


def test_windows_repeat_the_first_and_last_frame():
    clip = torch.arange(4.0)[:, None, None]
    found = windows(clip, 5)[..., 0, 0]
    assert found.tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]
    assert windows(clip[:1], 3)[..., 0, 0].tolist() == [[0, 0, 0]]
    assert windows(clip[:0], 3).shape == (0, 3, 1, 1)
    with pytest.raises(ConfigError, match="odd"):
        windows(clip, 4)


def test_an_empty_clip_has_no_poses():
    assert lift(make(), torch.empty(0, 17, 2)).shape == (0, 17, 3)


def test_the_flip_test_is_the_mean_with_the_mirror_and_commutes_with_it():
    net, video = make(), torch.randn(12, 17, 2)
    flipped = lift(net, video, flip=H36M_17)
    want = (lift(net, video) + mirror(lift(net, mirror(video, H36M_17)), H36M_17)) / 2
    torch.testing.assert_close(flipped, want)
    torch.testing.assert_close(lift(net, mirror(video, H36M_17), flip=H36M_17), mirror(flipped, H36M_17))
    torch.testing.assert_close(flip_average(video, mirror(video, H36M_17), H36M_17), video)


def test_bad_keypoints_are_one_line():
    net, video = make(), torch.randn(12, 17, 2)
    video[5, 3, 1] = torch.nan
    for keypoints, options, message in (
        (video, {}, "joint 3 of frame 5 is not finite"),
        (video[None], {}, "one clip"),
        (torch.zeros(12, 15, 2), {}, "17 joints"),
        (torch.zeros(12, 17, 2), {"flip": HUMANEVA_15}, "not of layout humaneva-15"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            lift(net, keypoints, **options)
        assert "\n" not in str(caught.value)
