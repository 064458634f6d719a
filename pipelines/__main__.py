"""The `compress` command: one sub-command for each stage, and a few for people.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated

import typer

from compress.errors import CompressError, ParamsError
from pipelines.commands import checks, deployed, outcome
from pipelines.failures import SMALLER, is_out_of_memory, one_line
from pipelines.layout import SLUG
from pipelines.redaction import redacted

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported

app = typer.Typer(
    help="From a folder of images and a big classifier to a small, measured ONNX student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
INTERRUPTED = 130

for commands in (outcome, deployed, checks):
    app.add_typer(commands.app)

Name = Annotated[
    str,
    typer.Argument(help="A student's name in params.yaml, `teacher`, or DVC's `export@NAME`.", metavar="NAME"),
]


@app.callback()
def options(
    context: typer.Context,
    project: Annotated[Path, typer.Option("--project", "-C", help="Folder with params.yaml and dvc.yaml.")] = Path(),
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
) -> None:
    from pipelines.process import die_with_parent

    die_with_parent()
    context.obj = project.resolve()
    os.chdir(context.obj)  # paths in params.yaml are relative to it


@app.command()
def prepare(context: typer.Context) -> None:
    """Read the images, split them and write them in the on-disk format of all later stages.

    Inputs: the section `data` of params.yaml and the images it names. Outputs: `data/prepared/`.

    Example: `compress prepare`
    """
    from pipelines import prepare as stage

    stage.run(context.obj)


@app.command()
def prepare_names(context: typer.Context) -> None:
    """Refuse names of students that lead out of their folders; DVC would follow them.

    Inputs: the section `students` of params.yaml. Outputs: `data/student_names.json`.

    Example: `compress prepare-names`
    """
    from pipelines import prepare_names as stage

    stage.run(context.obj)


@app.command()
def teacher(context: typer.Context) -> None:
    """Train the teacher, or load it, and measure it on the validation split.

    Inputs: sections `teacher` and `views`; `data/prepared/`. Outputs: `models/teacher/`, `results/teacher/`.

    Example: `compress teacher`
    """
    from pipelines import teacher as stage

    stage.run(context.obj)


@app.command()
def teacher_logits(
    context: typer.Context,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it will cost and what it will save.")] = False,
) -> None:
    """Store the teacher's logits for every view of every train image, for all students to share.

    Inputs: sections `teacher_logits` and `views`; `data/prepared/`, `models/teacher/`. Outputs: `data/teacher_logits/`.

    Example: `compress teacher-logits --plan`
    """
    if plan:
        from pipelines import teacher_logits_plan

        teacher_logits_plan.run(context.obj)
        return
    from pipelines import teacher_logits as stage

    stage.run(context.obj)


@app.command()
def distill(
    context: typer.Context,
    student: Annotated[str | None, typer.Argument(help="A student's name in params.yaml.", metavar="STUDENT")] = None,
    all_students: Annotated[
        bool, typer.Option("--all", help="Train all students that are not up to date, side by side.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="With --all: processes that divide the students.")] = 1,
    part: Annotated[str | None, typer.Option(help="With --all: train this part of them only.", metavar="K/N")] = None,
) -> None:
    """Train one student, once for each of its seeds; an interrupted training goes on where it stopped.

    Inputs: its row in `students` and the section `views`; `data/prepared/` and, for rows that learn from the teacher,
    `models/teacher/` and `data/teacher_logits/`. Outputs: `models/STUDENT/`, `results/STUDENT/`.

    With `--all` the students share batches and teacher answers in one process and stop at their last checkpoint;
    `dvc repro` then finishes every stage at once. Each student comes out bit for bit as if it had trained alone. On a
    CPU `--jobs` trains as many students at a time as there are cores, where rows say `train.threads: 1`; `--part 1/4`
    is for starting the processes oneself, on several machines that share the folder.

    Example: `compress distill small_wttm`, or `dvc repro teacher_logits && compress distill --all && dvc repro`
    """
    if (student is None) != all_students or (student is not None and (jobs > 1 or part)):
        raise typer.BadParameter("name one student, or give --all")
    if student is not None:
        from pipelines import distill as stage

        stage.run(context.obj, _name_in(student))
        return
    from pipelines.side_by_side import WHOLE, Part, run_all, run_jobs

    if jobs > 1 and part is None:
        run_jobs(context.obj, jobs)
        return
    try:
        chosen = WHOLE if part is None else Part.parse(part)
    except ValueError:
        raise typer.BadParameter(
            f"{part!r} is no part; write 1/3 for the first of three", param_hint="--part"
        ) from None
    run_all(context.obj, part=chosen)


@app.command()
def export(context: typer.Context, name: Name) -> None:
    """Write the ONNX file of each seed and prove on real images that it computes what the network computes.

    Inputs: the section `export`; `models/NAME/`, `results/NAME/`, `data/prepared/`. Outputs: `exports/NAME/`.

    Example: `compress export small_wttm`
    """
    name = _name_in(name)
    from pipelines import export as stage

    stage.run(context.obj, name)


@app.command()
def evaluate(context: typer.Context, name: Name) -> None:
    """Measure the exported file in ONNX Runtime: accuracy on the test split, latency beside the teacher's, size.

    Inputs: the section `evaluate`; `exports/NAME/`, `exports/teacher/`, `results/`, `data/prepared/`.
    Outputs: `results/NAME/` (evaluation.json, details.json, confusion.csv, logits.npy).

    Example: `compress evaluate small_wttm`
    """
    name = _name_in(name)
    from pipelines import evaluate as stage

    stage.run(context.obj, name)


@app.command()
def select(context: typer.Context) -> None:
    """Compare all students, choose the champion under the constraints and write the deploy folder.

    Inputs: sections `students` and `select`; `results/`, `exports/`.
    Outputs: `metrics/students.json`, `metrics/champion.json`, `reports/`, `deploy/`.

    Example: `compress select`
    """
    from pipelines import select as stage

    stage.run(context.obj)


def _name_in(text: str) -> str:
    """The network's name in its own or its stage's name.

    Raises:
        ParamsError: it is none; a path, for example, that would lead a stage elsewhere.
    """
    name = text.rpartition("@")[2]
    if not SLUG.fullmatch(name):
        raise ParamsError(f"{name!r} cannot name a network; use lower-case letters, digits and _")
    return name


class Interrupted(BaseException):
    """Ctrl-C. Not a KeyboardInterrupt, which Typer would turn into "Aborted." and exit code 1."""


def main() -> None:
    """Run the command line; what a user can put right is one line and exit code 1."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except Interrupted:
        sys.exit(_fail("interrupted; run the same command again to go on", INTERRUPTED))
    except Exception as error:  # of these a user can put right what follows, memory that runs out included
        is_ours = isinstance(error, CompressError | OSError) or is_out_of_memory(error)
        if not is_ours or "--debug" in sys.argv:
            sys.excepthook = _print_traceback  # Typer has set its own
            raise
        sys.exit(_fail(one_line(error, command=_command()), 1))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python prints, without the passwords that addresses carry."""
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _command() -> str:
    """The stage that was asked for, where memory is its business."""
    return next((word for word in sys.argv[1:] if word in SMALLER), "")


def _fail(message: str, code: int) -> int:
    print(f"compress: {redacted(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
