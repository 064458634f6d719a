"""The interface described: as an OpenAPI document for programs, as a page without scripts for people."""

from __future__ import annotations

import html
from typing import Any

from compress import __version__
from compress.serve.inference_protocol import HEADER_LENGTH, InferRequest
from compress.serve.model import ServedModel

DEFAULT_TOP_K = 5

Document = dict[str, Any]

ERRORS = {
    "400": "The request is malformed: its JSON, form, shape, datatype or values.",
    "401": "The bearer token is missing or wrong.",
    "404": "There is no such route or model.",
    "408": "The body took too long to arrive.",
    "413": "The body is larger than allowed.",
    "415": "The body is compressed.",
    "422": "The image is of another format, damaged, cut off or too large.",
    "503": "Too much to do, too slow, or shutting down; Retry-After says when to come back.",
}
_WORK_ERRORS = ("400", "401", "408", "413", "415", "503")


def openapi(model: ServedModel) -> Document:
    """OpenAPI 3.1 document of a server of `model`."""
    place = f"/v2/models/{model.name}"
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{model.name}: image classifier", "version": f"{__version__}, model {model.version}"},
        "paths": {
            "/classify": {"post": _classify(model)},
            f"{place}/infer": {"post": _infer(model)},
            place: {"get": _get("What the model takes and gives, its labels and preprocessing.")},
            f"{place}/ready": {"get": _get("Whether the model takes requests.", also=("503",))},
            "/v2": {"get": _get("What the server is.")},
            "/v2/health/live": {"get": _get("Whether the process runs.", errors=())},
            "/v2/health/ready": {"get": _get("Whether new requests are welcome.", errors=(), also=("503",))},
            "/metrics": {"get": _get("Counters for Prometheus.", media_type="text/plain")},
        },
        "components": {
            "schemas": {
                "Error": _object({"error": {"type": "string"}, "code": {"type": "string"}}),
                "Predictions": _predictions(),
                "InferRequest": InferRequest.model_json_schema(
                    ref_template="#/components/schemas/InferRequest/$defs/{model}"
                ),
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _classify(model: ServedModel) -> Document:
    picture = {"type": "string", "format": "binary"}
    raw = {media_type: {"schema": picture} for media_type in ("image/jpeg", "image/png", "image/webp")}
    form = {"multipart/form-data": {"schema": _object({"image": picture})}}
    count = {
        "type": "integer",
        "minimum": 1,
        "maximum": len(model.classes),
        "default": min(DEFAULT_TOP_K, len(model.classes)),
    }
    return {
        "summary": "Classify a picture.",
        "description": "A JPEG, PNG or WebP file as the body, or as the field 'image' of a form. It is prepared as the "
        "images were on which the model was measured.",
        "parameters": [{"name": "top_k", "in": "query", "schema": count, "description": "How many classes to name."}],
        "requestBody": {"required": True, "content": {**raw, **form}},
        "responses": {
            "200": _answer("The likeliest classes, best first.", {"$ref": "#/components/schemas/Predictions"}),
            **_errors((*_WORK_ERRORS, "422")),
        },
    }


def _infer(model: ServedModel) -> Document:
    height, width, _ = model.image_shape
    body = {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/InferRequest"},
            "example": {
                "inputs": [
                    {"name": "image", "datatype": "UINT8", "shape": [1, height, width, 3], "data": ["0 to 255, ..."]}
                ]
            },
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
    header = {"name": HEADER_LENGTH, "in": "header", "schema": {"type": "integer"}}
    return {
        "summary": "Answer tensors.",
        "description": f"Open Inference Protocol 2. Input 'image': UINT8 [batch, {height}, {width}, 3], RGB, data "
        f"nested or flat. Output 'logits': FP32 [batch, {len(model.classes)}]. With the binary tensor data extension, "
        f"raw bytes follow the JSON and {HEADER_LENGTH} is its length.",
        "parameters": [{**header, "description": "Length of the JSON where raw tensors follow it."}],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": _answer("The logits.", {"type": "object"}), **_errors((*_WORK_ERRORS, "404"))},
    }


def _get(
    summary: str,
    *,
    errors: tuple[str, ...] = ("401",),
    also: tuple[str, ...] = (),
    media_type: str = "application/json",
) -> Document:
    good = {"description": summary, "content": {media_type: {}}}
    return {"summary": summary, "responses": {"200": good, **_errors((*errors, *also))}}


def _answer(text: str, schema: Document) -> Document:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _errors(statuses: tuple[str, ...]) -> Document:
    return {status: _answer(ERRORS[status], {"$ref": "#/components/schemas/Error"}) for status in sorted(statuses)}


def _object(properties: Document) -> Document:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _predictions() -> Document:
    text, number = {"type": "string"}, {"type": "number"}
    one = _object({"label": text, "index": {"type": "integer"}, "score": {**number, "minimum": 0, "maximum": 1}})
    return _object({"model": text, "version": text, "predictions": {"type": "array", "items": one}})


def documentation_page(document: Document) -> str:
    """The document as HTML that loads nothing from anywhere."""
    title = html.escape(document["info"]["title"])
    style = "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}code{background:#eee}"
    sections = [
        _section(path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        f"<h1>{title}</h1><p>For programs: <a href=/openapi.json>/openapi.json</a></p>{''.join(sections)}</html>"
    )


def _section(path: str, method: str, operation: Document) -> str:
    parameters = "".join(
        f"<li><code>{html.escape(one['name'])}</code> ({one['in']}): {html.escape(one['description'])}"
        for one in operation.get("parameters", ())
    )
    responses = "".join(
        f"<li><code>{status}</code> {html.escape(response['description'])}"
        for status, response in operation["responses"].items()
    )
    return (
        f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])} "
        f"{html.escape(operation.get('description', ''))}</p><ul>{parameters}</ul><ul>{responses}</ul>"
    )
