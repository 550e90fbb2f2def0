"""Filters, references, blocks and what channels look like, against independent programs and against themselves."""

from __future__ import annotations

from dataclasses import replace

import mne
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError
from data_prep.ieeg.records import Channel
from data_prep.ieeg.signal import filters
from data_prep.ieeg.signal.blocks import Gap, fill_gaps, read_block, silence_gaps
from data_prep.ieeg.signal.filters import FilterRules, mains_harmonics, plan_blocks
from data_prep.ieeg.signal.quality import doubts, in_volts, too_large
from data_prep.ieeg.signal.reference import make_reference, neighbours, remark_pairs
from data_prep.ieeg.signal.statistics import ChannelStatistics, Scanner

RULES = FilterRules(512.0, 0.5, 150.0, mains_harmonics(50.0, 256.0))


class Reader:
    def __init__(self, signal):
        self.signal = signal

    def read(self, start, stop):
        assert 0 <= start <= stop <= self.signal.shape[1]
        return self.signal[:, start:stop].copy()

    def close(self):
        """Nothing is open."""


def process(signal, rate, rules, channels=1):
    plan = plan_blocks(rate, channels, rules)
    samples = signal.shape[1]
    pieces = []
    for block in range(plan.blocks(samples)):
        left = block * plan.hop - plan.overlap
        raw, gaps = read_block(Reader(signal), left, left + plan.size, samples, rate, plan.overlap)
        made = plan.apply(raw)
        silence_gaps(made, gaps, [[row] for row in range(len(made))], block * plan.hop, plan.up, plan.down)
        pieces.append(made)
    return np.concatenate(pieces, axis=1)[:, : plan.samples_out(samples)], plan


def sine(rate, seconds, frequency, height=100.0):
    return (height * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)[None]


@pytest.mark.parametrize("rate", [2048.0, 5000.0, 1000.0, 512.0, 500.0, 256.0, 173.61])
def test_a_wave_in_the_band_keeps_height_and_phase_and_the_mains_go(rate):
    rules = FilterRules(512.0, 0.5, min(150.0, 0.4 * rate), mains_harmonics(50.0, rate / 2))
    out, plan = process(sine(rate, 150, 10) + sine(rate, 150, 50) + 500, rate, rules)
    want = 100 * np.sin(2 * np.pi * 10 * np.arange(out.shape[1]) / 512)
    assert plan.rate_out == pytest.approx(512.0, abs=1e-9)
    assert out.shape[1] == int(int(rate * 150) * plan.up // plan.down)
    inner = slice(10 * 512, -10 * 512)
    assert np.abs(out[0] - want)[inner].max() < 0.11, "the mains would leave 100, and the offset 500"


def test_what_lies_beyond_the_new_nyquist_frequency_does_not_come_back():
    out, _ = process(sine(2048.0, 100, 400), 2048.0, FilterRules(512.0, 0.0, 0.0))
    assert np.abs(out[0, 5120:-5120]).max() < 100 * 10 ** (-60 / 20)


def decibels(plan, rate, frequencies):
    at = np.arange(len(plan.response)) * rate / plan.size
    height = np.interp(frequencies, at, np.abs(plan.response) / plan.response[np.argmin(np.abs(at - 20))])
    return 20 * np.log10(np.maximum(height, 1e-9))


@pytest.mark.parametrize("mains", [50.0, 60.0])
@pytest.mark.parametrize("rate", [512.0, 1024.0, 2048.0])
def test_every_harmonic_that_the_low_pass_filter_leaves_is_taken_out(rate, mains):
    plan = plan_blocks(rate, 1, FilterRules(512.0, 0.5, 150.0, mains_harmonics(mains, rate / 2)))
    heard = mains_harmonics(mains, 150 * 1.25)
    assert max(heard) >= 150
    assert decibels(plan, rate, heard).max() < -60
    beside = [f + step for f in heard for step in (-5, 5) if f + step < 150]
    assert np.abs(decibels(plan, rate, beside)).max() < 0.01
    unlimited = plan_blocks(rate, 1, FilterRules(rate, 0.5, 0.0, mains_harmonics(mains, rate / 2)))
    assert decibels(unlimited, rate, mains_harmonics(mains, rate / 2 - 2.5)).max() < -60


def test_notches_that_run_into_each_other_are_refused():
    with pytest.raises(ConfigError, match="too close"):
        plan_blocks(512.0, 1, FilterRules(512.0, 0.5, 150.0, mains_harmonics(2.0, 256.0)))


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    signal = rng.normal(0, 50, (3, 2048 * 200)).astype(np.float32)
    whole, _ = process(signal, 2048.0, RULES, 3)
    monkeypatch.setattr(filters, "HOP_SECONDS", 17.0)
    small, plan = process(signal, 2048.0, RULES, 3)
    assert plan.hop < 2048 * 20
    assert np.abs(whole - small).max() < 2e-3


def test_agrees_with_mne_inside_the_band():
    rng = np.random.default_rng(1)
    signal = rng.normal(0, 50, (2, 1024 * 120)).astype(np.float32)
    ours, _ = process(signal, 1024.0, FilterRules(512.0, 0.5, 100.0), 2)
    info = mne.create_info(2, 1024.0, "seeg")
    raw = mne.io.RawArray(signal.astype(np.float64), info, verbose="error")
    raw.filter(0.5, 100.0, verbose="error").resample(512.0, verbose="error")
    # the designs differ in their transitions alone: compare what both let pass
    theirs = raw.get_data()
    band = mne.filter.filter_data(np.stack([ours[0].astype(np.float64), theirs[0]]), 512.0, 3.0, 90.0, verbose="error")
    inner = band[:, 512 * 15 : -512 * 15]
    assert np.abs(inner[0] - inner[1]).max() < 0.02 * inner[0].std()


def test_awkward_rates_are_approximated_and_told():
    plan = plan_blocks(499.907, 1, RULES)
    assert abs(plan.rate_out / 512 - 1) < 1e-6
    assert plan.hop % plan.down == 0
    assert (plan.size * plan.up) % plan.down == 0


def test_impossible_bands_are_refused():
    with pytest.raises(ConfigError, match="nothing is left between"):
        plan_blocks(512.0, 1, FilterRules(512.0, 10.0, 5.0))
    with pytest.raises(ConfigError, match="nothing above"):
        plan_blocks(100.0, 1, FilterRules(512.0, 60.0, 0.0))


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 60), start=st.integers(-80, 60), length=st.integers(1, 120))
def test_beyond_its_ends_a_recording_is_mirrored(samples, start, length):
    assume(start < samples and start + length > 0)
    signal = np.arange(samples, dtype=np.float32)[None] ** 1.5
    block = read_block(Reader(signal), start, start + length, samples, 1.0).signal
    assert block.shape == (1, length)
    places = np.arange(start, start + length)
    inside = (places >= 0) & (places < samples)
    np.testing.assert_array_equal(block[0, inside], signal[0, places[inside]])
    if samples > 80:
        before = places < 0
        np.testing.assert_allclose(block[0, before], 2 * signal[0, 0] - signal[0, -places[before]])


def test_gaps_are_bridged_and_long_ones_are_told():
    signal = np.tile(np.arange(100, dtype=np.float32), (4, 1))
    signal[0, 20:25] = np.nan
    signal[1, 30:60] = np.inf
    signal[2, :15] = signal[2, 99] = np.nan
    filled, gaps = fill_gaps(signal, 10.0, reach=20)
    np.testing.assert_array_equal(filled[[0, 1, 3]], np.tile(np.arange(100), (3, 1)))
    np.testing.assert_array_equal(filled[2], [15.0] * 15 + list(range(15, 99)) + [98.0])
    assert gaps == [(1, 30, 60), (2, 0, 15)]
    assert np.isnan(signal[0, 20]), "the raw signal stays"
    halves = fill_gaps(signal, 10.0, reach=14).signal[1]
    np.testing.assert_array_equal(halves[30:60], [29.0] * 15 + [60.0] * 15)
    nothing = fill_gaps(np.full((1, 15), np.nan, np.float32), 10.0)
    assert not nothing.signal.any()
    assert nothing.gaps == [(0, 0, 15)]


def with_gaps(signal, rate, gaps):
    broken = signal.copy()
    for row, begin, end in gaps:
        broken[row, int(begin * rate) : int(end * rate)] = np.nan
    return broken


GAPS = ((0, 30, 52), (0, 100, 103), (1, 0, 12), (1, 90, 200), (2, 55, 61.5), (3, 15.5, 18.5))


def test_no_gap_makes_a_step(monkeypatch):
    rate = 256.0
    drift = 50 * np.sin(np.arange(int(200 * rate)) / rate)
    signal = (np.random.default_rng(4).normal(0, 40, (4, len(drift))) + drift + 5000).astype(np.float32)
    broken = with_gaps(signal, rate, GAPS)
    monkeypatch.setattr(filters, "HOP_SECONDS", 17.0)
    whole, plan = process(signal, rate, RULES, 4)
    made, _ = process(broken, rate, RULES, 4)
    monkeypatch.setattr(filters, "HOP_SECONDS", 60.0)
    other, longer = process(broken, rate, RULES, 4)
    assert plan.hop < 20 * rate < longer.hop, "blocks begin and end in gaps"
    assert np.abs(made - other).max() < 0.01, "blocks change nothing"
    for row in range(4):
        inside = np.zeros(made.shape[1], bool)
        for begin, end in ((begin, end) for one, begin, end in GAPS if one == row):
            inside[int(begin * 512) : int(end * 512)] = True
        assert not made[row, inside].any(), "nothing is invented"
        outside = ~inside
        assert np.abs(made[row, outside]).max() < 1.5 * np.abs(whole[row]).max(), "5,000 uV would be a step"


def test_a_gap_of_one_contact_is_silence_in_what_is_made_of_it():
    reference = make_reference("bipolar", contacts("A1", "A2", "A3", "B1", "B2"), np.ones(5, bool))
    assert reference.made_of() == [[0], [0, 1], [1], [2], [2]]
    assert make_reference("median", contacts("A1", "B1"), np.ones(2, bool)).made_of() == [[0], [1]]
    made = np.ones((3, 20), np.float32)
    silence_gaps(made, [Gap(0, 90, 110), Gap(1, 107, 999), Gap(4, 0, 50)], reference.made_of(), 100, 1, 2)
    np.testing.assert_array_equal(made.sum(axis=1), [4 - 4 + 0 + 11 - 11, 4, 20])


def contacts(*names):
    found = []
    for index, name in enumerate(names):
        shaft = name.rstrip("0123456789")
        found.append(Channel(name, index, shaft=shaft, contact=int(name[len(shaft) :])))
    return found


def test_references():
    rng = np.random.default_rng(2)
    channels, signal = contacts("A1", "A2", "B'1", "A3"), rng.normal(size=(4, 50)).astype(np.float32)
    good = np.array([True, True, False, True])
    average = make_reference("common-average", channels, good).apply(signal)
    np.testing.assert_allclose(average, signal - signal[good].mean(0), rtol=1e-5)
    median = make_reference("median", channels, good).apply(signal)
    np.testing.assert_allclose(median, signal - np.median(signal[good], axis=0), rtol=1e-5)
    bipolar = make_reference("bipolar", channels, good)
    assert [channel.name for channel in bipolar.channels] == ["A1-A2", "A2-A3"]
    assert bipolar.pairs == (("A1", "A2"), ("A2", "A3"))
    np.testing.assert_allclose(bipolar.apply(signal), signal[[0, 1]] - signal[[1, 3]], rtol=1e-5)
    assert make_reference("none", channels, good).apply(signal) is signal
    assert neighbours(contacts("A1", "B2", "A3")) == []
    for kind in ("common-average", "bipolar"):
        with pytest.raises(ConfigError, match="use --reference none"):
            make_reference(kind, channels[:1], good[:1])
    with pytest.raises(ConfigError, match="no two channels are neighbouring"):
        make_reference("bipolar", contacts("A1", "B1"), np.ones(2, bool))


def grid(rows, columns, step=10.0):
    names = [f"G{i + 1}" for i in range(rows * columns)]
    places = [(step * (i % columns), step * (i // columns), 0.0) for i in range(rows * columns)]
    return [replace(one, kind="ECOG", place=place) for one, place in zip(contacts(*names), places, strict=True)]


def test_rows_of_a_grid_are_not_joined():
    channels = grid(8, 8)
    assert neighbours(channels) == [(i, i + 1) for i in range(63) if i % 8 != 7]
    (told,) = remark_pairs(channels)
    assert "7 pairs are left out" in told
    assert "G8-G9" in told
    assert remark_pairs(grid(1, 8)) == []
    together = [replace(one, place=(0.0, 0.0, 0.0)) for one in channels]
    assert len(neighbours(together)) == 63, "places that are all the same tell nothing"


def test_electrodes_that_are_paired_by_number_alone_are_told():
    unknown = [replace(one, place=contacts("A1")[0].place) for one in grid(8, 8)]
    assert len(neighbours(unknown)) == 63
    (told,) = remark_pairs([*unknown, *contacts("A1", "A2", "A18")])
    assert "by their numbers alone (G up to G64)" in told
    (told,) = remark_pairs(contacts("A18", "A19", "B17", "B18"))
    assert "(A up to A19)" in told
    assert remark_pairs([replace(one, kind="ECOG") for one in contacts("S1", "S2", "S3", "S4")]) == []


def scan(signal, rate=200.0, step=2000):
    scanner = Scanner(len(signal), rate)
    for start in range(0, signal.shape[1], step):
        scanner.add(signal[:, start : start + step])
    return scanner.result()


def healthy(channels=8, seconds=60, rate=200.0, seed=0):
    return np.random.default_rng(seed).normal(0, 40, (channels, int(seconds * rate))).astype(np.float32)


def test_doubtful_channels_are_found_and_healthy_ones_are_not():
    signal = healthy(12)
    assert doubts(scan(signal), 50.0) == [""] * 12
    signal[0] = 7
    signal[1] *= 40
    signal[2] += 400 * np.sin(2 * np.pi * 50 * np.arange(signal.shape[1]) / 200)
    signal[3, ::500] += 20000
    signal[4, : signal.shape[1] * 2 // 3] = np.nan
    found = doubts(scan(signal), 50.0)
    assert "flat" in found[0]
    assert "far from the others'" in found[1]
    assert "mains" in found[2]
    assert "kurtosis" in found[3] or "far from" in found[3]
    assert "67% missing" in found[4]
    assert found[5:] == [""] * 7


def test_a_dead_beginning_is_not_silence():
    signal = healthy(6)
    signal[:, :1000] = 0
    signal[2] = 5000.1
    found = scan(signal, step=12000)
    assert found.silent.tolist() == [False, False, True, False, False, False]
    assert found.flat.tolist() == [5, 5, 60, 5, 5, 5]
    assert np.sqrt(found.variance)[:2] == pytest.approx(40, rel=0.3)
    assert [bool(reason) for reason in doubts(found, 50.0)] == found.silent.tolist()
    assert scan(signal[:, 900:1050]).silent.tolist() == [False, False, True, False, False, False]
    late = healthy(1)
    late[:, :11600] = 0
    assert not scan(late, step=12000).silent.any()
    assert not in_volts(scan(late, step=12000))


def test_numbers_that_no_brain_makes_are_recognised():
    signal = healthy()
    assert too_large(scan(signal)) is None
    assert too_large(scan(signal * 1e6)) is not None
    signal[3] *= 1e5
    assert too_large(scan(signal)) == 3, "more than an amplifier measures"
    signal[3] /= 10
    assert too_large(scan(signal)) is None
    assert "none of a brain" in doubts(scan(signal[2:4]), 50.0)[1], "also where others are too few to compare"
    assert too_large(scan(np.zeros_like(signal))) is None


def test_volts_are_recognised():
    signal = healthy()
    assert not in_volts(scan(signal))
    assert in_volts(scan(signal * 1e-6))
    assert not in_volts(scan(np.zeros_like(signal)))


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 11), seed=st.integers(0, 100))
def test_statistics_of_stretches_join(cut, seed):
    signal = healthy(3, 24, seed=seed)
    place = cut * 400
    whole = scan(signal, step=400)
    parts = [scan(part, step=400).to_json() for part in (signal[:, :place], signal[:, place:])]
    joined = ChannelStatistics.join(parts)
    np.testing.assert_allclose(joined.moments, whole.moments)
    np.testing.assert_allclose(joined.envelope, whole.envelope, rtol=0.1)  # a step less at the border
    np.testing.assert_allclose(joined.kurtosis, whole.kurtosis)
    assert joined.samples == whole.samples


def test_kurtosis_and_variance_are_those_of_the_samples():
    rng = np.random.default_rng(3)
    signal = np.stack([rng.normal(5, 30, 800), rng.uniform(-10, 10, 800)]).astype(np.float32)
    found = scan(signal, step=800)
    assert found.variance == pytest.approx(signal.astype(np.float64).var(1), rel=1e-6)
    centred = signal - signal.mean(1, keepdims=True, dtype=np.float64)
    assert found.kurtosis == pytest.approx((centred**4).mean(1) / (centred**2).mean(1) ** 2, rel=1e-6)
