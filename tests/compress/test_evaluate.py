"""Scores against independent computations, at the edges, and in bounded memory."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compress.errors import ModelError
from compress.evaluate import Scores, agreement, evaluate, score
from compress.runtime import load_predictor
from tests.compress.onnx_files import CLASSES, colour_logits, random_images, write_colour_model

WRONG_CALL = (ValueError, TypeError)
"""Shapes that do not fit: ours without the test session's type checker, the checker's where it comes first."""


def drawn(num_images: int, num_classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than by chance, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images)
    logits = generator.normal(scale=2.0, size=(num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), labels] += 2.0
    return logits, labels


def one_batch(logits: np.ndarray | list[list[float]], labels: np.ndarray | list[int]) -> Scores:
    rows = np.asarray(logits, dtype=np.float32)
    return score([(rows, np.asarray(labels, dtype=np.int64))], num_classes=rows.shape[1])


def test_accuracies_and_loss_equal_those_of_torch() -> None:
    logits, labels = drawn(500, 20)
    scores = one_batch(logits, labels)
    rows, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    assert scores.num_images == 500
    assert scores.accuracy_top1 == (rows.argmax(1) == targets).double().mean().item()
    assert scores.accuracy_top5 == (rows.topk(5).indices == targets[:, None]).any(1).double().mean().item()
    assert scores.negative_log_likelihood == pytest.approx(F.cross_entropy(rows, targets).item(), rel=1e-12)


def test_calibration_error_equals_its_definition() -> None:
    logits, labels = drawn(500, 20)
    rows = torch.from_numpy(logits).double().softmax(1).numpy()
    confidence, right = rows.max(axis=1), rows.argmax(axis=1) == labels
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert one_batch(logits, labels).expected_calibration_error == pytest.approx(expected, rel=1e-9)


def test_calibration_error_of_a_worked_example() -> None:
    # Four answers with confidence 3/4, three of them right, and four with confidence 3/4, none right.
    row = [math.log(3), 0.0]
    assert one_batch([row] * 4, [0, 0, 0, 1]).expected_calibration_error == pytest.approx(0.0, abs=1e-7)
    assert one_batch([row] * 4, [1] * 4).expected_calibration_error == pytest.approx(0.75, abs=1e-7)


def test_confusion_counts_label_by_answer() -> None:
    scores = one_batch([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 1, 1])
    assert scores.confusion == ((1, 1, 0), (0, 1, 1), (0, 0, 0))
    assert scores.per_class_accuracy == (0.5, 0.5, None), "no images, no accuracy"
    assert scores.accuracy_top1 == 0.5


@pytest.mark.parametrize(("num_classes", "exists"), [(2, False), (5, False), (6, True)])
def test_top5_exists_only_where_it_can_be_missed(num_classes: int, exists: bool) -> None:
    assert (one_batch(*drawn(10, num_classes)).accuracy_top5 is not None) == exists


def test_of_equal_logits_the_first_class_is_the_answer_and_ranks_first() -> None:
    scores = one_batch([[1.0] * 7] * 7, list(range(7)))
    assert scores.accuracy_top1 == 1 / 7
    assert scores.accuracy_top5 == 5 / 7


def test_how_images_are_batched_changes_nothing() -> None:
    logits, labels = drawn(100, 10)
    whole = one_batch(logits, labels)
    pieces = score(zip(np.split(logits, [1, 8, 40]), np.split(labels, [1, 8, 40]), strict=True), num_classes=10)
    assert pieces.confusion == whole.confusion
    assert pieces.accuracy_top5 == whole.accuracy_top5
    assert pieces.negative_log_likelihood == pytest.approx(whole.negative_log_likelihood, rel=1e-12)
    assert pieces.expected_calibration_error == pytest.approx(whole.expected_calibration_error, rel=1e-12)


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    scores = one_batch([[3e38, -3e38], [0.0, 1e4]], [0, 0])
    assert scores.negative_log_likelihood == pytest.approx(5000.0)
    assert scores.expected_calibration_error == pytest.approx(0.5)


def test_certain_and_right_answers_cost_nothing() -> None:
    scores = one_batch([[1e4, 0.0]] * 3, [0] * 3)
    assert (scores.negative_log_likelihood, scores.expected_calibration_error) == (0.0, 0.0)


def test_scores_are_written_as_json_and_read_back() -> None:
    scores = one_batch([[1, 0, 0], [0, 1, 0]], [0, 0])
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


def test_logits_are_kept_in_the_order_of_the_images(tmp_path: Path) -> None:
    predictor = load_predictor(write_colour_model(tmp_path / "model.onnx"))
    images, labels = random_images(10), np.zeros(10, dtype=np.int64)
    batches = [(images[start : start + 4], labels[start : start + 4]) for start in (0, 4, 8)]
    scores, logits = evaluate(predictor, batches, num_classes=len(CLASSES))
    np.testing.assert_allclose(logits, colour_logits(images), rtol=0, atol=1e-4)
    assert logits.dtype == np.float32
    assert scores.confusion == score([(logits, labels)], num_classes=3).confusion


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    batch = drawn(1000, 10)

    def peak_bytes(num_batches: int) -> int:
        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for _ in range(num_batches):
                yield batch[0].copy(), batch[1].copy()

        tracemalloc.start()
        score(batches(), num_classes=10)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)
    # 200 batches of logits are 8 MB; two batches overlap at most.
    assert peak_bytes(200) < 1.5 * peak_bytes(5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logit_that_is_no_number_names_its_image(value: float) -> None:
    logits, labels = drawn(30, 10)
    logits[17, 3] = value
    batches = zip(np.split(logits, 3), np.split(labels, 3), strict=True)
    with pytest.raises(ModelError, match="answer to image 17 holds NaN or infinity"):
        score(batches, num_classes=10)


def test_another_number_of_classes_names_both_sides() -> None:
    with pytest.raises(ModelError, match="answers with 3 logits, the data has 10 classes"):
        evaluate(colour_logits, [(random_images(2), np.zeros(2, dtype=np.int64))], num_classes=10)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_outside_the_classes_is_a_wrong_call(label: int) -> None:
    with pytest.raises(ValueError, match=r"are not all in 0\.\.2"):
        one_batch([[0, 0, 1]], [label])


def test_rows_and_labels_of_different_number_are_a_wrong_call() -> None:
    with pytest.raises(WRONG_CALL):
        score([(np.zeros((2, 3), dtype=np.float32), np.zeros(1, dtype=np.int64))], num_classes=3)


def test_nothing_to_evaluate_on_is_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(colour_logits, [], num_classes=3)


def test_agreement_is_the_share_of_equal_answers() -> None:
    first = np.eye(4, dtype=np.float32)
    second = np.eye(4, dtype=np.float32)[[0, 1, 3, 2]]
    assert agreement(first, first * 7) == 1.0
    assert agreement(first, second) == 0.5


def test_agreement_of_different_images_is_a_wrong_call() -> None:
    for num_images in (0, 1, 3):  # one row would fit any number of rows in numpy's eyes
        with pytest.raises(WRONG_CALL):
            agreement(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[:num_images])


def test_agreement_on_no_images_is_a_wrong_call() -> None:
    with pytest.raises(ValueError, match=r"got shapes \(0, 4\) and \(0, 4\)"):
        agreement(np.zeros((0, 4), dtype=np.float32), np.zeros((0, 4), dtype=np.float32))
