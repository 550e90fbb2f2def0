"""Intracranial EEG: the domain's entry."""

from apps.common.domain import Domain, System

_RECORDINGS = "data_prep.ieeg.prepare:prepare"
_SERIES = "data_prep.ieeg.series:prepare_series"
_WINDOWS = "domains.ieeg.data:RecordingData"
_SAMPLES = (("data.samples", "model.samples"),)
_HORIZON = (
    ("data.look_back", "model.samples"),
    ("data.n_variates", "model.n_variates"),
    ("data.horizon", "model.horizon"),
)

DOMAIN = Domain(
    name="ieeg",
    title="seizures and forecasts from intracranial EEG: MVPFormer",
    systems={
        "seizure": System("domains.ieeg.detection_module:SeizureModule", _WINDOWS, _SAMPLES),
        "band-energy": System("domains.ieeg.detection_module:BandEnergyModule", _WINDOWS, _SAMPLES),
        "pretrain": System("domains.ieeg.module:PretrainModule", _WINDOWS, _SAMPLES, mode="min"),
        "forecast": System(
            "domains.ieeg.forecast_module:ForecastModule", "domains.ieeg.series:SeriesData", _HORIZON, mode="min"
        ),
    },
    monitor="val/event_f1",
    mode="max",
    prepare={
        **dict.fromkeys(("bids", "edf", "brainvision", "swec", "mayo-fnusa", "bonn"), _RECORDINGS),
        **dict.fromkeys(("ett", "series"), _SERIES),
    },
    apply="data_prep.ieeg.apply:apply",
    figures="domains.ieeg.report:figures",
    tables="domains.ieeg.report:tables",
    explain="domains.ieeg.explain:explain",
    importers={"official": "domains.ieeg.weights:import_official"},
    demo="apps.ieeg.demo:demo",
)
