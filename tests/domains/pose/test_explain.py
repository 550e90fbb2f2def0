"""What is drawn of attention is what the network computed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from data_prep.pose.people.prepare import prepare_people
from domains.common.attention import MultiScaleDeformableAttention, record
from domains.common.attention.deformable import sample_grid
from domains.common.errors import ConfigError
from domains.pose.data import PeopleData
from domains.pose.data3d import SequenceData
from domains.pose.explain import explain
from domains.pose.explain_lift import look as look_at_frame
from domains.pose.explain_lift import mixing
from domains.pose.explain_people import look, sampling_points
from domains.pose.grouppose import PERSON
from domains.pose.lifting import windows
from domains.pose.module import GroupPoseModule
from domains.pose.module3d import LiftModule
from tests.data.pose.make_people import write_coco
from tests.domains.pose.sequence_helpers import write_prepared
from tests.domains.pose.test_module import SIZES, TINY
from tests.domains.pose.test_module3d import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    top = tmp_path_factory.mktemp("people")
    prepare_people("coco", write_coco(top / "raw", train=4, valid=3), top / "out", executor="serial", progress=False)
    data = PeopleData(str(top / "out"), batch_size=2, **SIZES)
    torch.manual_seed(0)
    module = GroupPoseModule(data.n_keypoints, data.sigmas, data.protocol, **TINY)
    for name, parameter in module.net.named_parameters():
        if "sampling_offsets" in name or "attention_weights" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return module.eval(), data


@pytest.fixture(scope="module")
def lifted(tmp_path_factory):
    data = SequenceData(str(write_prepared(tmp_path_factory.mktemp("sequences") / "prepared")), batch_size=16)
    torch.manual_seed(0)
    return LiftModule(**{**SMALL, "kernels": [3, 5]}).eval(), data


@torch.no_grad()
def test_points_and_weights_give_what_the_block_gives():
    torch.manual_seed(0)
    block = MultiScaleDeformableAttention(16, heads=2, levels=2, points=3)
    for linear in (block.sampling_offsets, block.attention_weights):
        torch.nn.init.normal_(linear.weight, std=0.3)
    sizes = [(4, 6), (2, 3)]
    memory, query, references = torch.randn(1, 30, 16), torch.randn(1, 5, 16), torch.rand(1, 5, 2, 2)
    places, weights = sampling_points(block, query, references, sizes)
    extent = torch.tensor([(w, h) for h, w in sizes])[:, None]
    x, y = (places * extent - 0.5).unbind(-1)
    value = block.value_proj(memory).view(1, 30, 2, 8)
    want = block(query, references, memory, sizes)
    torch.testing.assert_close(block.output_proj(sample_grid(value, sizes, x, y, weights)), want)


@torch.no_grad()
def test_a_case_shows_the_surest_person_of_the_image(people):
    module, data = people
    case = look(module, data, 1)
    batch = data.finish(data.collate_for(data.store("test"))({"row": torch.tensor([1])}))
    name = f"decoder.layers.{len(module.net.decoder.layers) - 1}.cross"
    with record(module.net, name) as maps:
        out = module.net(batch["image"], batch["mask"])
    scores = out.final.logits[0, :, PERSON].sigmoid()
    best = int(scores.argmax())
    assert case.score[0] == pytest.approx(float(scores[best]))
    height, width = batch["image"].shape[-2:]
    np.testing.assert_allclose(case.points[0], out.final.keypoints[0, best] * torch.tensor([width, height]), atol=1e-4)
    types = data.n_keypoints + 1
    recorded = maps[name][0][0].transpose(0, 1).reshape(module.net.queries, types, -1)[best]  # (K + 1, heads L P)
    np.testing.assert_allclose(case.weights, recorded / module.net.arguments["heads"], atol=1e-6)
    np.testing.assert_allclose(case.weights.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(case.within.sum(1), 1.0, atol=1e-5)
    assert case.across.shape == (types, len(case.score), len(case.score))
    assert (case.across.sum(-1) <= 1 + 1e-6).all()
    assert case.pixels.shape == (height, width, 3)


def test_pictures_and_table_of_persons(people, tmp_path):
    module, data = people
    pictures = explain(module, data, tmp_path)
    titles = [picture.title.partition(": ")[2] for picture in pictures]
    assert titles[:4] == [
        "which joints a joint attends to", "attention within the person", "attention between persons",
        "where a joint looks",
    ]  # fmt: skip
    table = pl.read_parquet(tmp_path / "explain.parquet")
    assert len(table) % 18**2 == 0
    assert "left wrist" in table["query"].to_list()


@torch.no_grad()
def test_attention_of_a_frame_is_that_of_its_window(lifted):
    module, data = lifted
    clips = data.clips("test")
    case = look_at_frame(module, clips, 0, 3)
    window = windows(clips.read(0).keypoints, 9)[3:4]
    with record(module.net) as maps:
        pose = module.net(window)[0, 0] * 1000
    np.testing.assert_allclose(case.pose, pose, atol=1e-3)
    np.testing.assert_allclose(case.spatial[0], maps["spatial.0.attn"][0][4].mean(0), atol=1e-6)  # of its own frame
    np.testing.assert_allclose(case.temporal[0], maps["temporal.0.attn"][0][0].mean(0), atol=1e-6)
    assert (case.spatial.shape, case.temporal.shape) == ((1, 15, 15), (1, 9, 9))


def test_pictures_and_table_of_poses(lifted, tmp_path):
    module, data = lifted
    pictures = explain(module, data, tmp_path)
    of = f"of the first {len(data.clips('test').frame)} clips"
    assert [picture.title for picture in pictures] == [
        f"Least error {of}: attention between joints", f"Least error {of}: attention between frames",
        f"Largest error {of}: attention between joints", f"Largest error {of}: attention between frames",
        "Weights of the kernels",
    ]  # fmt: skip
    table = pl.read_parquet(tmp_path / "explain.parquet")
    errors = table.group_by("case").agg(pl.col("mpjpe_mm").first())
    by_case = dict(errors.rows())
    assert by_case["Least error"] < by_case["Largest error"]


def test_one_branch_has_no_weights_to_show(lifted):
    assert mixing(LiftModule(**{**SMALL, "kernels": [7]}).net) == []
    heads = LiftModule(**{**SMALL, "kernels": [3, 5], "mixing_per_head": True})
    assert len(mixing(heads.net)) == 1


def test_another_module_is_refused(people, tmp_path):
    with pytest.raises(ConfigError, match="has no attention over joints or persons"):
        explain(torch.nn.Linear(1, 1), people[1], tmp_path)
