"""A short run of the fuzzer's targets on the corpus and on damage to it; `make fuzz` goes on from there for hours."""

from __future__ import annotations

import warnings

import pytest

from tests.fuzzing.corpus import CORPUS, damaged, inputs_of
from tests.fuzzing.targets import TARGETS

NUM_DAMAGED = 200
LARGEST_CORPUS = 1_000_000


@pytest.mark.parametrize("name", TARGETS)
def test_reader_says_what_is_wrong_with_every_input_of_the_corpus(name: str) -> None:
    for content in inputs_of(name):
        TARGETS[name](content)


@pytest.mark.parametrize("name", TARGETS)
def test_reader_says_what_is_wrong_with_damaged_inputs(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of the damage that it reads over
        for content in damaged(inputs_of(name), num=NUM_DAMAGED, seed=1):
            TARGETS[name](content)


def test_a_defect_would_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above can fail."""

    def broken(*_: object, **__: object) -> None:
        raise KeyError("defect")

    monkeypatch.setattr("compress.serve.inference_protocol.InferRequest.model_validate_json", broken)
    with pytest.raises(KeyError):
        TARGETS["inference_request"](inputs_of("inference_request")[0])


def test_every_target_has_a_small_corpus_and_every_corpus_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < LARGEST_CORPUS


def test_damage_is_the_same_for_the_same_seed() -> None:
    inputs = [b"one input", b"another one"]
    assert list(damaged(inputs, num=50, seed=3)) == list(damaged(inputs, num=50, seed=3))
    assert list(damaged(inputs, num=50, seed=3)) != list(damaged(inputs, num=50, seed=4))
