"""The picture in a form is found, whatever else the form holds."""

from __future__ import annotations

import pytest

from compress.serve.bodies import MAX_PARTS, image_part
from compress.serve.errors import RequestError

FORM = "multipart/form-data; boundary=abc"
PICTURE = b"\x89PNG\r\n--ab\r\n\r\n--abd\0 \xff\r\n"


def part(name: str, content: bytes, *, more: str = "") -> bytes:
    head = f'--abc\r\nContent-Disposition: form-data; name="{name}"{more}\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = b"--abc--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        part("image", PICTURE) + END,
        part("image", PICTURE, more='; filename="../../etc/passwd"') + END,
        part("first", b"x" * 1000) + part("image", PICTURE) + part("last", b"") + END,
        part("image", PICTURE).replace(b"Content-Disposition", b"content-DISPOSITION") + END,
        part("image", PICTURE) + END + b"epilogue",
    ],
    ids=["alone", "with a file name", "among others", "in other letters", "before an epilogue"],
)
def test_picture_is_found_byte_for_byte(body: bytes) -> None:
    assert image_part(body, FORM) == PICTURE


def test_boundary_may_be_quoted() -> None:
    assert image_part(part("image", PICTURE) + END, 'multipart/form-data; charset=utf-8; boundary="abc"') == PICTURE


@pytest.mark.parametrize(
    ("body", "content_type", "told"),
    [
        (part("image", PICTURE) + END, "multipart/form-data", "no boundary"),
        (part("image", PICTURE) + END, 'multipart/form-data; boundary=""', "no boundary"),
        (part("image", PICTURE) + END, f"multipart/form-data; boundary={'x' * 1000}", "damaged"),
        (part("image", PICTURE) + END, "multipart/form-data; boundary=other", "damaged"),
        (part("image", PICTURE), FORM, "cut off"),
        (part("image", PICTURE)[:30], FORM, "cut off"),
        (b"", FORM, "cut off"),
        (b"hello", FORM, "damaged"),
        (b"--abcx", FORM, "damaged"),
        (part("photo", PICTURE) + END, FORM, "0 fields 'image'"),
        (part("image", PICTURE) * 2 + END, FORM, "2 fields 'image'"),
        (part("x", b"") * (MAX_PARTS + 1) + END, FORM, "more than 16 fields"),
        (b"--abc\r\n" + b"A: b\r\n" * 1000 + b"\r\n\r\n" + END, FORM, "damaged"),
        (b"--abc\r\nA: " + b"b" * 100_000 + b"\r\n\r\n" + END, FORM, "damaged"),
        (b"--abc\r\n\xff\xfe: b\r\n\r\n\r\n" + END, FORM, "damaged"),
    ],
    ids=range(15),
)
def test_form_without_one_whole_picture_is_refused(body: bytes, content_type: str, told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        image_part(body, content_type)
    assert (caught.value.status, caught.value.code) == (400, "malformed_form")
