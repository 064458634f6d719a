"""The plan's numbers follow from what was measured, and planning writes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from compress import store_plan
from compress.logit_store import LOGITS
from compress.store_plan import StorePlan, plan_store
from tests.compress import toy, toy_store

PLAN = StorePlan(
    size_bytes=1000,
    missing_bytes=600,
    free_bytes=700,
    num_answers=162 * 500,
    answers_per_second=100.0,
    epochs=(240, 240, 100),
    num_images=500,
    num_views=162,
)


def test_the_saving_is_the_online_time_less_the_writing() -> None:
    assert PLAN.write_seconds == 810
    assert PLAN.online_seconds == 580 * 500 / 100
    assert PLAN.saved_seconds == 2900 - 810


def test_a_store_for_one_short_training_costs_more_than_it_saves() -> None:
    assert replace(PLAN, epochs=(20,)).saved_seconds == 100 - 810
    assert replace(PLAN, epochs=()).saved_seconds == -810


def test_views_beyond_the_longest_training_are_never_seen() -> None:
    assert PLAN.num_views_seen == 162
    assert replace(PLAN, epochs=(20, 30)).num_views_seen == 30
    assert replace(PLAN, epochs=()).num_views_seen == 0


def test_a_store_fits_if_there_is_room_for_what_is_missing() -> None:
    assert PLAN.fits
    assert not replace(PLAN, free_bytes=599).fits


def test_planning_measures_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_plan, "MIN_SECONDS", 0.0)
    manifest = toy_store.planned()
    plan = plan_store(toy.data().train, toy_store.teacher(), manifest, work=tmp_path / "work", epochs=[3, 4])
    assert plan.answers_per_second > 0
    assert (plan.num_answers, plan.num_images, plan.num_views) == (toy_store.NUM_ROWS, 26, 4)
    assert plan.size_bytes == plan.missing_bytes == manifest.size_bytes
    assert list(tmp_path.iterdir()) == []


def test_the_predicted_size_is_the_real_one(tmp_path: Path) -> None:
    for form in ({"dtype": "uint8"}, {"dtype": "float16", "top_k": 2}, {"dtype": "float32"}):
        toy_store.write(tmp_path / "store", **form)
        assert (tmp_path / "store" / LOGITS).stat().st_size == toy_store.planned(**form).size_bytes
