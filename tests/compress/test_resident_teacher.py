"""Answers in device memory are those of the store, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress import train
from compress.methods import DKD, WTTM, CrossEntropy
from compress.objective import LogitObjective
from compress.residence import keep_answers_resident_, memory_for_data
from compress.resident_teacher import Places, ResidentTeacher, is_decoded_on_device, row_bytes
from compress.teacher_logits import OnlineTeacher
from compress.train import train_epochs
from compress.training_state import Trainee, TrainingState
from tests.compress import toy, toy_store

CPU = torch.device("cpu")
PLENTY = 10**6


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_answers_are_those_of_the_store(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.resident_teacher.ROWS_AT_ONCE", 10)
    toy_store.write(tmp_path, dtype=dtype)
    stored = toy_store.opened(tmp_path)
    resident = ResidentTeacher(stored, CPU)
    indices, slots = np.tile(np.arange(26), 4), np.repeat(np.arange(4), 26)
    images = torch.zeros(len(indices), 3, 8, 8)
    expected = stored.logits(images, indices, slots)
    assert torch.equal(resident.logits(images, indices, slots), expected)
    assert torch.equal(resident.at(Places(torch.from_numpy(indices), torch.from_numpy(slots))), expected)


def test_students_of_one_batch_share_one_look_up(tmp_path: Path) -> None:
    toy_store.write(tmp_path)
    resident = ResidentTeacher(toy_store.opened(tmp_path), CPU)
    places = Places(torch.arange(5), torch.zeros(5, dtype=torch.int64))
    assert resident.at(places) is resident.at(places)
    assert resident.at(Places(*places)) is not resident.at(places)


def test_places_outside_the_store_are_refused(tmp_path: Path) -> None:
    toy_store.write(tmp_path)
    resident = ResidentTeacher(toy_store.opened(tmp_path), CPU)
    with pytest.raises(ValueError, match="invalid entry"):
        resident.logits(torch.zeros(1, 3, 8, 8), np.array([26]), np.array([0]))


def test_rows_of_the_largest_logits_stay_on_the_host(tmp_path: Path) -> None:
    toy_store.write(tmp_path, dtype="float16", top_k=2)
    stored = toy_store.opened(tmp_path)
    assert not is_decoded_on_device(stored)
    with pytest.raises(ValueError, match="on the host only"):
        ResidentTeacher(stored, CPU)


def trainee(**changes: Any) -> Trainee:
    return Trainee(toy.state(**changes), toy.SETTINGS)


def teacher_of(one: Trainee) -> object:
    assert isinstance(one.state.objective, LogitObjective)
    return one.state.objective.teacher


def test_each_store_is_kept_once_and_only_where_it_fits(tmp_path: Path) -> None:
    toy_store.write(tmp_path / "a")
    toy_store.write(tmp_path / "b")
    first, second = toy_store.opened(tmp_path / "a"), toy_store.opened(tmp_path / "b")
    online = OnlineTeacher(toy.network())
    students = [trainee(method=WTTM(), teacher=teacher) for teacher in (first, first, second, online)]
    students.append(trainee(method=CrossEntropy()))
    keep_answers_resident_(students, CPU, resident_bytes=row_bytes(first) + 1)
    assert isinstance(teacher_of(students[0]), ResidentTeacher)
    assert teacher_of(students[0]) is teacher_of(students[1])
    assert teacher_of(students[2]) is second
    assert teacher_of(students[3]) is online


def test_training_from_device_memory_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_store.write(tmp_path)

    def trained() -> TrainingState:
        state = toy.state(method=DKD(), teacher=toy_store.opened(tmp_path))
        for _ in train_epochs(state, toy.data(), settings=toy.SETTINGS, seed=1):
            pass
        return state

    streamed = trained()
    monkeypatch.setattr(train, "memory_for_data", lambda *_: PLENTY)
    resident = trained()
    assert isinstance(resident.objective, LogitObjective)
    assert isinstance(resident.objective.teacher, ResidentTeacher)
    for name, value in streamed.network.state_dict().items():
        assert torch.equal(value, resident.network.state_dict()[name]), name
    assert [each[:-1] for each in streamed.history] == [each[:-1] for each in resident.history]


def test_nothing_stays_on_a_cpu_or_where_a_setting_says_so() -> None:
    off = toy.SETTINGS.model_copy(update={"data_on_gpu": "off"})
    assert memory_for_data([trainee()], CPU) == 0
    assert memory_for_data([trainee(), Trainee(toy.state(off), off)], torch.device("cuda")) == 0
