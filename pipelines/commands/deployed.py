"""Commands for the folder that is shipped, and for exported files by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="A deploy folder.")]
Model = Annotated[Path, typer.Argument(help="An exported file, or a deploy folder.", metavar="MODEL")]


@app.command()
def serve(
    context: typer.Context,
    folder: Folder = Path("deploy"),
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
    folder: Folder = Path("deploy"),
    manifest_sha256: Annotated[str | None, typer.Option(help="SHA-256 that manifest.json must have.")] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Key in PEM whose holder must have signed the folder.", metavar="FILE")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="The signature; by default FOLDER.sig beside the folder.", metavar="FILE")
    ] = None,
) -> None:
    """Check that a deploy folder is as it was written, answers here as it did there and, with a key, who signed it.

    Inputs: `deploy/`, with `--public-key` also `deploy.sig`.

    Example: `compress verify deploy/`, or `compress verify deploy/ --public-key key.pub`
    """
    from pipelines import verify as command

    if signature is not None and public_key is None:
        raise typer.BadParameter("--signature goes with --public-key")
    print(command.run(folder, manifest_sha256=manifest_sha256, public_key=public_key, signature=signature))


@app.command()
def sign(
    folder: Folder = Path("deploy"),
    key: Annotated[Path, typer.Option(help="Private elliptic curve key in PEM.", metavar="FILE")] = Path("key.pem"),
    password_file: Annotated[Path | None, typer.Option(help="File with the key's password.", metavar="FILE")] = None,
    signature: Annotated[
        Path | None, typer.Option(help="Where to write it; by default FOLDER.sig beside the folder.", metavar="FILE")
    ] = None,
) -> None:
    """Sign a deploy folder with a local key, after checking that it is as it was written.

    Inputs: `deploy/` and a key. Output: `deploy.sig`, by the OpenSSF model signing format. No network is used.

    Example: `compress sign deploy/ --key key.pem`
    """
    from pipelines import verify as command

    written = command.sign(folder, key=key, password_file=password_file, signature=signature)
    print(f"{folder} is signed: {written}; check: compress verify {folder} --public-key FILE")


@app.command()
def package(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A student, NAME or NAME/FORM, or the path of an .onnx file; by default the champion.", metavar="NAME"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write; by default packages/NAME.")] = None,
    triton: Annotated[
        bool, typer.Option("--triton", help="Add a Triton model repository, with a second copy of the model.")
    ] = False,
    load_test: Annotated[
        Path | None,
        typer.Option(help="What a load test of this very model wrote, for the model card.", metavar="FILE"),
    ] = None,
) -> None:
    """Write a deploy folder for any student, not only the champion, or for any exported file.

    Inputs: `metrics/students.json`, `exports/`, `results/`, `data/prepared/`. Output: `packages/NAME/`.

    `--load-test` takes what `python -m benchmarks.serve.load_test --output FILE` wrote about the same file.

    Example: `compress package small_wttm --triton`, or `compress package small_wttm/int8_static`
    """
    from pipelines import package as command

    folder = command.run(context.obj, name, output=output, triton=triton, load_test=load_test)
    print(command.described(folder))


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Pictures, folders or zip archives of them.", metavar="IMAGE…")],
    output: Annotated[
        Path | None, typer.Option(help="File to write: .csv, .json or .jsonl; by default print.", metavar="FILE")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes for each picture.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads of the model.", min=1)] = 1,
) -> None:
    """Classify pictures of any size with an exported file, by the preprocessing in its metadata.

    A picture that cannot be used is named on standard error and skipped; the exit code is 1 only where none could be
    used. Any number of pictures takes the same memory.

    Example: `compress predict deploy/model.onnx photos/ --output predictions.csv --top-k 3`
    """
    from pipelines import predict as command

    command.run(model, images, output=output, top_k=top_k, threads=threads)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="An exported file, or a deploy folder.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Another one with the same classes.", metavar="B")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, folders or zip archives of them.", metavar="IMAGE…")],
    sheet: Annotated[
        Path, typer.Option(help="Where to draw the pictures that are answered differently.", metavar="FILE")
    ] = Path("differences.png"),
    output: Annotated[Path | None, typer.Option(help="JSON file for all the numbers.", metavar="FILE")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of a model.", min=1)] = 1,
) -> None:
    """Show where two exported files disagree, such as float32 and int8: numbers, a list and a sheet of pictures.

    Each file gets the pictures by its own preprocessing. Where they lie in folders named for classes, both files'
    accuracy is told too.

    Example: `compress compare exports/a/seed_0/float32.onnx exports/a/forms/int8_static.onnx photos/`
    """
    from pipelines import predict as command

    command.compare(first, second, images, sheet=sheet, output=output, threads=threads)
