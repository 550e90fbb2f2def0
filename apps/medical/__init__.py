"""Medical images: the domain's entry."""

from apps.common.domain import Domain, System

_XRAYS = "data_prep.medical.xray.prepare:prepare"
# data set -> options of that preparation which only this one has
_XRAY_OPTIONS = {
    "covidx": {"version"},
    "ricord": {"table"},
    "rsna": {"mapping", "targets"},
    "medmnist": set[str](),
    "images": {"table", "patient_pattern", "patients_per_source", "channels"},
}
_OWN = set[str]().union(*_XRAY_OPTIONS.values())
_BAGS = "domains.medical.data:BagData"
_CLASSES = (("data.classes", "model.classes"),)
_FEATURES = (*_CLASSES, ("data.feature_dim", "model.feature_dim"))
_GRAY = (("data.gray_side", "model.gray_side"),)
_VIEWS = (*_CLASSES, ("data.side", "model.side"), *_GRAY)
_IMAGES = "domains.medical.image_data:ImageData"

DOMAIN = Domain(
    name="medical",
    title="diagnoses from whole slides and chest X-rays: ACMIL, MEDUSA",
    systems={
        "acmil": System("domains.medical.module:ACMILModule", _BAGS, _FEATURES),
        "abmil": System("domains.medical.module:ABMILModule", _BAGS, _FEATURES),
        "pooling": System("domains.medical.module:PoolingModule", _BAGS, _FEATURES),
        "medusa": System("domains.medical.medusa_module:MEDUSAModule", _IMAGES, _VIEWS),
        "medusa-body": System(
            "domains.medical.segmentation:MEDUSABodyModule", "domains.medical.image_data:LungData", _GRAY
        ),
    },
    monitor="val/auroc",
    mode="max",
    prepare={
        "slides": "data_prep.medical.wsi.prepare:prepare",
        "bags": "data_prep.medical.wsi.bags.bags:prepare",
        "mil-csv": "data_prep.medical.wsi.bags.mil_csv:prepare",
        **dict.fromkeys(_XRAY_OPTIONS, _XRAYS),
    },
    apply="data_prep.medical.apply:apply",
    figures="domains.medical.figures:figures",
    tables="domains.medical.evaluation:report_tables",
    explain="domains.medical.explain:explain",
    importers={"official": "domains.medical.weights:import_official"},
    demo="apps.medical.demo:demo",
    commands={
        "patch": ("data_prep.medical.wsi.patches.patch:patch", "slides -> places of their tissue patches"),
        "features": ("data_prep.medical.wsi.features.features:features", "patches -> features of an encoder"),
        "repack": (
            "data_prep.medical.wsi.features.repack:repack",
            "features of CLAM, TRIDENT, ACMIL -> fast layout, or back",
        ),
        "split": ("data_prep.medical.wsi.bags.splitting:split", "table of slides -> folds that keep patients apart"),
        "cross-validate": (
            "apps.medical.crossvalidate:crossvalidate",
            "train and test every fold, pool the results",
        ),
        "heatmap": ("apps.medical.heatmap:heatmap", "stored attention -> pictures, QuPath GeoJSON, top patches"),
        "source-control": (
            "data_prep.medical.xray.source_control:source_control",
            "control set: can a model tell the source of an X-ray?",
        ),
    },
    foreign_options={name: tuple(sorted(_OWN - own)) for name, own in _XRAY_OPTIONS.items()},
)
