"""Fine-grained classes and re-identification: the domain's entry."""

from apps.common.domain import Domain, System

_PREPARE = "data_prep.finegrained.prepare:prepare"
_CLASSES = {"train_on_valid", "valid_share"}
_IDENTITIES = {"ignore_camera", "valid_identities", "queries"}
_OWN = {"kind", "ratios", *_CLASSES, *_IDENTITIES}
# data set -> options of the preparation that it has, of those that not all have
_OPTIONS = {
    "cub": {"crop", "margin", "valid_share"},
    "cars": {"crop", "margin", "valid_share"},
    "aircraft": {"crop", "margin", "level", *_CLASSES},
    "market1501": _IDENTITIES,
    "msmt17": {"version", "train_on_valid", *_IDENTITIES},
    "veri776": _IDENTITIES,
    "folder": {"identity_pattern", "camera_pattern", "class_level", *_OWN} - {"train_on_valid"},
    "csv": {"table", "crop", "margin", *_OWN} - {"train_on_valid"},
}
_EVERY = set[str]().union(*_OPTIONS.values())
_IMAGE_SIZE = ("data.image_size", "model.image_size")

DOMAIN = Domain(
    name="finegrained",
    title="fine-grained classes and re-identification: DCAL",
    systems={
        "classes": System(
            "domains.finegrained.module:ClassModule",
            "domains.finegrained.data:ClassData",
            (("data.classes", "model.classes"), _IMAGE_SIZE),
        ),
        "reid": System(
            "domains.finegrained.module:ReIDModule",
            "domains.finegrained.data:IdentityData",
            (
                ("data.identities", "model.identities"),
                ("data.ignore_camera", "model.ignore_camera"),
                _IMAGE_SIZE,
            ),
        ),
    },
    monitor="val/accuracy",
    mode="max",
    prepare=dict.fromkeys(_OPTIONS, _PREPARE),
    apply="data_prep.finegrained.apply:apply",
    figures="domains.finegrained.figures:figures",
    tables="domains.finegrained.evaluation:report_tables",
    explain="domains.finegrained.explain:explain",
    importers={"official": "domains.finegrained.weights:import_official"},
    demo="apps.finegrained.demo:demo",
    foreign_options={name: tuple(sorted(_EVERY - own)) for name, own in _OPTIONS.items()},
)
