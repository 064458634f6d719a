"""Commands that show what came out and publish it."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


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
