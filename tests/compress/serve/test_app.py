"""What a client sees of a running server: right answers, and a clear refusal of everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data.decoding import LARGEST_MAX_PIXELS, decode
from compress.data.preprocessing import preprocess
from compress.serve import ServedModel, ServeSettings
from tests.compress.deployed_student import CLASSES, PREPROCESSING, SIZE
from tests.compress.serve.pictures import encoded, every_kind, png, scene
from tests.compress.serve.running import Answer, RunningServer, ask, wait_until

JPEG = every_kind()["jpeg"]
INFER = "/v2/models/tiny/infer"
TOKEN = "a-token-of-enough-characters"


def expected_scores(model: ServedModel, content: bytes) -> np.ndarray:
    """What the model says of a picture that went the way of validation images."""
    picture = decode(content, max_pixels=LARGEST_MAX_PIXELS, alpha_background=PREPROCESSING.alpha_background)
    logits = model(preprocess(picture, PREPROCESSING)[None])[0].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum()


def scores(answer: Answer) -> np.ndarray:
    """In the order of the classes."""
    assert answer.status == 200, answer.body
    found = {entry["label"]: entry["score"] for entry in answer.json["predictions"]}
    return np.array([found[name] for name in CLASSES])


@pytest.mark.parametrize("kind", every_kind())
def test_picture_of_any_kind_is_classified_as_in_validation(
    server: RunningServer, model: ServedModel, kind: str
) -> None:
    content = every_kind()[kind]
    np.testing.assert_allclose(scores(server.ask("POST", "/classify", content)), expected_scores(model, content), 1e-9)


def test_classes_come_best_first_with_their_places(server: RunningServer, model: ServedModel) -> None:
    answer = server.ask("POST", "/classify?top_k=3", JPEG).json
    expected = expected_scores(model, JPEG)
    best = np.argsort(-expected)[:3]
    assert (answer["model"], answer["version"]) == ("tiny", model.sha256[:12])
    assert [entry["index"] for entry in answer["predictions"]] == best.tolist()
    assert [entry["label"] for entry in answer["predictions"]] == [CLASSES[place] for place in best]


def test_form_is_answered_like_the_bare_picture(server: RunningServer) -> None:
    head = '--x\r\nContent-Disposition: form-data; name="image"; filename="/etc/passwd"\r\n\r\n'
    form = head.encode() + JPEG + b"\r\n--x--\r\n"
    answer = server.ask("POST", "/classify", form, {"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.json == server.ask("POST", "/classify", JPEG).json


def test_content_type_of_a_bare_picture_does_not_matter(server: RunningServer) -> None:
    for content_type in ("application/x-www-form-urlencoded", "image/png", "text/plain", ""):
        assert server.ask("POST", "/classify", JPEG, {"Content-Type": content_type}).status == 200


@pytest.mark.parametrize("top_k", ["0", "5", "-1", "1.5", "x", "", "9" * 5000, "%D9%A3", "1e1"])
def test_top_k_outside_the_classes_is_refused(server: RunningServer, top_k: str) -> None:
    answer = server.ask("POST", f"/classify?top_k={top_k}", JPEG)
    assert answer.code == (400, "malformed_request")
    assert answer.json["error"] == "top_k must be a whole number from 1 to 4"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        json.dumps({"inputs": []}).encode(),
        JPEG[:-40],
        png(30_000, 30_000),
        png(3_000_000, 8),
        encoded(scene(), "GIF"),
    ],
    ids=["empty", "text", "json", "truncated", "bomb", "strip", "gif"],
)
def test_what_is_no_usable_picture_is_refused(server: RunningServer, body: bytes) -> None:
    assert server.ask("POST", "/classify", body).code == (422, "unreadable_image")


def tensor(images: np.ndarray, **changes: Any) -> bytes:
    one = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist(), **changes}
    return json.dumps({"id": "7", "inputs": [one]}).encode()


IMAGES = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("version", [False, True])
def test_tensors_are_answered_with_the_logits_of_the_file(
    server: RunningServer, model: ServedModel, version: bool
) -> None:
    path = f"/v2/models/tiny/versions/{model.version}/infer" if version else INFER
    answer = server.ask("POST", path, tensor(IMAGES), {"Content-Type": "application/json"}).json
    (output,) = answer["outputs"]
    assert (answer["id"], output["name"], output["datatype"], output["shape"]) == ("7", "logits", "FP32", [3, 4])
    np.testing.assert_array_equal(np.array(output["data"], dtype=np.float32).reshape(3, 4), model(IMAGES))


def test_raw_tensors_are_answered_with_raw_logits(server: RunningServer, model: ServedModel) -> None:
    one = {"name": "image", "datatype": "UINT8", "shape": list(IMAGES.shape)}
    one["parameters"] = {"binary_data_size": IMAGES.nbytes}
    header = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    answer = server.ask("POST", INFER, header + IMAGES.tobytes(), length)
    assert answer.headers["content-type"] == "application/octet-stream"
    split = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:split])["outputs"][0]["parameters"] == {"binary_data_size": 48}
    np.testing.assert_array_equal(np.frombuffer(answer.body[split:], dtype="<f4").reshape(3, 4), model(IMAGES))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"hello", "malformed_request"),
        (tensor(IMAGES, datatype="FP32"), "wrong_datatype"),
        (tensor(IMAGES, shape=[3, 3, SIZE, SIZE]), "wrong_shape"),
        (tensor(IMAGES, data=[float("nan")] * IMAGES.size), "wrong_value"),
    ],
)
def test_wrong_tensors_are_refused(server: RunningServer, body: bytes, code: str) -> None:
    assert server.ask("POST", INFER, body).code == (400, code)


@pytest.mark.parametrize("length", ["x", "-1", "", "9" * 30, "1.0"])
def test_damaged_header_length_is_refused(server: RunningServer, length: str) -> None:
    answer = server.ask("POST", INFER, b"{}", {"Inference-Header-Content-Length": length})
    assert answer.code == (400, "malformed_request")


def test_metadata_tells_what_a_client_needs(server: RunningServer, model: ServedModel) -> None:
    answer = server.ask("GET", "/v2/models/tiny").json
    assert answer["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert answer["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]
    assert answer["versions"] == [model.version]
    assert answer["parameters"]["labels"] == list(CLASSES)
    assert answer["parameters"]["preprocessing"] == PREPROCESSING.model_dump(mode="json")
    assert server.ask("GET", "/v2").json["extensions"] == ["binary_tensor_data"]


def test_server_and_model_are_live_and_ready(server: RunningServer) -> None:
    assert server.ask("GET", "/v2/health/live").json == {"live": True}
    assert server.ask("GET", "/v2/health/ready").json == {"ready": True}
    assert server.ask("GET", "/v2/models/tiny/ready").json == {"name": "tiny", "ready": True}


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/tiny/versions/1", "/v2/models/other/ready"])
def test_other_models_are_not_there(server: RunningServer, path: str) -> None:
    answer = server.ask("GET", path)
    assert answer.code == (404, "no_such_model")
    assert "this server has 'tiny'" in answer.json["error"]


@pytest.mark.parametrize(
    "path",
    ["/", "/model.onnx", "/../../etc/passwd", "/v2/models/..%2f..%2fetc%2fpasswd/x", "/static/%00", "//", "/classify/"],
)
def test_no_path_leads_to_a_file(server: RunningServer, path: str) -> None:
    assert server.ask("GET", path).code == (404, "no_such_route")


def test_wrong_method_is_refused_naming_the_right_one(server: RunningServer) -> None:
    answer = server.ask("GET", "/classify")
    assert answer.code == (405, "no_such_route")
    assert answer.headers["allow"] == "POST"


def test_answers_are_not_cached_or_sniffed(server: RunningServer) -> None:
    for path in ("/v2", "/nowhere"):
        headers = server.ask("GET", path).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
        assert "server" not in headers


def test_compressed_body_is_refused(server: RunningServer) -> None:
    assert server.ask("POST", "/classify", JPEG, {"Content-Encoding": "gzip"}).code == (415, "encoded_body")


def test_metrics_count_requests_refusals_and_runs(server: RunningServer) -> None:
    def value(name: str) -> float:
        lines = server.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = (
        'compress_serve_requests_total{route="classify",status="200"}',
        'compress_serve_requests_total{route="classify",status="422"}',
        'compress_serve_refused_total{reason="unreadable_image"}',
        "compress_serve_run_images_sum",
        "compress_serve_decode_seconds_count",
        'compress_serve_request_seconds_count{route="classify"}',
    )
    before = [value(name) for name in names]
    server.ask("POST", "/classify", JPEG)
    server.ask("POST", "/classify", b"hello")
    assert [value(name) - old for name, old in zip(names, before, strict=True)] == [1, 1, 1, 1, 1, 2]
    assert value("compress_serve_waiting_images") == 0
    assert value("compress_serve_requests_in_progress") == 0
    assert value("compress_serve_buffered_bytes") == 0
    assert value('compress_serve_model_info{model="tiny"') == 1


def test_metrics_have_few_series_whatever_clients_ask(server: RunningServer) -> None:
    def names() -> set[str]:
        return {line.split(" ")[0] for line in server.ask("GET", "/metrics").body.decode().splitlines()}

    server.ask("GET", "/first")
    names()
    before = names()
    for number in range(5):
        server.ask("GET", f"/path{number}?secret={number}")
    assert names() == before


def test_openapi_document_names_every_route(server: RunningServer) -> None:
    document = server.ask("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method in operations:
            assert server.ask(method.upper(), path).status not in (404, 405), path
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "#/')[1:]]
    assert references
    for reference in references:
        place = document
        for key in reference.split("/"):
            place = place[key]


def test_documentation_page_loads_nothing(server: RunningServer) -> None:
    answer = server.ask("GET", "/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert b"POST /classify" in answer.body
    assert b"<script" not in answer.body
    assert b"http://" not in answer.body
    assert b"https://" not in answer.body
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.fixture(scope="module")
def guarded(model: ServedModel, deployed: Path) -> Iterator[RunningServer]:
    with RunningServer(model, ServeSettings(folder=deployed), token=TOKEN) as running:
        yield running


@pytest.mark.parametrize(
    "authorization",
    ["", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer  {TOKEN}", "Bearer \xff", None],
)
def test_without_the_token_nothing_is_answered(guarded: RunningServer, authorization: str | None) -> None:
    headers = {"Cookie": TOKEN} if authorization is None else {"Authorization": authorization}
    for method, path in (("POST", "/classify"), ("POST", INFER), ("GET", "/metrics"), ("GET", "/v2"), ("GET", "/x")):
        answer = guarded.ask(method, path, JPEG if method == "POST" else None, headers)
        assert answer.code == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN.encode() not in answer.body


def test_token_in_the_query_is_not_a_token(guarded: RunningServer) -> None:
    assert guarded.ask("GET", f"/v2?access_token={TOKEN}&token={TOKEN}").status == 401


def test_with_the_token_everything_is_answered(guarded: RunningServer) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.ask("POST", "/classify", JPEG, headers).status == 200
    assert guarded.ask("GET", "/metrics", headers=headers).status == 200


def test_probes_and_documentation_need_no_token(guarded: RunningServer) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"):
        assert guarded.ask("GET", path).status == 200


def test_large_body_without_the_token_is_not_received(guarded: RunningServer) -> None:
    assert guarded.ask("POST", "/classify", bytes(5_000_000)).status == 401
    assert guarded.service.buffer.num_bytes == 0


def test_answer_that_is_no_number_is_not_passed_on(model: ServedModel, deployed: Path) -> None:
    with RunningServer(model, ServeSettings(folder=deployed)) as running:
        batcher = running.service._batcher
        batcher._run = lambda images: np.full((len(images), 4), np.nan, dtype=np.float32)
        assert ask(running.port, "POST", "/classify", JPEG).code == (500, "no_finite_answer")
        assert ask(running.port, "POST", INFER, tensor(IMAGES)).code == (500, "no_finite_answer")


def test_defect_of_our_own_is_a_500_without_details(
    model: ServedModel, deployed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunningServer(model, ServeSettings(folder=deployed)) as running:
        running.service.read_image = lambda content: 1 / 0  # type: ignore[method-assign]
        answer = ask(running.port, "POST", "/classify", JPEG)
        assert answer.code == (500, "internal")
        assert b"ZeroDivision" not in answer.body
        wait_until(lambda: "ZeroDivisionError" in caplog.text)  # written after the answer was sent
        assert ask(running.port, "GET", "/v2/health/live").status == 200
