"""What a shipped folder is made of, for programs: a CycloneDX 1.6 document (ECMA-424), JSON.

The model is a component with its hash and a model card; its teacher and its data are where it comes from, the files
beside it and the packages that run it are components of their own. There is no time stamp and the serial number is
derived from the files, so that the same folder gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from pydantic import JsonValue

from compress.model_card import DeployFacts

SCHEMA: Final = "http://cyclonedx.org/schema/bom-1.6.schema.json"
REQUIRED_PACKAGES: Final = ("numpy", "onnxruntime")
"""What the folder's own script needs; the other packages are the server's."""

MODEL_REF, TEACHER_REF, DATA_REF = "model", "teacher", "data"


def bill_of_materials(
    facts: DeployFacts, hashes: Mapping[str, str], *, model: str, num_classes: int
) -> dict[str, JsonValue]:
    """The document for files with these SHA-256 (by name), of which `model` is the model's."""
    packages = [_package(name, number) for name, number in sorted(facts.requirements.items())]
    files = [_file(name, sha256) for name, sha256 in sorted(hashes.items()) if name != model]
    required = [package["bom-ref"] for package in packages if package["scope"] == "required"]
    shipped = {"type": "application", "bom-ref": "folder", "name": facts.name, "version": _version(hashes[model])}
    document: dict[str, Any] = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_serial_number(facts, hashes)}",
        "version": 1,
        "metadata": {"tools": {"components": [_tool()]}, "component": shipped},
        "components": [_model(facts, hashes[model], num_classes), _data(facts), *files, *packages],
        "dependencies": [
            {"ref": "folder", "dependsOn": [MODEL_REF, *(file["bom-ref"] for file in files)]},
            {"ref": MODEL_REF, "dependsOn": required},
        ],
    }
    return document


def _model(facts: DeployFacts, sha256: str, num_classes: int) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": MODEL_REF,
        "name": facts.name,
        "version": _version(sha256),
        "hashes": [_hash(sha256)],
        **({} if facts.license is None else {"licenses": [{"expression": facts.license}]}),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": f"image classification, {num_classes} classes",
                "architectureFamily": str(facts.architecture.get("source", "unknown")),
                "modelArchitecture": json.dumps(facts.architecture, sort_keys=True),
                "datasets": [{"ref": DATA_REF}],
                "inputs": [{"format": "image: uint8 (batch, height, width, 3)"}],
                "outputs": [{"format": "logits: float32 (batch, classes)"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(facts)},
        },
        "properties": _properties(
            {"method": facts.method, **{f"lineage:{name}": sha256 for name, sha256 in facts.lineage.items()}}
        ),
    }
    if facts.learnt_from_teacher:
        component["pedigree"] = {"ancestors": [_teacher(facts)], "notes": f"distilled with {facts.method}"}
    return component


def _teacher(facts: DeployFacts) -> dict[str, Any]:
    assert facts.teacher is not None
    sha256 = facts.lineage.get("teacher_sha256")
    identity: dict[str, Any] = {} if sha256 is None else {"version": _version(sha256), "hashes": [_hash(sha256)]}
    return {
        "type": "machine-learning-model",
        "bom-ref": TEACHER_REF,
        "name": "teacher",
        **identity,
        "description": json.dumps(facts.teacher.architecture, sort_keys=True),
    }


def _data(facts: DeployFacts) -> dict[str, Any]:
    """The data set. Its fingerprint covers more than file contents, so it is a property and no hash of a file."""
    known = {"fingerprint": facts.lineage["data_fingerprint"]} if "data_fingerprint" in facts.lineage else {}
    return {
        "type": "data",
        "bom-ref": DATA_REF,
        "name": "training data",
        "description": facts.data,
        "data": [{"type": "dataset", "name": "training data", "description": facts.data}],
        "properties": _properties(known),
    }


def _metrics(facts: DeployFacts) -> list[dict[str, str]]:
    measured: dict[tuple[str, str], float | None] = {
        ("accuracy_top1", "test"): facts.accuracy_test,
        ("accuracy_top1", "validation"): facts.accuracy_validation,
        ("latency_ms_p50", facts.machine or ""): facts.latency_ms,
        **{(name, ""): value for name, value in facts.metrics.items()},
    }
    return [
        {"type": name, "value": repr(value), **({"slice": part} if part else {})}
        for (name, part), value in measured.items()
        if value is not None
    ]


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_hash(sha256)]}


def _package(name: str, number: str) -> dict[str, Any]:
    address = f"pkg:pypi/{name}@{number}"
    scope = "required" if name in REQUIRED_PACKAGES else "optional"
    return {
        "type": "library", "bom-ref": address, "name": name, "version": number, "scope": scope, "purl": address
    }  # fmt: skip


def _tool() -> dict[str, str]:
    try:
        return {"type": "application", "name": "compress", "version": version("compress")}
    except PackageNotFoundError:  # run from a checkout
        return {"type": "application", "name": "compress"}


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"compress:{name}", "value": value} for name, value in sorted(values.items())]


def _version(sha256: str) -> str:
    return sha256[:12]


def _serial_number(facts: DeployFacts, hashes: Mapping[str, str]) -> uuid.UUID:
    text = json.dumps([facts.model_dump(mode="json"), dict(hashes)], sort_keys=True)
    return uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(text.encode()).hexdigest())


__all__ = ["bill_of_materials"]
