"""Click-through rate prediction: the domain's entry."""

from apps.common.domain import Domain, System

DOMAIN = Domain(
    name="ctr",
    title="click-through rate of ads and items: AutoInt, AutoInt+",
    systems={
        "autoint": System("domains.ctr.module:AutoIntModule", "domains.ctr.data:ClickData"),
        "logistic-regression": System("domains.ctr.module:LogisticRegressionModule", "domains.ctr.data:ClickData"),
    },
    monitor="val/log_loss",
    mode="min",
    links=(("data.fields", "model.fields"),),
    prepare="data_prep.ctr.prepare:prepare",
    apply="data_prep.ctr.apply:apply",
    figures="domains.ctr.figures:figures",
    explain="domains.ctr.explain:explain",
    importers={
        "official": "domains.ctr.weights:import_official",
        "fuxictr": "domains.ctr.weights:import_fuxictr",
        "deepctr-torch": "domains.ctr.weights:import_deepctr_torch",
    },
    demo="apps.ctr.demo:demo",
)
