"""DICOM to array: syntaxes, bit depths, tables, and headers that are wrong."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGLosslessSV1

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError, MissingExtraError
from data_prep.medical.xray.dicom import read_dicom
from data_prep.medical.xray.errors import (
    ConstantImageError,
    MultiFrameError,
    NoPixelDataError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
)
from tests.data.medical.make_xrays import LOSSLESS, LOSSY, NATIVE, chest, compress, dataset, dicom, png, save, stretched

VALUES = chest()
SIGNED = (VALUES.astype(np.int16) - 2048).astype(np.int16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.dcm"


@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS], ids=lambda uid: uid.name)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_lossless_syntaxes_at_every_depth(path: Path, syntax: UID, bits: int) -> None:
    values = chest(bits, bits=bits)
    found = read_dicom(save(path, compress(dataset(values, bits), values, syntax)))
    assert np.array_equal(found.pixels, values if bits == 8 else stretched(values))
    assert found.pixels.dtype == np.uint8 and found.remarks == ()
    assert (found.view, found.age) == ("PA", 61)


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda uid: uid.name)
def test_lossy_syntaxes_are_close(path: Path, syntax: UID) -> None:
    values = chest(bits=8) if syntax == JPEGBaseline8Bit else VALUES
    found = read_dicom(save(path, compress(dataset(values, 8 if values.itemsize == 1 else 12), values, syntax)))
    wanted = values if values.itemsize == 1 else stretched(values)
    assert np.abs(found.pixels.astype(int) - wanted).max() <= 3


@pytest.mark.parametrize("syntax", [*NATIVE[:2], *LOSSLESS], ids=lambda uid: uid.name)
def test_a_missing_transfer_syntax_is_found_in_the_data(path: Path, syntax: UID) -> None:
    found = read_dicom(save(path, compress(dataset(VALUES, 12), VALUES, syntax), syntax_missing=True))
    assert np.array_equal(found.pixels, stretched(VALUES))
    assert "transfer syntax missing" in found.remarks


def test_monochrome1_is_inverted(path: Path) -> None:
    found = read_dicom(dicom(path, 4095 - VALUES, 12, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(found.pixels, stretched(VALUES))
    eight = chest(bits=8)
    found = read_dicom(dicom(path, 255 - eight, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(found.pixels, eight)


def test_eight_bits_are_taken_as_they_are(path: Path) -> None:
    values = (chest(bits=8) // 4 + 30).astype(np.uint8)
    found = read_dicom(dicom(path, values, WindowCenter=40, WindowWidth=10, RescaleSlope=3, RescaleIntercept=1))
    assert np.array_equal(found.pixels, values)
    assert np.array_equal(read_dicom(path, percentile=0.001).pixels, stretched(values))


@pytest.mark.parametrize(
    ("header", "unused"),
    [
        ({"WindowCenter": 100, "WindowWidth": 60}, ["window"]),
        ({"WindowCenter": 300, "WindowWidth": 180, "RescaleSlope": 3, "RescaleIntercept": 1}, ["window"]),
        ({"WindowCenter": -100, "WindowWidth": 60, "RescaleSlope": -1, "RescaleIntercept": 0}, ["window"]),
        ({"WindowCenter": 100, "WindowWidth": 60, "VOILUTFunction": "SIGMOID"}, ["window"]),
        ({"WindowCenter": 128, "WindowWidth": 256, "RescaleSlope": 1, "RescaleIntercept": 0}, []),
        ({"WindowCenter": 900, "WindowWidth": 10}, []),  # leaves nothing to see
        ({"RescaleSlope": 2, "RescaleIntercept": -5}, []),  # a stretch
    ],
    ids=["window", "after a rescale", "after an inversion", "sigmoid", "whole range", "beside", "stretch"],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_of_eight_bits_are_remarked_upon_and_applied_on_request(
    path: Path, header: dict[str, object], unused: list[str], photometric: str
) -> None:
    values = chest(bits=8)
    file = dicom(path, values, **header, PhotometricInterpretation=photometric)
    plain, asked = read_dicom(file), read_dicom(file, eight_bit_lut=True)
    told = [remark for remark in plain.remarks if remark.endswith("not applied")]
    assert told == [f"8 bits: {name} not applied" for name in unused]
    inverted = (photometric == "MONOCHROME1") != (header.get("RescaleSlope", 1) < 0)
    assert np.array_equal(plain.pixels, 255 - values if inverted else values)
    assert not any("not applied" in remark for remark in asked.remarks)
    if unused:
        found = dcmread(file)
        wanted = apply_voi_lut(apply_modality_lut(values, found), found)
        # under a negative slope pydicom's window gives its darkest value to the largest one
        wanted = stretched(-wanted if header.get("RescaleSlope", 1) < 0 else wanted)
        wanted = 255 - wanted if photometric == "MONOCHROME1" else wanted
        assert np.abs(asked.pixels.astype(int) - wanted).max() <= 1
    else:
        assert np.array_equal(asked.pixels, plain.pixels)


def test_a_falling_rescale_of_eight_bits_is_an_inversion(path: Path) -> None:
    values = chest(bits=8)
    header = {"RescaleSlope": -1, "RescaleIntercept": 255}
    found = read_dicom(dicom(path, values, **header))
    assert np.array_equal(found.pixels, apply_modality_lut(values, dcmread(path)))
    assert found.remarks == ("8 bits: inverted by the rescale slope",)
    twice = read_dicom(dicom(path, values, **header, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(twice.pixels, values)


def test_tables_and_padding_of_eight_bits(path: Path) -> None:
    table = Dataset()
    curve = (np.linspace(1, 0, 256) ** 2 * 255).astype(np.uint16)
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [256, 0, 16], curve.tolist(), "US"
    for name in ("LUTDescriptor", "LUTData"):
        table[name].VR = "US"
    values = chest(bits=8)
    for name, tag in (("VOI LUT", "VOILUTSequence"), ("modality LUT", "ModalityLUTSequence")):
        file = dicom(path, values, **{tag: Sequence([table])})
        assert read_dicom(file).remarks == (f"8 bits: {name} not applied",)
        assert np.array_equal(read_dicom(file).pixels, values)
        asked = read_dicom(file, eight_bit_lut=True)
        assert np.array_equal(asked.pixels, stretched(curve[values])) and asked.remarks == ()
    values = np.maximum(values, 20)
    values[:, :9] = 0
    assert read_dicom(dicom(path, values, PixelPaddingValue=0)).remarks == ()  # black already
    file = dicom(path, values, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1")
    assert read_dicom(file).remarks == ("8 bits: padding not applied",)
    asked = read_dicom(file, eight_bit_lut=True).pixels.astype(int)
    assert (asked[:, :9] == 0).all() and np.abs(asked[:, 9:] - (255 - stretched(values[:, 9:]))).max() <= 1


def test_eight_bits_in_sixteen_are_stretched(path: Path) -> None:
    values = chest(bits=8).astype(np.uint16) // 3
    assert np.array_equal(read_dicom(dicom(path, values, 8)).pixels, stretched(values))


def test_percentiles_clip_both_ends(path: Path) -> None:
    values = chest(bits=12) // 4 + 100
    values[0, 0], values[0, 1] = 0, 4095
    found = read_dicom(dicom(path, values, 12), percentile=0.5).pixels
    low, high = np.percentile(values, [0.5, 99.5], method="nearest")
    wanted = np.floor(np.clip((values - float(low)) / (high - float(low)), 0, 1) * 255 + 0.5)
    assert np.abs(found - wanted).max() <= 1 and found[0, 1] == 255
    assert read_dicom(path).pixels.std() < found.std() / 2


def test_signed_values(path: Path) -> None:
    found = read_dicom(dicom(path, SIGNED, 16))
    assert np.array_equal(found.pixels, stretched(VALUES)) and found.remarks == ()


@pytest.mark.parametrize(
    ("values", "bits", "declared", "remark"),
    [
        (SIGNED.view(np.uint16), 16, 0, "values are signed"),
        (VALUES, 12, 1, "values are unsigned"),
        (VALUES << 4, 16, 1, "values are unsigned"),
        (VALUES, 10, 0, "more than 10 bits"),
        (VALUES << 4, 12, 0, "more than 12 bits"),
    ],
    ids=["signed as unsigned", "12 bits as signed", "16 bits as signed", "too few bits", "high bits"],
)
def test_wrong_pixel_representation_is_put_right(
    path: Path, values: np.ndarray, bits: int, declared: int, remark: str
) -> None:
    found = read_dicom(dicom(path, values.astype(np.uint16), bits, PixelRepresentation=declared))
    assert np.array_equal(found.pixels, stretched(VALUES))
    assert remark in found.remarks[0]


def test_two_s_complement_without_repeated_sign(path: Path) -> None:
    found = read_dicom(dicom(path, (SIGNED.astype(int) & 4095).astype(np.uint16), 12, PixelRepresentation=1))
    assert np.array_equal(found.pixels, stretched(VALUES)) and found.remarks == ()


def test_an_overlay_in_the_unused_bits_is_no_image(path: Path) -> None:
    values = VALUES.copy()
    values[5:20, 5:40] |= 0x8000
    found = read_dicom(dicom(path, values, 12))
    assert np.array_equal(found.pixels, stretched(VALUES)) and found.remarks == ()


def test_letters_and_collimation_do_not_look_like_a_wrong_sign(path: Path) -> None:
    letter = VALUES // 3
    letter[4:20, 4:24] = 4095
    letter[:2] = 0
    round_field = np.where(np.hypot(*(np.mgrid[:64, :64] - 32)) < 28, VALUES // 3, 4000 + VALUES % 90)
    for values in (letter, round_field.astype(np.uint16)):
        found = read_dicom(dicom(path, values, 12))
        assert found.remarks == () and np.array_equal(found.pixels, stretched(values))


def test_window_and_rescale_are_applied(path: Path) -> None:
    values = chest(3)
    header = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [3000, 1], "WindowWidth": [2000, 2]}
    found = read_dicom(dicom(path, values, 12, **header)).pixels
    wanted = np.floor(np.clip((values * 2.0 - 1000 - 2999.5) / 1999 + 0.5, 0, 1) * 255 + 0.5)
    assert np.abs(found - wanted).max() <= 1
    assert (found == 0).any() and (found == 255).any()


def test_a_window_keeps_the_order_under_a_falling_rescale(path: Path) -> None:
    values = chest(3)
    header = {"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2000, "WindowWidth": 1500}
    found = read_dicom(dicom(path, values, 12, **header)).pixels
    wanted = np.floor(np.clip((4095.0 - values - 1999.5) / 1499 + 0.5, 0, 1) * 255 + 0.5)
    assert np.abs(found - wanted).max() <= 1 and found[values.argmin() // 64, values.argmin() % 64] == 255


def test_lut_tables_are_applied(path: Path) -> None:
    table = Dataset()
    curve = (np.linspace(0, 1, 4096) ** 2 * 65535).astype(np.uint16)
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], curve.tolist()
    for header in ({"VOILUTSequence": Sequence([table])}, {"VOILUTSequence": Sequence([table]), "RescaleSlope": 1.0}):
        if "RescaleSlope" in header:
            header["RescaleIntercept"] = 0.0
        for item in header["VOILUTSequence"]:
            item["LUTDescriptor"].VR = "US"
            item["LUTData"].VR = "US"
        found = read_dicom(dicom(path, VALUES, 12, **header))
        assert np.array_equal(found.pixels, stretched(curve[VALUES])) and found.remarks == ()
    table.ModalityLUTType = "US"
    found = read_dicom(dicom(path, VALUES, 12, ModalityLUTSequence=Sequence([table])))
    assert np.array_equal(found.pixels, stretched(curve[VALUES]))


@pytest.mark.parametrize(
    "header",
    [
        {"WindowCenter": 90_000, "WindowWidth": 10},
        {"WindowCenter": 2048, "WindowWidth": 0},
        {"RescaleSlope": 0, "RescaleIntercept": 5},
    ],
    ids=["window beside the values", "window of no width", "slope 0"],
)
def test_tables_that_leave_nothing_to_see_are_ignored(path: Path, header: dict[str, float]) -> None:
    found = read_dicom(dicom(path, VALUES, 12, **header))
    assert np.array_equal(found.pixels, stretched(VALUES))
    assert "ignored" in found.remarks[0]


def test_padding_does_not_count(path: Path) -> None:
    values = VALUES // 2 + 1000
    values[:, :20] = 0
    found = read_dicom(dicom(path, values, 12, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(found.pixels[:, 20:], stretched(4095 - values[:, 20:]))
    assert (found.pixels[:, :20] == 0).all()


def test_what_a_header_lacks_is_filled_in(path: Path) -> None:
    pixels = ("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")
    others = ("PixelRepresentation", "Modality", "ViewPosition", "PatientAge", "PatientID")
    found = read_dicom(dicom(path, VALUES, 16, **dict.fromkeys((*pixels, *others))))
    assert np.array_equal(found.pixels, stretched(VALUES))
    assert (found.view, found.patient, found.age) == ("", "", None)
    assert found.remarks == ("photometric interpretation missing",)


def test_colour_becomes_grey(path: Path) -> None:
    grey = chest(bits=8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    header = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    found = dicom(path, rgb, 8, **header, Rows=64, Columns=64)
    assert np.array_equal(read_dicom(found).pixels, grey)


@pytest.mark.parametrize(
    ("view", "wanted"),
    [("AP", "AP"), ("pa", "PA"), ("LL", "LATERAL"), ("AP SUPINE", "AP"), ("LLO", "LLO"), ("", "")],
)
def test_views(path: Path, view: str, wanted: str) -> None:
    assert read_dicom(dicom(path, VALUES, 12, ViewPosition=view)).view == wanted


@pytest.mark.parametrize(("age", "years"), [("058Y", 58), ("155", 155), ("006M", 0.5), ("", None), ("old", None)])
def test_ages(path: Path, age: str, years: float | None) -> None:
    assert read_dicom(dicom(path, VALUES, 12, PatientAge=age)).age == years


def test_truncated(path: Path) -> None:
    data = dicom(path, VALUES, 12).read_bytes()
    for cut in (len(data) - 1, len(data) - 3000):
        path.write_bytes(data[:cut])
        with pytest.raises(TruncatedImageError, match=r"image\.dcm: pixel data: cut short"):
            read_dicom(path)


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY, NATIVE[3]], ids=lambda uid: uid.name)
def test_truncated_compressed(path: Path, syntax: UID) -> None:
    values = chest(bits=8) if syntax == JPEGBaseline8Bit else VALUES
    data = save(path, compress(dataset(values, 8 if values.itemsize == 1 else 12), values, syntax)).read_bytes()
    for cut in (len(data) - 40, len(data) - 300):
        path.write_bytes(data[:cut])
        with pytest.raises(TruncatedImageError, match="cut short"):
            read_dicom(path)


def test_a_compressed_image_without_its_end_is_truncated(path: Path) -> None:
    from pydicom.encaps import encapsulate, get_frame

    found = compress(dataset(VALUES, 12), VALUES, JPEGLosslessSV1)
    frame = get_frame(found.PixelData, 0, number_of_frames=1)
    found.PixelData = encapsulate([frame[: len(frame) // 2 * 2 - 400]])
    with pytest.raises(TruncatedImageError, match="has no end"):
        read_dicom(save(path, found))


def test_bad_files_say_what_they_are(path: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, type[CorruptRecordError], str]] = [
        (dicom(path.with_name("frames.dcm"), VALUES, 12, NumberOfFrames=3), MultiFrameError, "3 frames"),
        (dicom(path.with_name("film.dcm"), np.stack([VALUES] * 2), 12), MultiFrameError, "2 frames, though the header"),
        (dicom(path.with_name("none.dcm"), VALUES, 12, PixelData=None), NoPixelDataError, "there is none"),
        (dicom(path.with_name("flat.dcm"), VALUES * 0 + 9, 12), ConstantImageError, "all pixels have one value"),
        (dicom(path.with_name("flat8.dcm"), chest(bits=8) * 0), ConstantImageError, "all pixels have one value"),
        (dicom(path.with_name("ct.dcm"), VALUES, 12, Modality="CT"), UnsupportedImageError, "CT is no radiograph"),
        (dicom(path.with_name("huge.dcm"), VALUES, 12, Rows=65535, Columns=65535), UnsupportedImageError, "no radio"),
        (dicom(path.with_name("zero.dcm"), VALUES, 12, Rows=0), UnsupportedImageError, "no radiograph"),
        (png(tmp_path / "png.dcm.png", chest(bits=8)).rename(tmp_path / "png.dcm"), NotAnImageError, "no DICOM file"),
    ]
    film = compress(dataset(VALUES, 12), VALUES, JPEGLosslessSV1)
    film.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")  # MPEG-4
    cases.append((save(path.with_name("mpeg.dcm"), film), UnsupportedImageError, "no format of still images"))
    empty = tmp_path / "empty.dcm"
    empty.write_bytes(b"")
    cases.append((empty, NotAnImageError, "no DICOM file"))
    for bad, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            read_dicom(bad)
        assert str(bad) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DatasetNotFoundError):
        read_dicom(tmp_path / "absent.dcm")


def test_a_missing_decoder_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, compress(dataset(VALUES, 12), VALUES, JPEGLosslessSV1))
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    with pytest.raises(MissingExtraError, match=r"JPEG Lossless.*pip install 'heptad\[medical\]'"):
        read_dicom(path)


@pytest.mark.parametrize("syntax", [NATIVE[0], NATIVE[3], *LOSSLESS], ids=lambda uid: uid.name)
def test_damaged_files_raise_only_our_errors(path: Path, syntax: UID) -> None:
    data = save(path, compress(dataset(VALUES, 12), VALUES, syntax)).read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(60):
        broken = bytearray(data)
        # In the header, where it hurts, as often as in the pixels.
        for place in (rng.randrange(132, 900), rng.randrange(len(data))):
            broken[place % len(data)] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(broken[: rng.choice([len(broken), rng.randrange(len(broken))])]))
        try:
            assert read_dicom(path).pixels.dtype == np.uint8
        except CorruptRecordError as error:
            refused += 1
            assert str(path) in str(error)
        except MissingExtraError:
            pass  # a flipped bit may name a syntax whose decoder is not there
    assert refused > 10
