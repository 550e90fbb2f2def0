from __future__ import annotations

import os
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from domains.common.errors import CheckpointNotFoundError, UnsafeFileError
from domains.common.foreign import Inert, find_tensors, read_foreign, read_foreign_tensors


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def foreign(monkeypatch):
    """Classes that exist while a file is written, and no longer when it is read."""
    module = types.ModuleType("research_code")
    exec(  # classes of a module that can be taken away
        "class Struct:\n    def __init__(self, **entries):\n        self.__dict__.update(entries)\n"
        "class Settings(dict):\n    pass\nclass Rows(list):\n    pass\n",
        module.__dict__,
    )
    for name in ("Struct", "Settings", "Rows"):
        getattr(module, name).__module__ = "research_code"
    monkeypatch.setitem(sys.modules, "research_code", module)
    return module


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_pickled_objects_are_read(tmp_path, foreign, monkeypatch, zipped):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    content = {
        "model": network.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "epoch": 7,
        "config": foreign.Struct(lr=1e-4, kind=foreign.Settings(a=1), rows=foreign.Rows([1, 2])),
    }
    path = tmp_path / "checkpoint-best.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "research_code")
    found = read_foreign(path)
    assert found["epoch"] == 7
    assert isinstance(found["config"], Inert)
    assert found["config"].state["lr"] == 1e-4
    weights = read_foreign_tensors(path)
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["config", "model"])
def test_hostile_object_never_executes(tmp_path, zipped, where):
    mark = tmp_path / "executed"
    content = {"model": {"w": torch.ones(2)}, "config": None}
    content[where] = Hostile(mark)
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    if where == "config":
        assert read_foreign_tensors(tmp_path / "x.pth")["w"].tolist() == [1, 1]
    else:
        with pytest.raises(UnsafeFileError, match="no named tensors"):
            read_foreign_tensors(tmp_path / "x.pth")
    assert not mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        b'cbuiltins\neval\n(S\'open("executed", "w")\'\ntR.',
        b"ctorch\nload\n(S'executed'\ntR.",
        b"ctorch._utils\n_import_dotted_name\n(S'os.system'\ntR(S'touch executed'\ntR.",
        b"ctorch.serialization\nos\n(S'x'\ntR.",
    ],
)
def test_hostile_opcodes_never_execute(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    pickle_bytes = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
    (tmp_path / "x.pth").write_bytes(pickle_bytes + pickle.dumps({}, protocol=2) + code)
    with pytest.raises(UnsafeFileError):
        read_foreign_tensors(tmp_path / "x.pth")
    assert not (tmp_path / "executed").exists()


def test_absent_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        read_foreign(tmp_path / "no.pth")
    torch.save({"model": {"w": torch.randn(500)}}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:900])
    with pytest.raises(UnsafeFileError, match=r"cut\.pth: is no readable torch file"):
        read_foreign(tmp_path / "cut.pth")
    with pytest.raises(UnsafeFileError, match="URLs are refused"):
        read_foreign("https://example.org/x.pth")


def test_weights_are_found_wherever_programs_keep_them():
    w = {"w": torch.ones(1)}
    assert find_tensors(w).keys() == {"w"}
    for key in ("model", "state_dict", "net", "teacher"):
        assert find_tensors({key: w, "other": torch.zeros(1)}).keys() == {"w"}
    assert find_tensors([w]) == {}
