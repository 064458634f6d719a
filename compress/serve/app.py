"""The HTTP face of a service: the Open Inference Protocol, a plain image endpoint, health, metrics, documentation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from compress import __version__
from compress.serve.bodies import image_part, received_body
from compress.serve.errors import RequestError
from compress.serve.gate import Gate
from compress.serve.inference_protocol import (
    HEADER_LENGTH,
    INPUT,
    INPUT_TYPE,
    OUTPUT,
    OUTPUT_TYPE,
    format_answer,
)
from compress.serve.model import LogitBatch, ServedModel
from compress.serve.openapi import DEFAULT_TOP_K, documentation_page, openapi
from compress.serve.service import Service
from compress.serve.settings import ServeSettings

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
"""They answer without a token: probes have none, and they tell nothing of images or users."""

Work = Callable[[Service, bytes], Awaitable[Response]]


def create_app(model: ServedModel, settings: ServeSettings, *, token: str | None = None) -> Starlette:
    """The ASGI application; with a token, only health and documentation answer without it.

    Threads start and end with its lifespan; `app.state.service` is its `Service` meanwhile.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        service = app.state.service = Service(model, settings)
        try:
            service.warm_up()
            yield
        finally:
            await asyncio.to_thread(service.close)

    gate = Middleware(Gate, token=token, open_paths=OPEN_PATHS, log_requests=settings.log_requests)
    app = Starlette(
        routes=_routes(),
        middleware=[gate],
        lifespan=lifespan,
        exception_handlers={
            RequestError: _refused,
            HTTPException: _no_such_route,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False  # a redirect would be built from whatever host the client names
    return app


def _routes() -> list[Route]:
    model = "/v2/models/{model}"
    version = f"{model}/versions/{{version}}"
    return [
        Route("/classify", classify, methods=["POST"]),
        Route("/v2", server_metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *(Route(path, model_metadata) for path in (model, version)),
        *(Route(f"{path}/ready", model_ready) for path in (model, version)),
        *(Route(f"{path}/infer", infer, methods=["POST"]) for path in (model, version)),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi_document),
        Route("/docs", docs),
    ]


async def classify(request: Request) -> Response:
    """A picture in, the likeliest classes out."""
    top_k = _top_k(request, _service(request).model)
    content_type = request.headers.get("content-type", "")
    is_form = content_type.partition(";")[0].strip().lower() == "multipart/form-data"

    def image(service: Service, body: bytes) -> np.ndarray:
        return service.read_image(image_part(body, content_type) if is_form else body)

    async def work(service: Service, body: bytes) -> Response:
        logits = await service.answer(await service.in_thread(image, service, body))
        return JSONResponse(_predictions(service.model, logits, top_k))

    return await _answered(request, work)


async def infer(request: Request) -> Response:
    """Tensors in, tensors out."""
    _check_model(request)
    header_length = _header_length(request)

    async def work(service: Service, body: bytes) -> Response:
        inference = await service.in_thread(service.read_tensors, body, header_length)
        logits = await service.answer(inference.images)
        content, length = await service.in_thread(format_answer, inference, logits, service.model)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(length)})

    return await _answered(request, work)


async def server_metadata(request: Request) -> Response:
    """What the server is."""
    return JSONResponse({"name": "compress", "version": __version__, "extensions": ["binary_tensor_data"]})


async def live(request: Request) -> Response:
    """Whether the process runs."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """Whether new requests are welcome."""
    is_ready = not _service(request).draining
    return JSONResponse({"ready": is_ready}, status_code=200 if is_ready else 503)


async def model_metadata(request: Request) -> Response:
    """What the model takes and gives."""
    model = _check_model(request)
    return JSONResponse(
        {
            "name": model.name,
            "versions": [model.version],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": INPUT, "datatype": INPUT_TYPE, "shape": [-1, *model.image_shape]}],
            "outputs": [{"name": OUTPUT, "datatype": OUTPUT_TYPE, "shape": [-1, len(model.classes)]}],
            "parameters": {
                "sha256": model.sha256,
                "labels": list(model.classes),
                "preprocessing": model.preprocessing.model_dump(mode="json"),
            },
        }
    )


async def model_ready(request: Request) -> Response:
    """Whether the model takes new requests."""
    model = _check_model(request)
    is_ready = not _service(request).draining
    return JSONResponse({"name": model.name, "ready": is_ready}, status_code=200 if is_ready else 503)


async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    numbers = _service(request).metrics
    return Response(numbers.text(), headers={"Content-Type": numbers.content_type})


async def openapi_document(request: Request) -> Response:
    """This interface, described for programs."""
    return JSONResponse(openapi(_service(request).model))


async def docs(request: Request) -> Response:
    """This interface, described for people."""
    page = documentation_page(openapi(_service(request).model))
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


async def _answered(request: Request, work: Work) -> Response:
    """Receive the body and do the work, each within its limits."""
    service = _service(request)
    with service.begun():
        async with received_body(request, service.limits, service.buffer) as body:
            with service.admitted():
                timeout_s = service.limits.request_timeout_s
                try:
                    async with asyncio.timeout(timeout_s):
                        return await work(service, body)
                except TimeoutError as error:
                    raise RequestError(503, "timeout", f"no answer within {timeout_s:g} s; try again later") from error


def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _check_model(request: Request) -> ServedModel:
    model = _service(request).model
    version = request.path_params.get("version", model.version)
    if request.path_params["model"] != model.name or version != model.version:
        message = f"no such model: this server has '{model.name}', version '{model.version}'"
        raise RequestError(404, "no_such_model", message)
    return model


def _top_k(request: Request, model: ServedModel) -> int:
    num_classes = len(model.classes)
    text = request.query_params.get("top_k", str(min(DEFAULT_TOP_K, num_classes)))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= num_classes):
        raise RequestError(400, "malformed_request", f"top_k must be a whole number from 1 to {num_classes}")
    return int(text)


def _header_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise RequestError(400, "malformed_request", f"{HEADER_LENGTH} must be a whole number")
    return int(text)


def _predictions(model: ServedModel, logits: LogitBatch, top_k: int) -> dict[str, object]:
    exponentials = np.exp(logits[0].astype(np.float64) - logits[0].max())
    scores = exponentials / exponentials.sum()
    best = np.argsort(-scores, kind="stable")[:top_k].tolist()
    return {
        "model": model.name,
        "version": model.version,
        "predictions": [{"label": model.classes[k], "index": k, "score": float(scores[k])} for k in best],
    }


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    _service(request).metrics.count_refusal(error.code)
    return JSONResponse({"error": error.message, "code": error.code}, status_code=error.status, headers=error.headers)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = {"error": f"{error.detail}; /docs shows what there is", "code": "no_such_route"}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "internal error; the server's log has it", "code": "internal"}, status_code=500)
