"""Requests that wait are answered together, each with its own answer, all of them, in bounds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from compress.serve.batcher import Batcher, BatcherClosedError, QueueFullError
from tests.compress.serve.running import wait_until

FIRST = 1
"""Pixel of the request that keeps a held model busy."""


class HeldModel:
    """Answers with each image's first pixel; a run waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()
        self.fail = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(images[:, 0, 0, 0].tolist())
        assert self.go_on.wait(20)
        if self.fail:
            raise RuntimeError("no memory")
        return images[:, 0, 0, :1].astype(np.float32)


def images(*values: int) -> np.ndarray:
    """A request of one-pixel images."""
    return np.array(values, dtype=np.uint8).repeat(3).reshape(-1, 1, 1, 3)


class Fixture:
    """A batcher whose model is busy with a first request until `let_go`."""

    def __init__(self, **settings: float) -> None:
        self.model = HeldModel()
        self.runs: list[int] = []
        chosen = {"max_batch": 4, "max_delay_s": 0.0, "max_waiting": 10, **settings}
        self.batcher = Batcher(
            self.model,
            max_batch=int(chosen["max_batch"]),
            max_delay_s=chosen["max_delay_s"],
            max_waiting=int(chosen["max_waiting"]),
            observe=lambda num_images, seconds: self.runs.append(num_images),
        )

    def keep_busy(self) -> Future[np.ndarray]:
        answer = self.batcher.submit(images(FIRST))
        wait_until(lambda: len(self.model.batches) > 0)
        return answer

    def let_go(self) -> None:
        self.model.go_on.set()


@pytest.fixture
def held() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.let_go()
    fixture.batcher.close()


def values(answer: Future[np.ndarray]) -> list[float]:
    return answer.result(timeout=20)[:, 0].tolist()


def test_lone_request_is_answered_at_once(held: Fixture) -> None:
    held.let_go()
    assert values(held.batcher.submit(images(7))) == [7]
    assert held.model.batches == [[7]]


def test_what_comes_while_the_model_is_busy_shares_the_next_run(held: Fixture) -> None:
    held.keep_busy()
    answers = [held.batcher.submit(images(value)) for value in (2, 3, 4)]
    held.let_go()
    assert [values(answer) for answer in answers] == [[2], [3], [4]]
    assert held.model.batches == [[FIRST], [2, 3, 4]]


def test_no_run_has_more_than_max_batch_images_and_none_overtakes(held: Fixture) -> None:
    held.keep_busy()
    answers = [held.batcher.submit(images(*request)) for request in ((2, 3), (4, 5), (6,), (7, 8, 9))]
    held.let_go()
    assert [values(answer) for answer in answers] == [[2, 3], [4, 5], [6], [7, 8, 9]]
    assert held.model.batches == [[FIRST], [2, 3, 4, 5], [6, 7, 8, 9]]


def test_request_larger_than_max_batch_runs_alone(held: Fixture) -> None:
    held.keep_busy()
    answers = [held.batcher.submit(images(*request)) for request in ((2,), (3, 4, 5, 6, 7), (8,))]
    held.let_go()
    assert [values(answer) for answer in answers] == [[2], [3, 4, 5, 6, 7], [8]]
    assert held.model.batches == [[FIRST], [2], [3, 4, 5, 6, 7], [8]]


def test_queue_is_bounded_in_images(held: Fixture) -> None:
    held.keep_busy()
    held.batcher.submit(images(*range(9)))
    with pytest.raises(QueueFullError):
        held.batcher.submit(images(2, 3))
    held.batcher.submit(images(2))
    assert held.batcher.num_waiting == 10
    with pytest.raises(QueueFullError):
        held.batcher.submit(images(3))


def test_cancelled_request_is_not_run(held: Fixture) -> None:
    held.keep_busy()
    answers = [held.batcher.submit(images(value)) for value in (2, 3, 4)]
    assert answers[1].cancel()
    held.let_go()
    assert values(answers[2]) == [4]
    assert held.model.batches == [[FIRST], [2, 4]]


def test_close_answers_what_waits_and_takes_nothing_more(held: Fixture) -> None:
    held.keep_busy()
    answers = [held.batcher.submit(images(value)) for value in range(2, 10)]
    closing = threading.Thread(target=held.batcher.close)
    closing.start()
    held.let_go()
    closing.join(timeout=20)
    assert [values(answer) for answer in answers] == [[value] for value in range(2, 10)]
    with pytest.raises(BatcherClosedError):
        held.batcher.submit(images(2))


def test_failed_run_is_told_to_its_requests_and_the_next_one_succeeds(held: Fixture) -> None:
    held.model.fail = True
    first = held.keep_busy()
    second = held.batcher.submit(images(2))
    held.let_go()
    with pytest.raises(RuntimeError, match="no memory"):
        first.result(timeout=20)
    with pytest.raises(RuntimeError, match="no memory"):
        second.result(timeout=20)
    held.model.fail = False
    assert values(held.batcher.submit(images(3))) == [3]
    assert held.runs == [1]


def test_request_waits_for_company_until_the_batch_is_full() -> None:
    fixture = Fixture(max_delay_s=60.0, max_batch=3)
    fixture.let_go()
    answers = [fixture.batcher.submit(images(value)) for value in (2, 3, 4)]
    assert [values(answer) for answer in answers] == [[2], [3], [4]]
    assert fixture.model.batches == [[2, 3, 4]]
    fixture.batcher.close()


def test_request_without_company_is_answered_after_the_delay() -> None:
    fixture = Fixture(max_delay_s=0.05, max_batch=3)
    fixture.let_go()
    assert values(fixture.batcher.submit(images(2))) == [2]
    fixture.batcher.close()


def test_close_does_not_wait_for_company() -> None:
    fixture = Fixture(max_delay_s=3600.0)
    fixture.let_go()
    answer = fixture.batcher.submit(images(2))
    fixture.batcher.close()
    assert values(answer) == [2]


def test_every_answer_belongs_to_its_request_whoever_asks_when() -> None:
    batcher = Batcher(
        lambda batch: batch[:, 0, 0, :1].astype(np.float32),
        max_batch=5,
        max_delay_s=0.0005,
        max_waiting=1000,
        observe=lambda num_images, seconds: None,
    )
    wrong: list[int] = []

    def client(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            request = random.integers(0, 256, random.integers(1, 8)).tolist()
            if values(batcher.submit(images(*request))) != request:
                wrong.append(seed)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    batcher.close()
    assert wrong == []
    assert batcher.num_waiting == 0
