"""Rows give back the logits they were made of, within what each format promises."""

import numpy as np
import pytest

from compress.errors import ModelError
from compress.logit_rows import LargestLogits, RowFormat, ScaledBytes, StoredType, probability_error, row_format

NUM_CLASSES = 300


def logits(num_rows: int = 64, num_classes: int = NUM_CLASSES, *, spread: float = 4.0) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.standard_normal((num_rows, num_classes)) * spread).astype(np.float32)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


FORMATS: list[tuple[StoredType, int | None, int]] = [
    ("float32", None, 4 * NUM_CLASSES),
    ("float16", None, 2 * NUM_CLASSES),
    ("uint8", None, NUM_CLASSES + 8),
    ("float16", 20, 20 * 4 + 2),
]


@pytest.mark.parametrize(("dtype", "top_k", "row_bytes"), FORMATS)
def test_a_row_has_the_size_that_the_format_states(dtype: StoredType, top_k: int | None, row_bytes: int) -> None:
    made = row_format(dtype, top_k, NUM_CLASSES)
    assert made.encode(logits()).shape == (64, row_bytes)
    assert made.row_bytes == row_bytes


def test_float32_gives_back_the_same_bits() -> None:
    made = row_format("float32", None, NUM_CLASSES)
    assert np.array_equal(made.decode(made.encode(logits())), logits())


def test_float16_is_off_by_half_a_unit_in_the_last_place_at_most() -> None:
    made = row_format("float16", None, NUM_CLASSES)
    error = np.abs(made.decode(made.encode(logits())) - logits())
    assert error.max() > 0
    assert np.all(error <= np.spacing(np.abs(logits()).astype(np.float16)).astype(np.float32) / 2)


def test_bytes_are_off_by_half_a_step_at_most() -> None:
    made = ScaledBytes(NUM_CLASSES)
    error = np.abs(made.decode(made.encode(logits())) - logits())
    step = (logits().max(axis=1) - logits().min(axis=1)) / 255
    assert np.all(error.max(axis=1) <= step / 2 * (1 + 1e-4))  # the step itself is a rounded number
    assert np.all(error.max(axis=1) > step / 4)


def test_bytes_give_back_a_row_of_equal_logits() -> None:
    made = ScaledBytes(3)
    equal = np.full((2, 3), -7.25, np.float32)
    assert np.array_equal(made.decode(made.encode(equal)), equal)


def test_the_largest_logits_are_kept_and_the_others_share_their_probability() -> None:
    made = LargestLogits(NUM_CLASSES, 20)
    stored = made.decode(made.encode(logits()))
    kept = np.argsort(-logits(), axis=1)[:, :20]
    true, found = softmax(logits()), softmax(stored)
    # Float16 moves a logit below 16 by 2**-8 at most, and so a probability by 0.8 %: itself and the sum below it.
    np.testing.assert_allclose(
        np.take_along_axis(found, kept, axis=1), np.take_along_axis(true, kept, axis=1), rtol=2**-7
    )
    others = np.ones_like(true, dtype=bool)
    np.put_along_axis(others, kept, False, axis=1)
    shares = found[others].reshape(64, -1)
    assert np.all(shares == shares[:, :1])
    np.testing.assert_allclose(shares.sum(axis=1), true[others].reshape(64, -1).sum(axis=1), rtol=2**-6)


@pytest.mark.parametrize(("num_classes", "bytes_per_class"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_class_numbers_take_as_few_bytes_as_they_need(num_classes: int, bytes_per_class: int) -> None:
    made = LargestLogits(num_classes, 2)
    assert made.row_bytes == 2 * (2 + bytes_per_class) + 2
    last = np.zeros((1, num_classes), np.float32)
    last[0, -1] = 5
    assert made.decode(made.encode(last))[0, -1] == 5


@pytest.mark.parametrize("num_kept", [0, 3, 4])
def test_keeping_none_or_all_of_the_logits_is_a_wrong_call(num_kept: int) -> None:
    with pytest.raises(ValueError, match=f"{num_kept} of 3"):
        LargestLogits(3, num_kept)


@pytest.mark.parametrize(("dtype", "top_k", "row_bytes"), FORMATS)
def test_the_error_of_a_row_is_that_of_the_classes_it_holds(
    dtype: StoredType, top_k: int | None, row_bytes: int
) -> None:
    made: RowFormat = row_format(dtype, top_k, NUM_CLASSES)
    rows = made.encode(logits())
    difference = np.abs(made.decode(rows) - logits())
    if top_k is not None:
        difference = np.take_along_axis(difference, np.argsort(-logits(), axis=1)[:, :top_k], axis=1)
    assert np.array_equal(made.errors(rows, logits()), difference.max(axis=1))


def test_the_probability_error_is_the_largest_there_is() -> None:
    first, second = logits(), logits() + np.float32(0.1) * logits()[::-1]
    assert probability_error(first, second) == pytest.approx(np.abs(softmax(first) - softmax(second)).max(), rel=1e-4)


@pytest.mark.parametrize(("dtype", "top_k"), [("float16", None), ("float16", 2)])
def test_logits_too_large_for_float16_are_refused_with_a_way_out(dtype: StoredType, top_k: int | None) -> None:
    with pytest.raises(ModelError, match=r"reach 1e\+06.*dtype: float32"):
        row_format(dtype, top_k, 3).encode(np.array([[0, 1e6, 1]], np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("dtype", "top_k", "row_bytes"), FORMATS)
def test_logits_that_are_not_finite_are_refused(
    dtype: StoredType, top_k: int | None, row_bytes: int, value: float
) -> None:
    broken = logits()
    broken[3, 5] = value
    with pytest.raises(ModelError, match="not finite"):
        row_format(dtype, top_k, NUM_CLASSES).encode(broken)
