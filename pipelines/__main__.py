"""The `compress` command: one sub-command for each stage, and a few for people.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from compress.errors import CompressError

app = typer.Typer(
    help="From a folder of images and a big classifier to a small, measured ONNX student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
INTERRUPTED = 130

Name = Annotated[str, typer.Argument(help="A student's name in params.yaml, or `teacher`.", metavar="NAME")]


@app.callback()
def options(
    context: typer.Context,
    project: Annotated[Path, typer.Option("--project", "-C", help="Folder with params.yaml and dvc.yaml.")] = Path(),
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
) -> None:
    from pipelines.process import die_with_dvc

    die_with_dvc()
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
) -> None:
    """Train one student, once for each of its seeds; an interrupted training goes on where it stopped.

    Inputs: its row in `students` and the section `views`; `data/prepared/` and, for rows that learn from the teacher,
    `models/teacher/` and `data/teacher_logits/`. Outputs: `models/STUDENT/`, `results/STUDENT/`.

    With `--all` the students share batches and teacher answers in one process and stop at their last checkpoint;
    `dvc repro` then finishes every stage at once. Each student comes out bit for bit as if it had trained alone.

    Example: `compress distill small_wttm`, or `dvc repro teacher_logits && compress distill --all && dvc repro`
    """
    from pipelines import distill as stage

    if (student is None) != all_students:
        raise typer.BadParameter("name one student, or give --all")
    if student is None:
        stage.run_all(context.obj)
    else:
        stage.run(context.obj, student)


@app.command()
def export(context: typer.Context, name: Name) -> None:
    """Write the ONNX file of each seed and prove on real images that it computes what the network computes.

    Inputs: the section `export`; `models/NAME/`, `results/NAME/`, `data/prepared/`. Outputs: `exports/NAME/`.

    Example: `compress export small_wttm`
    """
    from pipelines import export as stage

    stage.run(context.obj, name)


@app.command()
def evaluate(context: typer.Context, name: Name) -> None:
    """Measure the exported file in ONNX Runtime: accuracy on the test split, latency beside the teacher's, size.

    Inputs: the section `evaluate`; `exports/NAME/`, `exports/teacher/`, `results/`, `data/prepared/`.
    Outputs: `results/NAME/` (evaluation.json, details.json, confusion.csv, logits.npy).

    Example: `compress evaluate small_wttm`
    """
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


@app.command()
def report(context: typer.Context) -> None:
    """Print the table of students, the champion's file and how to look further.

    Input: `metrics/students.json`. Example: `compress report`
    """
    from pipelines import report as command

    command.run(context.obj)


@app.command()
def published(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A recipe, such as `cifar100/vgg13_vgg8`.")] = None,
    record: Annotated[bool, typer.Option("--record", help="First add the students of the present run.")] = False,
    protocol: Annotated[
        str | None, typer.Option(help="What was changed, where params.yaml is not the recipe as written.")
    ] = None,
) -> None:
    """Print the papers' accuracies beside ours, for one recipe or all of them.

    Inputs: `docs/results.json`; with `--record` also `metrics/students.json` and params.yaml.

    Example: `compress published cifar100/resnet32x4_resnet8x4`
    """
    from pipelines import published as command

    if record:
        from pipelines import recording

        recording.record(context.obj, recipe, protocol)
    elif protocol is not None:
        raise typer.BadParameter("--protocol goes with --record")
    command.run(context.obj, recipe)


methods = typer.Typer(help="The distillation methods themselves.", no_args_is_help=True)
app.add_typer(methods, name="methods")


@methods.command()
def check(
    file: Annotated[Path, typer.Argument(help="Values and gradients that other code computed, as JSON.")],
) -> None:
    """Compare the methods with values of the authors' code; exit code 1 where one is off or not covered.

    Input: a file in the format that docs/methods.md describes. Example: `compress methods check loss_vectors.json`
    """
    from compress.methods.check import main as check_file

    sys.exit(check_file([str(file)]))


@app.command()
def promote(
    context: typer.Context,
    student: Annotated[str, typer.Argument(help="A student's name, or the id of its MLflow run.", metavar="STUDENT")],
) -> None:
    """Register a student's ONNX file as the champion, whichever one `select` chose.

    Inputs: `exports/`, `results/`. Output: a version in the tracker's model registry with the alias `champion`.

    Example: `compress promote small_wttm`
    """
    from pipelines.tracking.registry import promote as promote_student

    promotion = promote_student(context.obj, student)
    print(f"{promotion.student} is version {promotion.version} of {promotion.model}, alias champion")


@app.command()
def sync(context: typer.Context) -> None:
    """Bring the tracker up to the files: after a clone with `dvc pull`, or when the server was away.

    Inputs: `results/`, `exports/`, `metrics/`. Output: runs in the tracker; a second call adds nothing.

    Example: `compress sync`
    """
    from pipelines.tracking.sync import sync as sync_runs

    print(sync_runs(context.obj))


@app.command()
def ui(context: typer.Context) -> None:
    """Open the embedded MLflow UI on http://127.0.0.1:5000 until Ctrl-C.

    Input: `mlflow.db`. Example: `compress ui`
    """
    from pipelines import ui as command

    command.run(context.obj)


@app.command()
def serve(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A deploy folder.")] = Path("deploy"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is reached from everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token that requests must show.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, such as limits.max_pixels=10000000.")
    ] = None,
) -> None:
    """Answer pictures over HTTP with the deployed student, after checking that its folder is as it was written.

    Input: `deploy/`. Settings and routes: `docs/serve.md`. SIGTERM and Ctrl-C finish what was begun.

    Example: `compress serve deploy/ --port 8000`
    """
    from pipelines import serve as command

    command.run({"folder": folder, "host": host, "port": port, "token_file": token_file}, setting or [])


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A deploy folder.")] = Path("deploy"),
    manifest_sha256: Annotated[str | None, typer.Option(help="SHA-256 that manifest.json must have.")] = None,
) -> None:
    """Check that a deploy folder is as it was written and answers here as it did there.

    Input: `deploy/`. Example: `compress verify deploy/`
    """
    from compress.verify import summary, verify_deploy

    print(summary(verify_deploy(folder, manifest_sha256=manifest_sha256)))


@app.command()
def doctor(context: typer.Context) -> None:
    """Print versions, device, DVC and MLflow state, and what is wrong with them.

    Example: `compress doctor`
    """
    from pipelines import doctor as command

    command.run(context.obj)


@app.command()
def schema(context: typer.Context) -> None:
    """Print the JSON schema of params.yaml, by which editors complete and check it.

    Example: `compress schema > params.schema.json`
    """
    from pipelines import schema as command

    print(command.schema_text(), end="")


class Interrupted(BaseException):
    """Ctrl-C. Not a KeyboardInterrupt, which Typer would turn into "Aborted." and exit code 1."""


def main() -> None:
    """Run the command line; what a user can put right is one line and exit code 1."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except Interrupted:
        sys.exit(_fail("interrupted; run the same command again to go on", INTERRUPTED))
    except (CompressError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(_fail(_one_line(error), 1))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _fail(message: str, code: int) -> int:
    print(f"compress: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
