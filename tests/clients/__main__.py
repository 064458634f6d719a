"""Try every client on every form of the small students, and write what each of them accepts.

    python -m tests.clients --work FOLDER [--only REGEX]

FOLDER keeps what is made and installed: the students, a Python with the oldest supported ONNX Runtime, the Node
packages of node/package-lock.json (npm is asked once). The browser is Chromium from the PATH. A client that is not
there is left out and named. Written to FOLDER/clients.json and FOLDER/clients.md; exit code 1 if a client that must
take a form does not (MUST below).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from compress.export.graph import MIN_ONNXRUNTIME
from tests.clients.drive import (
    MissingError,
    Result,
    executable,
    install_node_packages,
    node_client,
    python_client,
    python_with_onnxruntime,
    serve_client,
)
from tests.clients.students import FLOAT32, FLOAT_ENTRY, STUDENTS, write_student

MUST = ("ONNX Runtime", "onnxruntime-node", "onnxruntime-web", "compress serve")
"""Clients that have to take every form; OpenVINO and OpenCV have to take the two in float32 of fixed size."""

Client = Callable[[Path], Result]


def clients(work: Path) -> dict[str, Client]:
    """By the name they have in the table."""
    node = work / "node_packages"
    return {
        f"ONNX Runtime {MIN_ONNXRUNTIME}": lambda folder: python_client(
            "onnxruntime", folder, python=python_with_onnxruntime(work, MIN_ONNXRUNTIME)
        ),
        "ONNX Runtime": lambda folder: python_client("onnxruntime", folder),
        "onnxruntime-node": lambda folder: node_client(
            "node_client.mjs", folder, installed=install_node_packages(node)
        ),
        "onnxruntime-web": lambda folder: node_client(
            "web_client.mjs", folder, installed=install_node_packages(node), extra=[executable("chromium")]
        ),
        "OpenVINO": lambda folder: python_client("openvino", folder),
        "OpenCV": lambda folder: python_client("opencv", folder),
        "compress serve": lambda folder: serve_client(folder, installed=install_node_packages(node)),
    }


def table(results: dict[str, dict[str, Result]]) -> str:
    """One table for each student: clients below each other, forms beside each other."""
    parts: list[str] = []
    for student, by_client in results.items():
        shown = {name: result for name, result in by_client.items() if name != "compress serve"}
        forms = list(next(iter(shown.values())).verdicts) if shown else []
        parts += ["", f"`{student}`", "", "| form | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
        for form in forms:
            cells = [result.verdicts[form].in_words for result in shown.values()]
            parts.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(parts).strip() + "\n"


def failures(results: dict[str, dict[str, Result]]) -> list[str]:
    """What has to work and does not."""
    return [
        f"{client}, {student}, {way}: {verdict.error or verdict.in_words}"
        for student, by_client in results.items()
        for client, result in by_client.items()
        for way, verdict in result.verdicts.items()
        if not verdict.passes and (client.startswith(MUST) or verdict.form in (FLOAT32, FLOAT_ENTRY))
    ]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="clients whose name this expression finds")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Result]] = {}
    for student in STUDENTS:
        folder = arguments.work / student
        if not folder.is_dir():
            write_student(folder, student)
        results[student] = {}
        for name, client in clients(arguments.work).items():
            if not re.search(arguments.only, name):
                continue
            try:
                result = client(folder)
            except MissingError as missing:
                print(f"{name}: not tried, {missing}")
                continue
            results[student][name] = result
            for way, verdict in result.verdicts.items():
                print(
                    f"{student}: {name} {result.version}, {way}: {verdict.in_words}; golden {verdict.from_golden:.1e}, "
                    f"same file {verdict.from_onnxruntime:.1e} {verdict.error or ''}"
                )
    told = {
        student: {
            name: {"version": result.version, **{way: each._asdict() for way, each in result.verdicts.items()}}
            for name, result in by_client.items()
        }
        for student, by_client in results.items()
    }
    (arguments.work / "clients.json").write_text(json.dumps(told, indent=1) + "\n")
    (arguments.work / "clients.md").write_text(table(results))
    wrong = failures(results)
    print("\n".join(wrong) or "every client takes what it has to take")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
