"""The bill of materials says what is shipped, in a form that other programs accept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compress.bill_of_materials import bill_of_materials
from compress.model_card import DeployFacts, TeacherFacts

MODEL, LABELS = "ab" * 32, "cd" * 32
HASHES = {"labels.json": LABELS, "model.onnx": MODEL}
FACTS = DeployFacts(
    name="small_wttm",
    reason="most accurate",
    architecture={"source": "cnn", "channels": [8, 16]},
    method="wttm",
    accuracy_test=0.95,
    num_images_test=450,
    data="digits",
    preprocessing={},
    license="Apache-2.0",
    teacher=TeacherFacts(architecture={"source": "cifar"}, accuracy_test=0.98, latency_ms=0.5, size_bytes=10),
    lineage={"teacher_sha256": "ef" * 32, "data_fingerprint": "12" * 32},
    requirements={"numpy": "2.4.6", "onnxruntime": "1.31.1", "starlette": "1.0.0"},
)


def bill(facts: DeployFacts = FACTS) -> Any:
    return bill_of_materials(facts, HASHES, model="model.onnx", num_classes=10)


def component(document: Any, reference: str) -> Any:
    (found,) = [each for each in document["components"] if each["bom-ref"] == reference]
    return found


@pytest.mark.parametrize(
    "facts",
    [FACTS, FACTS.model_copy(update={"teacher": None, "accuracy_test": None, "license": None, "requirements": {}})],
    ids=["everything", "as little as possible"],
)
def test_document_passes_the_schema_of_the_standard(facts: DeployFacts) -> None:
    pytest.importorskip("jsonschema", reason="the schema validator of cyclonedx-python-lib is not installed")
    from cyclonedx.exception import MissingOptionalDependencyException
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    try:
        assert validator.validate_str(json.dumps(bill(facts))) is None
    except MissingOptionalDependencyException:
        pytest.skip("the extra json-validation of cyclonedx-python-lib is not installed")
    broken = bill(facts)
    broken["components"][0]["type"] = "network"
    assert validator.validate_str(json.dumps(broken)) is not None


def test_document_reads_back_with_the_library_of_the_standard() -> None:
    cyclonedx = pytest.importorskip("cyclonedx.model.bom", reason="cyclonedx-python-lib is not installed")
    document = bill()
    for each in document["components"]:  # the library has no model cards and no data sets yet
        each.pop("modelCard", None)
        each.pop("data", None)
    read = cyclonedx.Bom.from_json(document)
    model = next(each for each in read.components if each.name == "small_wttm")
    assert [(str(each.alg.value), each.content) for each in model.hashes] == [("SHA-256", MODEL)]
    assert {str(each.purl) for each in read.components if each.purl} == {
        "pkg:pypi/numpy@2.4.6",
        "pkg:pypi/onnxruntime@1.31.1",
        "pkg:pypi/starlette@1.0.0",
    }


def test_model_is_a_component_with_its_hash_measurements_and_licence() -> None:
    model = component(bill(), "model")
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": MODEL}]
    assert model["licenses"] == [{"expression": "Apache-2.0"}]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics == [{"type": "accuracy_top1", "value": "0.95", "slice": "test"}]


def test_teacher_is_an_ancestor_only_of_what_learnt_from_it() -> None:
    (teacher,) = component(bill(), "model")["pedigree"]["ancestors"]
    assert teacher["hashes"] == [{"alg": "SHA-256", "content": "ef" * 32}]
    measured_beside = FACTS.model_copy(update={"lineage": {"data_fingerprint": "12" * 32}})
    assert "pedigree" not in component(bill(measured_beside), "model")


def test_data_is_named_by_the_model_with_its_fingerprint() -> None:
    document = bill()
    assert component(document, "model")["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data"}]
    assert component(document, "data")["properties"] == [{"name": "compress:fingerprint", "value": "12" * 32}]


def test_every_other_file_stands_there_with_its_hash() -> None:
    assert component(bill(), "file:labels.json")["hashes"] == [{"alg": "SHA-256", "content": LABELS}]


def test_packages_that_the_folder_needs_are_told_from_those_of_the_server() -> None:
    document = bill()
    scopes = {each["name"]: each["scope"] for each in document["components"] if each["type"] == "library"}
    assert scopes == {"numpy": "required", "onnxruntime": "required", "starlette": "optional"}
    needed = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert needed["model"] == ["pkg:pypi/numpy@2.4.6", "pkg:pypi/onnxruntime@1.31.1"]


def test_same_files_give_the_same_document_and_others_another_serial_number() -> None:
    assert bill() == bill()
    other = bill_of_materials(FACTS, {**HASHES, "labels.json": "00" * 32}, model="model.onnx", num_classes=10)
    assert other["serialNumber"] != bill()["serialNumber"]
