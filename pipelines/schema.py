"""All sections of params.yaml together, for editors and for `compress doctor`. No stage imports this."""

from __future__ import annotations

import json

from compress.data import DataSettings
from compress.data.view_schedule import ViewSettings
from compress.settings import Settings
from compress.teacher_logits import TeacherLogitsSettings
from pipelines.forms import FormsSettings
from pipelines.measuring import EvaluateSettings
from pipelines.select import Constraints
from pipelines.settings import StudentsSettings, TeacherSettings


class AllParams(Settings):
    """params.yaml of a compress project."""

    data: DataSettings
    views: ViewSettings = ViewSettings()
    teacher: TeacherSettings | None
    """null: there is no teacher, and every student learns alone or from another student."""
    teacher_logits: TeacherLogitsSettings = TeacherLogitsSettings()
    students: StudentsSettings
    export: FormsSettings = FormsSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    select: Constraints = Constraints()


def schema_text() -> str:
    """JSON schema as text; keys that start with x- are allowed at the top, they hold YAML anchors."""
    schema = AllParams.model_json_schema()
    schema["patternProperties"] = {"^x-": {}}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
