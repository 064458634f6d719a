"""The page that opens when the user interface starts: students in a table and in charts that help to choose one.

MLflow 3.17 opens on an empty page for language models and shows no metric. A view that is stored in a tag of the
experiment is the only way to bring its users to something better; its format is the interface's own, so it is a
bonus and nothing may depend on it.
"""

from __future__ import annotations

import base64
import json
import sys
import zlib
from pathlib import Path
from typing import Any, Final

from compress.errors import TrackingError
from pipelines.layout import TEACHER
from pipelines.tracking.events import now
from pipelines.tracking.store import (
    ARTIFACTS,
    CURRENT_TAG,
    TrackingOffError,
    connect,
    is_server,
    reason,
    store_root,
    store_uri,
    warn,
)

VIEW: Final = "students"
TAG: Final = f"mlflow.sharedViewState.{VIEW}"
PORT: Final = 5000

ACCURACY: Final = "accuracy_top1"
LATENCY: Final = "latency_ms_p50"
COLUMNS: Final = {
    "attributes.`Run Name`": 200,
    "params.`method`": 130,
    "tags.`forms`": 130,
    f"metrics.`{ACCURACY}`": 130,
    "metrics.`gap_to_teacher`": 135,
    f"metrics.`{LATENCY}`": 140,
    "metrics.`speedup`": 100,
    "metrics.`size_mb`": 100,
    "attributes.`Models`": 200,
    "runDateAndNestInfo": 150,
    "duration": 90,
}
"""Columns of the table of runs in their order, with their width in pixels; some have names of the interface's own."""


def seed_view(root: Path) -> str | None:
    """Store the view with the experiment and return its page, relative to the interface's address.

    Never fatal: None when tracking is off or the store cannot be used, which is said in one line.
    """
    try:
        store = connect(root)
        view = {"name": "Pick a student", "createdAt": now(), "updatedAt": now(), "state": _packed(_state())}
        store.client.set_experiment_tag(store.experiment_id, TAG, json.dumps(view))
    except TrackingOffError:
        return None
    except Exception as problem:  # a store that is away must not stop the stage, whatever its client raises
        warn(f"the view of the students could not be stored ({reason(problem)})")
        return None
    return f"/#/experiments/{store.experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def ui_command(root: Path, *, port: int = PORT) -> list[str]:
    """The command that serves the embedded store's user interface on this machine only.

    Raises:
        TrackingError: the runs are on a server, which serves its own interface.
    """
    uri = store_uri(root)
    if is_server(uri):
        raise TrackingError(f"the runs are on {uri}: open that address in a browser")
    artifacts = store_root(root) / ARTIFACTS
    # Without these it starts eight job runners and asks a remote host whether to report usage.
    environment = ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true", "DO_NOT_TRACK=true"]
    return [
        *("env", *environment),
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
        *("--artifacts-destination", str(artifacts), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def _state() -> dict[str, Any]:
    choice, curves = "compress-choice", "compress-curves"
    return {
        # The teacher is so much slower and larger that beside it all students look alike in a chart.
        "searchFilter": f"tags.{CURRENT_TAG} = 'true' and params.student != '{TEACHER}'",
        "orderByKey": f"metrics.`{ACCURACY}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": dict(COLUMNS),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunSections": [_section(choice, "Pick a student"), _section(curves, "Training curves")],
        "compareRunCharts": [
            _scatter(choice, LATENCY, ACCURACY),
            _scatter(choice, "size_mb", ACCURACY),
            _chart(choice, "PARALLEL", selectedParams=["method"], selectedMetrics=[LATENCY, "size_mb", ACCURACY])
            | {"showAllRuns": True},
            _curve(curves, "validation/accuracy_top1"),
            _curve(curves, "train/loss"),
        ],
    }


def _section(uuid: str, name: str) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}


def _scatter(section: str, horizontal: str, vertical: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": horizontal, "type": "METRIC"}, "yaxis": {"key": vertical, "type": "METRIC"}}
    return _chart(section, "SCATTER", **axes)


def _curve(section: str, metric: str) -> dict[str, Any]:
    # Left out, the smoothness is not zero but some value that bends the curves.
    axes = {"xAxisKey": "step", "scaleType": "linear", "xAxisScaleType": "linear", "yAxisKey": "metric", "range": {}}
    plain = {"lineSmoothness": 0, "useGlobalLineSmoothing": True, "useGlobalXaxisKey": True, "ignoreOutliers": False}
    return _chart(section, "LINE", metricKey=metric, displayName=metric) | axes | plain


def _chart(section: str, kind: str, **settings: Any) -> dict[str, Any]:
    uuid = "-".join([section, kind, *(str(value) for value in settings.values())])
    common = {"uuid": uuid, "type": kind, "metricSectionId": section, "deleted": False, "isGenerated": False}
    return common | {"runsCountToCompare": 100} | settings


def _packed(state: dict[str, Any]) -> str:
    """The interface's own encoding of a view."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
