"""A teacher must answer in the classes of the data, in their order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.errors import ModelError
from compress.models import Cnn, check_classes, source_classes

CARD = {"classes": ["cat", "dog"], "mean": [0, 0, 0], "std": [1, 1, 1], "weights_sha256": "0" * 64}


def test_equal_classes_pass() -> None:
    check_classes(("cat", "dog"), ["cat", "dog"])


def test_other_count_names_both_sides() -> None:
    with pytest.raises(ModelError, match=r"the teacher has 2 classes \(cat, dog\), the data has 4 \(a, b, c, …\)"):
        check_classes(("cat", "dog"), ("a", "b", "c", "d"))


def test_other_order_is_called_that() -> None:
    with pytest.raises(ModelError, match=r"in another order: at position 1 models/x has 'b' where the data has 'c'"):
        check_classes(("a", "b", "c"), ("a", "c", "b"), owner="models/x")


def test_other_names_give_the_first_difference() -> None:
    with pytest.raises(ModelError, match=r"at position 2 the teacher has 'c' where the data has 'x' \(1 of 3 differ\)"):
        check_classes(("a", "b", "c"), ("a", "b", "x"))


def test_classes_come_from_the_list_or_the_card_or_nowhere(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    assert source_classes(Cnn(checkpoint=tmp_path, classes=("a", "b"))) == ("a", "b")
    assert source_classes(Cnn(checkpoint=tmp_path)) == ("cat", "dog")
    assert source_classes(Cnn(checkpoint=tmp_path / "weights.pth")) is None
    assert source_classes(Cnn()) is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"classes": "cat"}', '{"classes": ["cat"]}', "\x00", json.dumps(CARD | {"std": [0, 1, 1]})]
)
def test_damaged_card_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ModelError, match=r"card\.json cannot be read as the card of a saved model"):
        source_classes(Cnn(checkpoint=tmp_path))
