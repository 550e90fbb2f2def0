from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from domains.common.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    HeptadError,
    UnsafeFileError,
)
from domains.common.files import fill, local_path, read_checkpoint, read_options, read_tensors
from domains.common.hub import load_published, network_tensors, publish
from domains.ctr.logistic import LogisticRegression

FIELDS = [{"name": "ad", "kind": "categorical", "size": 5}, {"name": "age", "kind": "numerical"}]


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.pth"])
def test_hostile_pickle_never_executes(tmp_path, name):
    mark = tmp_path / "executed"
    torch.save({"state_dict": Hostile(mark)}, tmp_path / name)
    for read in (read_checkpoint, read_tensors, network_tensors):
        with pytest.raises(UnsafeFileError, match=r"was not executed.*safetensors"):
            read(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize(
    "url", ["https://example.org/a.ckpt", "http:/x.pt", "s3://bucket/x", "hf://user/model", "gs:/b/x"]
)
def test_urls_are_refused(url):
    with pytest.raises(UnsafeFileError, match="URLs are refused"):
        local_path(url)


def test_absent_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"no\.ckpt: no such file"):
        read_tensors(tmp_path / "no.ckpt")
    for name in ("cut.ckpt", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half a file")
        with pytest.raises(UnsafeFileError, match=name):
            read_tensors(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UnsafeFileError, match="holds a list"):
        read_tensors(tmp_path / "list.pt")
    (tmp_path / "options.json").write_text("[1]")
    with pytest.raises(UnsafeFileError, match="one JSON object"):
        read_options(tmp_path / "options.json")


def test_errors_are_one_line_and_of_the_fitting_builtin():
    error = CheckpointMismatchError("x", missing=list("abcdef"), wrong_shape=["w: (1,) != (2,)"])
    assert "a, b, c, d and 2 more" in str(error)
    assert isinstance(error, HeptadError)
    assert isinstance(error, RuntimeError)
    assert str(CheckpointNotFoundError("one line")) == "one line"


def test_published_model_comes_back(tmp_path):
    network = LogisticRegression(FIELDS)
    publish(tmp_path / "model", network, "# card\n")
    again = load_published(tmp_path / "model")
    assert torch.equal(again.table.weight, network.table.weight)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert network_tensors(tmp_path / "model").keys() == network.state_dict().keys()


def test_published_config_builds_only_our_networks(tmp_path):
    network = LogisticRegression(FIELDS)
    publish(tmp_path, network, "")
    for name in ("os.system", "torch.nn.Linear", "domains.common.errors.HeptadError", "domains.ctr.nothing.X"):
        (tmp_path / "config.json").write_text(json.dumps({"class": name, "arguments": {}}))
        with pytest.raises(ConfigError):
            load_published(tmp_path)


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    network = LogisticRegression(FIELDS)
    before = network.table.weight.detach().clone()
    save_file({"bias": torch.ones(()), "table.weight": torch.ones(9, 1)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"table\.weight: \(9, 1\) != \(6, 1\)"):
        fill(network, read_tensors(tmp_path / "w.safetensors"), "w.safetensors")
    assert torch.equal(network.table.weight, before)
    assert network.bias == 0
