"""Commands that examine the installation and the library itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


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
def doctor(context: typer.Context) -> None:
    """Print versions, device, DVC and MLflow state, and what is wrong with them.

    Example: `compress doctor`
    """
    from pipelines import doctor as command

    command.run(context.obj)


@app.command()
def recover(context: typer.Context) -> None:
    """Make DVC's own files readable again after it was killed while it wrote them; says nothing where all is well.

    Inputs: `dvc.lock`, `.dvc/tmp/`. A damaged file is kept beside the new one. `make repro` does this first.

    Example: `compress recover && dvc repro`
    """
    from pipelines import recover as command

    command.run(context.obj)


@app.command()
def lineage(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="An exported .onnx file, or the folder of a saved network.")
    ] = None,
    of: Annotated[
        str | None, typer.Option("--of", help="Find what carries a hash, by its first seven characters or more.")
    ] = None,
) -> None:
    """Print what a network was made from and whether this project has the same: match, differs or not here.

    Exit code 1 where something differs. With `--of` the other way: every record of the project that has a hash.

    Example: `compress lineage deploy/model.onnx`, or `compress lineage --of 278a63b344f0`
    """
    from pipelines import lineage as command

    if (file is None) == (of is None):
        raise typer.BadParameter("name a file, or give --of a hash")
    if of is not None:
        command.find(context.obj, of)
    elif file is not None:
        command.run(context.obj, file)


@app.command()
def replay(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The folder of a trained network, or its card.json.")],
) -> None:
    """Train a network again from its card and compare the weights bit for bit; exit code 1 where they differ.

    Says what is not as it was: data, teacher, code, packages, machine. The project's own files stay as they are.

    Example: `compress replay models/small_wttm/seed_0/best`
    """
    from pipelines import replay as command

    command.run(context.obj, model)


@app.command()
def schema(context: typer.Context) -> None:
    """Print the JSON schema of params.yaml, by which editors complete and check it.

    Example: `compress schema > params.schema.json`
    """
    from pipelines import schema as command

    print(command.schema_text(), end="")
