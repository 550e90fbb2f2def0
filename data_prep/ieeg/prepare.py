"""Recordings of intracranial EEG of any kind -> prepared directory of recordings.

| stage | module | what it leaves |
|---|---|---|
| (first) | bids, edf, brainvision, swec, mayo_fnusa, bonn | the listing: what to read, what is known about it |
| scan | tasks, signal/statistics | per half hour: holes, flat stretches, mains, amplitude, a fingerprint |
| (between) | decide, signal/quality | which recordings and channels are prepared, and how |
| signal | tasks, signal/filters, signal/reference | per half hour: HDF5 of the prepared signal |
| (last) | duplicates, splitting, card | splits, tables; then files under their final names, `dataset.json` |

Killed work continues; the bytes written depend on the input and the options alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def prepare(
    dataset: Literal["bids", "edf", "brainvision", "swec", "mayo-fnusa", "bonn"],
    raw: list[Path] | Path,
    out: Path,
    *,
    labels: Path | None = None,
    events: Path | None = None,
    channels: str = "",
    exclude: str = "",
    unit: str = "",
    subject_pattern: str = "",
    seizure_seconds: float = 0.0,
    mains: float = 0.0,
    version: str = "",
    reviewed: bool = False,
    rate: float = 512.0,
    reference: Literal["common-average", "median", "bipolar", "none"] = "common-average",
    highpass: float = 0.5,
    lowpass: float = 150.0,
    notch: str = "auto",
    bad_channels: Literal["report", "drop"] = "report",
    ratios: tuple[float, float, float] | None = None,
    split: Path | None = None,
    seed: int = 0,
    duplicates: Literal["auto", "report", "refuse"] = "auto",
    anonymise: Path | None = None,
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare recordings for training, measurement, or prediction.

    What is written are microvolts at one rate, band-passed, without the mains, re-referenced. Subjects stay on one side
    of every split, also under two ids: recordings with the same content, or of one patient by their headers, are found.
    Nothing of a header's patient and recording fields is written.

    Args:
        dataset: bids, edf (EDF, EDF+, BDF), brainvision, swec (SWEC-ETHZ), mayo-fnusa, or bonn.
        raw: folders or files of the data set, as it is downloaded.
        out: output directory; new, empty, or of the same preparation begun before.
        labels: YAML or JSON file that says which annotations are seizures; without it, words for seizures in several
            languages are known.
        events: CSV or TSV of events (file or recording, onset, and offset or duration), for data without annotations;
            recordings that it names take these in the place of their own, others keep theirs.
        channels: regular expression of the names of channels to keep; default all intracranial ones.
        exclude: regular expression of the names of channels to leave out.
        unit: unit of channels whose unit is blank or unknown, such as uV, or whose range no amplifier has in the unit
            that the file states; without it they are refused.
        subject_pattern: regular expression whose bracket finds the subject in a file's path.
        seizure_seconds: duration of seizures that are annotated without an end; without it they are refused.
        mains: Hz of the mains where the data do not tell; without it the spectrum may show it.
        version: of the data set, where there are several.
        reviewed: all recordings were looked through for seizures, also those without an annotation that tells; without
            it, those neither train nor measure.
        rate: Hz of the prepared signal.
        reference: common-average, median (as SWEC), bipolar (neighbouring contacts of an electrode), or none.
        highpass: lower edge of the pass-band, Hz; 0: none.
        lowpass: upper edge of the pass-band, Hz; 0: as high as the rates allow.
        notch: auto (the mains and its harmonics), none, or a frequency in Hz whose harmonics go, too.
        bad_channels: report (doubtful channels stay, are told, and are no part of an average) or drop; channels that
            never move are left out either way.
        ratios: shares of subjects in train, valid, test where the data have no split; 0.6, 0.2, 0.2.
        split: CSV with the columns subject and split, in the place of a drawn one.
        seed: of splits that are drawn.
        duplicates: of recordings with the same signal, and of subjects whose EDF headers name one patient: auto (such
            subjects stay on one side), report, or refuse.
        anonymise: file with a secret: names, subjects and files in the output are replaced by keyed hashes, and labels,
            notes and reasons that may quote them are left out. Names of channels stay.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable recordings that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    # behind the docstring: libraries of signals are slow to import, and the help needs none
    from data_prep.ieeg.decide import Processing
    from data_prep.ieeg.job import Options, run_preparation
    from data_prep.ieeg.records import Asked
    from data_prep.ieeg.splitting import SplitRule

    asked = Asked(labels, events, channels, exclude, unit, subject_pattern, seizure_seconds, mains, version)
    options = Options(
        dataset=dataset,
        asked=asked,
        processing=Processing(rate, reference, highpass, lowpass, notch, bad_channels),
        split=SplitRule(ratios, split, seed),
        duplicates=duplicates,
        anonymise=anonymise,
        max_rejects=max_rejects,
        reviewed=reviewed,
    )
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    return run_preparation(options, paths, out, workers, executor, shard, shard_patience, progress)
