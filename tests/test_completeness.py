"""Fails when a domain lacks a room of the house, or a promise that every domain's tests must keep."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

from apps.cli import COMMANDS, DOMAINS
from apps.common.domain import load
from domains.common import attention
from domains.common.attention import Recordable
from domains.common.data import HeptadData
from domains.common.module import HeptadModule

ROOT = Path(__file__).parents[1]

# promise -> what the name of the test that keeps it contains
PROMISES = {
    "parameter count against the paper": "parameter_count",
    "gradient reaches every parameter": "gradient_reaches_every_parameter",
    "padding invariance": "padding",
    "a row alone equals a row in a batch": "alone_as_in_any_batch",
    "weights of the official code come back": "weights_come_back",
    "resumed equals uninterrupted": "equals_uninterrupted",
    "two processes equal one": "two_processes_equal_one",
    "every shipped configuration runs a step": "every_shipped_config",
    "hostile files never execute": "hostile",
    "readers survive truncated and bit-flipped files": "truncated|flipped|damaged|cut_short",
    "killed preparation continues": "kill",
    "bytes independent of workers": "same_bytes|byte",
    "unlike devices agree": "gpu_equals_cpu",
}


@pytest.mark.parametrize("name", DOMAINS)
class TestEveryDomain:
    def test_rooms(self, name):
        rooms = [
            f"domains/{name}/{file}" for file in ("module.py", "data.py", "weights.py", "README.md", "__init__.py")
        ]
        rooms += [f"data_prep/{name}/__init__.py", f"apps/{name}/__init__.py", f"apps/{name}/configs/demo.yaml"]
        rooms += [f"tests/domains/{name}", f"tests/data_prep/{name}", f"tests/data/{name}"]
        assert [room for room in rooms if not (ROOT / room).exists()] == []

    def test_entry(self, name):
        domain = importlib.import_module(f"apps.{name}").DOMAIN
        assert domain.name == name
        for system in domain.systems.values():
            assert issubclass(load(system.module), HeptadModule)
            assert issubclass(load(system.data), HeptadData)
        for reference in (*domain.preparations, domain.apply, domain.figures, domain.explain, domain.demo):
            assert callable(load(reference)), reference
        for reference in domain.importers.values():
            assert callable(load(reference)), reference

    def test_configs_say_what_they_are_and_which_system(self, name):
        domain = importlib.import_module(f"apps.{name}").DOMAIN
        for path in domain.shipped_configs().values():
            assert path.read_text().startswith("# "), f"{path}: the first line must say which experiment it is"
            assert yaml.safe_load(path.read_text())["system"] in domain.systems

    def test_modules_implement_their_contract(self, name):
        domain = importlib.import_module(f"apps.{name}").DOMAIN
        for system in domain.systems.values():
            module = load(system.module)
            for method in ("evaluate", "example_inputs", "training_step", "predict_step", "configure_optimizers"):
                owner = next(cls for cls in module.__mro__ if method in vars(cls))
                assert owner.__module__.startswith(f"domains.{name}"), f"{module.__name__}.{method}"

    def test_promises(self, name):
        paths = list((ROOT / "tests" / "apps").glob(f"test_*_{name}.py"))
        for top in ("domains", "data_prep"):
            paths += (ROOT / "tests" / top / name).rglob("test_*.py")
        names = {test for path in paths for test in re.findall(r"def (test_\w+)", path.read_text())}
        broken = [p for p, pattern in PROMISES.items() if not any(re.search(pattern, test) for test in names)]
        assert broken == []

    def test_parity_cases(self, name):
        weights = (ROOT / "domains" / name / "weights.py").read_text()
        assert "def from_official" in weights
        assert "def to_official" in weights


def test_every_attention_block_is_in_the_table_of_its_tests():
    tests = (ROOT / "tests" / "domains" / "common").glob("test_*.py")
    table = "".join(path.read_text() for path in tests)
    blocks = [
        name for name, value in vars(attention).items() if inspect.isclass(value) and issubclass(value, Recordable)
    ]
    assert [name for name in blocks if name != "Recordable" and f"{name}(" not in table] == []


def test_commands_have_a_home():
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).main)


def test_nothing_is_left_for_later():
    words = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = []
    for top in ("apps", "domains", "data_prep", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            found += [str(path)] if words.search(path.read_text()) else []
    assert found == []
