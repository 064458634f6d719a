"""Tracking with MLflow: the only room that knows it.

DVC's files are the truth and MLflow shows them: a run can always be rebuilt from what the stages wrote, and tracking
that fails never stops a stage. Stages need only what stands here; what a person asks for stands beside it:

    store     where runs are kept, and how they are found again
    run       one stage's connection to its run
    events    what can be recorded, as JSON, so that it can wait for a server that is away
    model     an ONNX file as a model of its run, byte for byte
    sync      rebuild runs from DVC's files
    registry  the registered model, its champion, and which runs are current
    view      the page that opens when the user interface starts
"""

from pipelines.tracking.run import Run, track
from pipelines.tracking.store import ensure_store, store_uri

__all__ = ["Run", "ensure_store", "store_uri", "track"]
