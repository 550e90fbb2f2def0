"""What the tests of all readers share."""

from __future__ import annotations

import itertools

import numpy as np

from data_prep.common.errors import PrepError
from data_prep.ieeg.records import Asked, Listing, Recording
from data_prep.ieeg.signals import open_signal

ASKED = Asked()


def only(listing: Listing) -> Recording:
    """The one recording of a listing without rejects."""
    assert listing.rejects == ()
    (recording,) = listing.recordings
    return recording


def why(listing: Listing) -> str:
    """Reason of the one reject of a listing without recordings."""
    assert listing.recordings == ()
    (reject,) = listing.rejects
    return reject.reason


def whole(recording: Recording) -> np.ndarray:
    """The whole signal; reading it in odd pieces gives the same."""
    reader = open_signal(recording)
    found = reader.read(0, recording.samples)
    cuts = [
        0,
        *sorted({1, recording.samples // 3, recording.samples // 2 + 1, recording.samples - 1}),
        recording.samples,
    ]
    pieces = [reader.read(start, stop) for start, stop in itertools.pairwise(cuts)]
    assert reader.read(5, 5).shape == (len(recording.kept), 0)
    reader.close()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.concatenate(pieces, axis=1))
    return found


def survives(read, raw, asked: Asked = ASKED) -> None:
    """Read damaged files to the end: only `PrepError` and rejects are allowed."""
    try:
        listing = read([raw], asked)
        for recording in listing.recordings:
            assert recording.samples > 0
            assert recording.rate > 0
            reader = open_signal(recording)
            found = reader.read(0, min(recording.samples, 2000))
            assert found.shape[0] == len(recording.kept)
            reader.close()
    except PrepError as error:
        assert "\n" not in str(error)
