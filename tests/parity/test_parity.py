"""Every recorded case of official code, replayed through the public code that users call."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.safetensors"))
JSON_CASES = sorted((HERE / "cases").glob("*.json"))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
EXPECTED = {"output", "loss", "grad"}
TOLERANCE = {"output": 2e-5, "loss": 2e-5, "grad": 1e-4}


def replayer(system: str) -> Any:
    """Module with the longest name that `system` starts with."""
    system = system.replace(".", "_").replace("-", "_")
    names = [path.stem for path in HERE.glob("*.py") if system.startswith(path.stem)]
    return importlib.import_module(f"tests.parity.{max(names, key=len)}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_tensors(case: Path, device: str) -> None:
    with safe_open(case, "pt", device=device) as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    expected = {name: tensor for name, tensor in tensors.items() if EXPECTED & set(name.split("/"))}
    given = {name: tensor for name, tensor in tensors.items() if name not in expected}
    module = replayer(metadata["system"])
    tolerance = {**TOLERANCE, **getattr(module, "TOLERANCE", {})}
    with torch.device(device):
        got = module.replay(metadata, given, list(expected))
    for name, want in expected.items():
        if not want.is_floating_point():
            assert torch.equal(got[name], want), name
            continue
        assert got[name].shape == want.shape, name
        finite = want.isfinite()  # of masked scores -inf is the value, of skipped queries NaN
        same = got[name][~finite].to(want.dtype).isclose(want[~finite], rtol=0.0, atol=0.0, equal_nan=True)
        assert same.all(), name
        error = (got[name][finite] - want[finite]).norm() / want[finite].norm().clamp(min=1e-12)
        kind = next(segment for segment in name.split("/") if segment in EXPECTED)
        assert error <= tolerance[kind], f"{name}: relative error {error:.2e}"


def split_json(case: Any, expected: set[str]) -> tuple[Any, Any]:
    """(what is given, what is expected) of a JSON case; `expected` names keys at any depth, also inside lists."""
    if isinstance(case, list):
        parts = [split_json(value, expected) for value in case]
        wanted_parts = [wanted for _, wanted in parts]
        return [given for given, _ in parts], wanted_parts if any(wanted_parts) else {}
    if not isinstance(case, dict):
        return case, {}
    given = {key: split_json(value, expected)[0] for key, value in case.items() if key not in expected}
    wanted = {key: value for key, value in case.items() if key in expected}
    wanted |= {
        key: found for key, value in case.items() if key not in expected and (found := split_json(value, expected)[1])
    }
    return given, wanted


@pytest.mark.parametrize("case", JSON_CASES, ids=lambda path: path.stem)
def test_json(case: Path) -> None:
    module = importlib.import_module(f"tests.parity.{case.stem}")
    given, wanted = split_json(json.loads(case.read_text()), module.EXPECTED)
    assert wanted
    assert module.replay_json(given) == wanted
