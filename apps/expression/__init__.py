"""Facial expression: the domain's entry."""

from apps.common.domain import Domain, System

# data set -> options that only some data sets have
_OWN = {
    "raf-db": set[str](),
    "fer2013": set[str](),
    "ferplus": {"votes"},
    "ck+": {"peak_frames", "neutral_frames"},
    "jaffe": set[str](),
    "ferg-db": set[str](),
    "aff-wild2": {"per_video", "per_video_label"},
    "folder": {"table", "subject_pattern"},
}
_EVERY = set[str]().union(*_OWN.values())

DOMAIN = Domain(
    name="expression",
    title="expressions of faces in photographs and videos: ARBEx",
    systems={
        "arbex": System(
            "domains.expression.module:ARBExModule",
            "domains.expression.data:ExpressionData",
            (("data.classes", "model.classes"),),
        ),
    },
    monitor="val/accuracy",
    mode="max",
    prepare=dict.fromkeys(_OWN, "data_prep.expression.prepare:prepare"),
    apply="data_prep.expression.apply:apply",
    figures="domains.expression.figures:figures",
    tables="domains.expression.evaluation:report_tables",
    explain="domains.expression.explain:explain",
    importers={"official": "domains.expression.weights:import_official"},
    demo="apps.expression.demo:demo",
    foreign_options={name: tuple(sorted(_EVERY - own)) for name, own in _OWN.items()},
)
