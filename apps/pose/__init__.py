"""Human pose: the domain's entry."""

from apps.common.domain import Domain, System

_PEOPLE = "data_prep.pose.people.prepare:prepare_people"
_SEQUENCES = "data_prep.pose.sequences.prepare:prepare_sequences"
# data set -> options of that preparation which only this one has
_PEOPLE_OPTIONS = {
    "coco": {"valid_share"},
    "crowdpose": {"train_on_valid"},
    "coco-json": {"annotations", "description", "group", "group_pattern", "ratios"},
}
_SEQUENCE_OPTIONS = {"human36m": set[str](), "humaneva": set[str](), "mpi-inf-3dhp": {"poses"}}
_KEYPOINTS = tuple((f"data.{name}", f"model.{name}") for name in ("n_keypoints", "sigmas", "protocol"))
_WINDOWS = tuple((f"data.{name}", f"model.{name}") for name in ("joints", "frames", "layout"))


def _foreign(own: dict[str, set[str]]) -> dict[str, tuple[str, ...]]:
    every = set[str]().union(*own.values())
    return {name: tuple(sorted(every - options)) for name, options in own.items()}


DOMAIN = Domain(
    name="pose",
    title="2D poses of several persons and 3D poses from 2D: Group Pose, ConvFormer",
    systems={
        "people": System("domains.pose.module:GroupPoseModule", "domains.pose.data:PeopleData", _KEYPOINTS),
        "lift": System("domains.pose.module3d:LiftModule", "domains.pose.data3d:SequenceData", _WINDOWS, mode="min"),
    },
    monitor="val/AP",
    mode="max",
    prepare={**dict.fromkeys(_PEOPLE_OPTIONS, _PEOPLE), **dict.fromkeys(_SEQUENCE_OPTIONS, _SEQUENCES)},
    apply="data_prep.pose.apply:apply",
    figures="domains.pose.report:figures",
    tables="domains.pose.report:tables",
    explain="domains.pose.explain:explain",
    importers={"official": "domains.pose.weights:import_official"},
    demo="apps.pose.demo:demo",
    foreign_options=_foreign(_PEOPLE_OPTIONS) | _foreign(_SEQUENCE_OPTIONS),
)
