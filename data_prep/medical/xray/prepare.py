"""Chest X-rays of any kind -> prepared directory of images.

| stage | module | what it leaves |
|---|---|---|
| (first) | covidx, ricord, rsna, medmnist, folder | the listing: what to read, and what the data set says about it |
| unpack | medmnist | arrays of an npz file, as files of their own |
| read | encode | per block: PNG files of images and masks, facts, thumbnails |
| (last) | splitting, duplicates, card | splits, duplicates, index; then files under their final names, `dataset.json` |

Killed work continues; the bytes written depend on the input and the options alone.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep.common.errors import MissingExtraError

if TYPE_CHECKING:
    pass

LIBRARIES = ("cv2", "PIL", "pydicom")  # of the extra `medical`


def prepare(
    dataset: Literal["covidx", "ricord", "rsna", "medmnist", "images"],
    raw: list[Path] | Path,
    out: Path,
    *,
    version: str = "",
    table: Path | None = None,
    mapping: Path | None = None,
    targets: Literal["pneumonia", "detailed"] = "pneumonia",
    patient_pattern: str = "",
    patients_per_source: bool = False,
    channels: Literal[1, 3] = 1,
    labels: str = "",
    positive: str = "",
    views: str = "frontal",
    masks: Path | None = None,
    max_side: int = 1024,
    percentile: float = 0.0,
    eight_bit_lut: bool = False,
    ratios: tuple[float, float, float] | None = None,
    valid_share: float | None = None,
    seed: int = 0,
    duplicates: Literal["auto", "report", "drop", "refuse"] = "auto",
    anonymise: Path | None = None,
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare chest X-rays (or other two-dimensional images with one label each) for classification.

    Images become 8-bit PNG files without metadata. Patients stay on one side of every split that is drawn; splits that
    come with the data are kept, and refused when a patient is on two sides. Letters burnt into the pixels stay.

    Args:
        dataset: covidx (lists and images), ricord (DICOM), rsna (tables and DICOM), medmnist (npz), or images (a folder
            for each class, or a table).
        raw: folders or files of the data set, as it is downloaded.
        out: output directory; new, empty, or of the same preparation begun before.
        version: covidx: which lists, such as 8B, 9A, Sev or CXR-3A, where several are there.
        table: images: CSV with the columns image and label, and patient, source, view, split, mask where known; ricord:
            CSV with label, and image or patient.
        mapping: rsna: file that says which exam is of which NIH patient (RSNA's JSON, or CSV).
        targets: rsna: pneumonia (two classes) or detailed (normal, not normal, opacity).
        patient_pattern: images: regular expression whose bracket finds the patient in a file name.
        patients_per_source: images: patient ids count per source, so that one id under two sources is two patients;
            else it is one, kept on one side.
        channels: images: 1 grey or 3 RGB.
        labels: classes to make of the labels, as in normal=negative,pneumonia=negative,COVID-19=positive; images with
            other labels are left out.
        positive: class that gets the last code, the one that two-class scores are about.
        views: frontal (AP and PA), all, or a list as in PA; images whose view nobody tells are kept.
        masks: folder of lung masks, called as the images are, of any size.
        max_side: longest side of a prepared image in pixels; larger images are shrunk.
        percentile: per cent of the pixels of DICOM and 16-bit images that are clipped at either end; 0 stretches from
            minimum to maximum, 0.5 is usual where borders or metal are.
        eight_bit_lut: apply window, LUT and padding of the header to DICOM images of 8 bits, too, which are else taken
            as they are stored.
        ratios: shares of patients in train, valid, test where the data have no split; 0.8, 0.1, 0.1.
        valid_share: share of the training patients that become the validation split where the data have a test split
            only; 0.1.
        seed: of splits that are drawn.
        duplicates: of images that are in two splits: auto (drop from the earlier split where the border was drawn here,
            else report), report, drop, or refuse.
        anonymise: file with a secret: names and patient ids in the output are replaced by keyed hashes.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable images that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    check_libraries()
    from data_prep.medical.xray.job import Options, run_preparation

    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    options = Options(
        dataset=dataset,
        version=version,
        table=table,
        mapping=mapping,
        targets=targets,
        patient_pattern=patient_pattern,
        patients_per_source=patients_per_source,
        channels=channels,
        labels=labels,
        positive=positive,
        views=views,
        masks=masks,
        max_side=max_side,
        percentile=percentile,
        eight_bit_lut=eight_bit_lut,
        ratios=ratios,
        valid_share=valid_share,
        seed=seed,
        duplicates=duplicates,
        anonymise=anonymise,
        max_rejects=max_rejects,
    )
    return run_preparation(options, paths, out, workers, executor, shard, shard_patience, progress)


def check_libraries() -> None:
    """Tell which extra is needed before anything fails for want of it.

    Raises:
        MissingExtraError: a library of the extra `medical` is not installed.
    """
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError("medical", f"preparation of X-rays ({name})") from error
