"""Competitors in processes of their own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks.competitors import Entry, add_options, measure, take_turns
from tests.benchmarks.counting import Setting

BUILD = "tests.benchmarks.counting:build"


@pytest.fixture
def options():
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(["--repeats", "3", "--steps", "2"])


def test_turns_count_work_seconds_and_memory(options):
    one = Entry("one", sys.executable, BUILD, Setting(8), {"rows": 80})
    two = Entry("two", sys.executable, f"{BUILD}:bags", Setting(5))
    first, second = take_turns((one, two), options)
    assert [answer["counts"] for answer in first.answers] == [{"rows": 16}] * 3
    assert [answer["counts"] for answer in second.answers] == [{"bags": 10}] * 3
    assert len(first.speeds("rows")) == 3 and min(first.speeds("rows")) > 0
    cpu = sum(answer["cpu"] for answer in first.answers)
    assert first.epoch_seconds("rows") == pytest.approx(cpu / 48 * 80)
    assert first.losses["loss"] == 1.0 / sum(range(20_000 + 6))  # one step warmed up
    assert first.imported_mib <= first.peak_mib


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system tells only the peak since the fork")
def test_memory_is_the_workers_own(options):
    held = bytearray(b"x") * (400 << 20)
    found = measure(Entry("small", sys.executable, BUILD, Setting(1)), options)
    assert found["peak_mib"] < 200 < len(held) / 2**20


def test_a_worker_that_ended_is_named(options):
    broken = Entry("broken", sys.executable, BUILD, Setting(1, fails_at=2))
    with pytest.raises(RuntimeError, match="broken: the worker ended with status 1; --verbose shows why"):
        take_turns((broken,), options)
