"""Sequential recommendation: the domain's entry."""

from apps.common.domain import Domain, System

DOMAIN = Domain(
    name="seqrec",
    title="what a user takes next: MQSA-TED, SASRec",
    systems={
        "mqsa-ted": System("domains.seqrec.module:MQSATEDModule", "domains.seqrec.data:SequenceData"),
        "sasrec": System("domains.seqrec.module:SASRecModule", "domains.seqrec.data:SequenceData"),
        "transitions": System("domains.seqrec.module:TransitionModule", "domains.seqrec.data:SequenceData"),
    },
    monitor="val/ndcg@20",
    mode="max",
    links=(("data.n_items", "model.n_items"), ("data.max_len", "model.max_len")),
    prepare="data_prep.seqrec.prepare:prepare",
    apply="data_prep.seqrec.apply:apply",
    figures="domains.seqrec.figures:figures",
    tables="domains.seqrec.evaluation:report_tables",
    explain="domains.seqrec.explain:explain",
    importers={"official": "domains.seqrec.weights:import_official"},
    demo="apps.seqrec.demo:demo",
)
