"""Parity passes for rounding, fails for everything more, and says by how much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.errors import ParityError
from compress.parity import Parity, assert_parity, disagreements
from compress.runtime import load_predictor
from tests.compress.onnx_files import colour_logits, random_images, write_colour_model

IMAGES = random_images(20)


def shifted(by: float, *, image: int = 0, place: int = 0):
    """Colour logits, one of them shifted wherever that image is in the batch."""

    def predict(images: np.ndarray) -> np.ndarray:
        logits = colour_logits(images)
        if len(images) > image:
            logits[image, place] += by
        return logits

    return predict


def test_equal_predictors_have_no_error() -> None:
    parity = assert_parity(colour_logits, colour_logits, IMAGES, tolerance=1e-9)
    assert (parity.relative_error, parity.absolute_error, parity.agreement, parity.disagreements) == (0.0, 0.0, 1.0, ())
    assert parity.num_images == 20
    assert parity.batch_sizes == (1, 2, 7, 20)


def test_error_is_measured_against_the_largest_logit() -> None:
    parity = assert_parity(colour_logits, shifted(0.5, image=15), IMAGES, tolerance=0.01)
    scale = float(colour_logits(IMAGES).max())
    assert parity.absolute_error == pytest.approx(0.5, rel=1e-4)  # float32 numbers of about 130
    assert parity.relative_error == pytest.approx(0.5 / scale, rel=1e-4)


def test_error_beyond_the_tolerance_names_numbers_and_place() -> None:
    with pytest.raises(ParityError, match=r"batch of 20, logit 2 of image 15 differs by 5,.*allowed is 0\.01"):
        assert_parity(colour_logits, shifted(5.0, image=15, place=2), IMAGES, tolerance=0.01)


def test_parity_is_written_as_json_and_read_back() -> None:
    parity = assert_parity(colour_logits, shifted(1e-4), IMAGES, tolerance=0.01)
    assert Parity.model_validate_json(parity.model_dump_json()) == parity


def test_disagreement_within_rounding_is_a_tie_and_no_failure() -> None:
    def nearly_equal(images: np.ndarray) -> np.ndarray:
        return np.tile(np.array([10.0, 10.0 + 1e-5, 0.0], dtype=np.float32), (len(images), 1))

    def rounded_otherwise(images: np.ndarray) -> np.ndarray:
        logits = nearly_equal(images)
        logits[3:5, 0] += np.float32(2e-5)
        return logits

    parity = assert_parity(nearly_equal, rounded_otherwise, IMAGES, tolerance=1e-4)
    assert [(each.image, each.expected, each.given) for each in parity.disagreements] == [(3, 1, 0), (4, 1, 0)]
    assert all(0 < each.margin <= 2 * parity.absolute_error for each in parity.disagreements)
    assert parity.agreement == parity.agreement_outside_ties == 0.9


def test_disagreement_about_equal_logits_counts_apart() -> None:
    def equal(images: np.ndarray) -> np.ndarray:
        return np.tile(np.array([10.0, 10.0, 0.0], dtype=np.float32), (len(images), 1))

    def rounded_otherwise(images: np.ndarray) -> np.ndarray:
        logits = equal(images)
        logits[:5, 1] += np.float32(1e-5)
        return logits

    parity = assert_parity(equal, rounded_otherwise, IMAGES, tolerance=1e-4)
    assert (parity.agreement, parity.agreement_outside_ties) == (0.75, 1.0)
    assert {each.margin for each in parity.disagreements} == {0.0}


def test_disagreements_stand_in_order_of_their_margin() -> None:
    expected = np.array([[3, 0, 2], [9, 4, 0], [0, 5, 4], [1, 0, 0]], dtype=np.float32)
    given = np.array([[0, 0, 2], [0, 4, 0], [0, 5, 6], [1, 0, 0]], dtype=np.float32)
    found = disagreements(expected, given)
    assert [(each.image, each.expected, each.given, each.margin) for each in found] == [
        (1, 0, 1, 5.0),
        (0, 0, 2, 1.0),
        (2, 1, 2, 1.0),
    ]


def test_disagreement_beyond_rounding_fails() -> None:
    with pytest.raises(ParityError, match="disagree"):
        assert_parity(colour_logits, lambda images: colour_logits(images)[:, ::-1], IMAGES, tolerance=1e-4)


@pytest.mark.parametrize("broken_size", [1, 2, 7, 20])
def test_defect_at_one_batch_size_is_found(broken_size: int) -> None:
    def predict(images: np.ndarray) -> np.ndarray:
        return colour_logits(images) * np.float32(1.1 if len(images) == broken_size else 1.0)

    with pytest.raises(ParityError, match=f"in a batch of {broken_size},"):
        assert_parity(colour_logits, predict, IMAGES, tolerance=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("role", ["reference", "candidate"])
def test_answer_that_is_no_number_fails_and_names_the_side(value: float, role: str) -> None:
    sides = [colour_logits, colour_logits]
    sides[role == "candidate"] = shifted(value, image=4)
    with pytest.raises(ParityError, match=f"the {role}'s answer to image 4 holds NaN or infinity"):
        assert_parity(sides[0], sides[1], IMAGES, tolerance=1e9)


def test_another_number_of_classes_fails_and_names_both_shapes() -> None:
    with pytest.raises(ParityError, match=r"shape \(1, 2\), the reference with \(1, 3\)"):
        assert_parity(colour_logits, lambda images: colour_logits(images)[:, :2], IMAGES, tolerance=1.0)


def test_few_images_are_compared_in_the_batches_they_fill() -> None:
    assert assert_parity(colour_logits, colour_logits, IMAGES[:3], tolerance=1e-9).batch_sizes == (1, 2, 3)


def test_many_images_are_compared_in_batches_of_32() -> None:
    images = random_images(40)
    sizes: list[int] = []

    def counted(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return colour_logits(images)

    assert assert_parity(colour_logits, counted, images, tolerance=1e-9).batch_sizes == (1, 2, 7, 32)
    assert sizes == [1, 2, 7, 32, 8]


def test_defect_in_the_last_few_of_many_images_is_found_in_its_place() -> None:
    def predict(images: np.ndarray) -> np.ndarray:
        return shifted(5.0, image=6, place=1)(images) if len(images) == 8 else colour_logits(images)

    with pytest.raises(ParityError, match="logit 1 of image 38 differs by 5"):
        assert_parity(colour_logits, predict, random_images(40), tolerance=1e-4)


def test_no_images_are_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        assert_parity(colour_logits, colour_logits, IMAGES[:0], tolerance=1e-4)


def test_network_that_answers_zeros_equals_only_zeros() -> None:
    def zeros(images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 3), dtype=np.float32)

    assert assert_parity(zeros, zeros, IMAGES, tolerance=1e-4).relative_error == 0.0
    with pytest.raises(ParityError):
        assert_parity(zeros, lambda images: zeros(images) + np.float32(1e-6), IMAGES, tolerance=1e-4)


def test_real_session_agrees_with_numpy(tmp_path: Path) -> None:
    predictor = load_predictor(write_colour_model(tmp_path / "model.onnx"))
    assert assert_parity(colour_logits, predictor, IMAGES, tolerance=1e-6).agreement == 1.0
