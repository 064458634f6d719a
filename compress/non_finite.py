"""Losses and gradients that are no longer finite: noticed in the step that made them, named, and dealt with.

A CPU looks after every step. On a GPU that would make every step wait, so the verdicts stay on the device and are read
together, every few steps. Where all values are finite, not one bit of a training changes, whatever the policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol, final, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.errors import TrainingError
from compress.ranks import ALONE, Ranks, summed
from compress.settings import PositiveInt, Settings
from compress.types import IndexArray, LossTerms

MOST_NAMED = 16
"""Images of a batch that an error names."""
STEPS_PER_LOOK = 100
"""Steps on a GPU between two looks at the verdicts."""
CURE = "lower optimizer.learning_rate, add schedule.warmup_epochs, or set gradient_clip_norm"


class Stop(Settings):
    """End the training; the checkpoint of the epoch before is kept."""

    name: Literal["stop"] = "stop"


class Skip(Settings):
    """Take the step back and go on with the next batch. Costs a copy of weights and optimiser state at every step."""

    name: Literal["skip"] = "skip"
    limit: PositiveInt = 10
    """Steps that may be taken back in the whole training; one more ends it."""


class Resume(Settings):
    """Do the epoch again from its beginning at a lower learning rate, which then holds to the end."""

    name: Literal["resume"] = "resume"
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """The learning rate is multiplied by it each time."""
    limit: PositiveInt = 3
    """Times in the whole training; one more ends it."""


NonFinite = Annotated[Stop | Skip | Resume, Field(discriminator="name")]


@dataclass
class Setbacks:
    """What became of a training so far; part of its state."""

    num_skipped: int = 0
    """Steps that were taken back."""
    num_resumed: int = 0
    """Epochs that were begun again."""
    rate_factor: float = 1.0
    """What the learning rate is multiplied by since."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)


class NonFiniteError(TrainingError):
    """A loss or gradient is NaN or infinite."""


@runtime_checkable
class Watched(Protocol):
    """What is watched: the parts of a `TrainingState` that a step changes."""

    @property
    def network(self) -> nn.Module: ...
    @property
    def objective(self) -> nn.Module: ...
    @property
    def average(self) -> nn.Module | None: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def scaler(self) -> torch.amp.GradScaler: ...
    @property
    def setbacks(self) -> Setbacks: ...


class _Noted(NamedTuple):
    """One step since the last look."""

    step: int
    images: IndexArray
    values: Tensor
    """Hard and soft loss, the gradients' norm, and the weights' where it decides whether a step is taken back."""


@final
class Watch:
    """Over one training for one epoch: `before` and `after` around each step, `look` before anything is kept."""

    def __init__(self, state: Watched, policy: Stop | Skip | Resume, *, epoch: int, ranks: Ranks = ALONE) -> None:
        self._state, self._policy, self._epoch, self._ranks = state, policy, epoch, ranks
        self._noted: list[_Noted] = []
        self._last_finite: tuple[int, list[float]] | None = None
        self._saved = _Saved(state) if isinstance(policy, Resume) else None
        device = next(state.network.parameters()).device
        self._steps_per_look = 1 if device.type == "cpu" and ranks == ALONE else STEPS_PER_LOOK
        self.is_set_back = False
        """Whether the state is at the beginning of the epoch again, for another try."""
        self.num_images_skipped = 0
        """Images of this epoch whose steps were taken back, as of the last look."""

    def num_kept(self, num_images: int) -> int:
        """Of so many images of this epoch those whose steps count; at least one, to divide by."""
        return max(num_images - self.num_images_skipped, 1)

    def before(self) -> None:
        """Remember what the step may spoil, where it may have to be taken back."""
        if isinstance(self._policy, Skip):
            self._saved = _Saved(self._state)

    def after(self, step: int, images: IndexArray, terms: LossTerms) -> LossTerms:
        """Judge a step; the terms come back, or zeros for a step that was taken back.

        Raises:
            NonFiniteError: something is not finite and the policy allows it no more. On a GPU within 100 steps.
        """
        weights = _norm(self._weights()) if isinstance(self._policy, Skip) else torch.zeros_like(terms.hard)
        values = torch.stack([terms.hard, terms.soft, self._gradient_norm(terms.hard), weights]).float()
        if self._ranks != ALONE and isinstance(self._policy, Skip):
            summed(values)  # what one rank takes back, all do
        self._noted.append(_Noted(step, images, values))
        kept = terms
        if isinstance(self._policy, Skip):
            assert self._saved is not None
            is_finite = values.isfinite().all()
            self._saved.restore_unless_(is_finite)
            kept = LossTerms(*(torch.where(is_finite, term, torch.zeros_like(term)) for term in terms))
        if len(self._noted) >= self._steps_per_look:
            self.look()
        return kept

    def look(self) -> None:
        """Read the verdicts of the steps since the last look.

        Raises:
            NonFiniteError: as `after` does.
        """
        noted, self._noted = self._noted, []
        if not noted:
            return
        values = torch.stack([each.values for each in noted])
        if self._ranks != ALONE and not isinstance(self._policy, Skip):
            summed(values)
        for each, row in zip(noted, values.tolist(), strict=True):
            if all(math.isfinite(value) for value in row):
                self._last_finite = each.step, row
            elif not self._is_dealt_with(each):
                raise NonFiniteError(self._describe(each, row))
            elif self.is_set_back:
                return

    def _is_dealt_with(self, each: _Noted) -> bool:
        setbacks = self._state.setbacks
        match self._policy:
            case Skip(limit=limit):
                setbacks.num_skipped += 1
                self.num_images_skipped += len(each.images)
                return setbacks.num_skipped <= limit
            case Resume(limit=limit, factor=factor):
                assert self._saved is not None
                self._saved.restore_unless_(torch.zeros((), dtype=torch.bool))
                setbacks.num_resumed += 1
                setbacks.rate_factor *= factor
                self.is_set_back = True
                return setbacks.num_resumed <= limit
            case _:
                return False

    def _weights(self) -> list[Tensor]:
        return [p.detach() for part in (self._state.network, self._state.objective) for p in part.parameters()]

    def _gradient_norm(self, like: Tensor) -> Tensor:
        """Of the gradients that the step used.

        Zero where a scaler looks after them, which expects infinities; and on a GPU, where the kernels would cost more
        than they tell: of weights that such gradients spoil, the next step's loss is not finite either.
        """
        if self._state.scaler.is_enabled() or (like.is_cuda and not isinstance(self._policy, Skip)):
            return torch.zeros_like(like)
        gradients = [p.grad for part in (self._state.network, self._state.objective) for p in part.parameters()]
        return _norm([gradient for gradient in gradients if gradient is not None])

    def _describe(self, each: _Noted, row: list[float]) -> str:
        hard, soft, norm, _ = row
        what = f"the loss became {hard + soft}" if not math.isfinite(hard + soft) else f"the gradient's norm is {norm}"
        named = ", ".join(map(str, each.images[:MOST_NAMED].tolist()))
        more = f" and {len(each.images) - MOST_NAMED} more" if len(each.images) > MOST_NAMED else ""
        before = "no step of this epoch before it was finite"
        if self._last_finite is not None:
            step, (hard, soft, norm, _) = self._last_finite
            before = f"the last finite loss was {hard + soft:.6g}, with a gradient of norm {norm:.4g}, at step {step}"
        return (
            f"{what} in step {each.step} of epoch {self._epoch} (train images {named}{more}); {before}; {self._cure()}"
        )

    def _cure(self) -> str:
        match self._policy:
            case Skip(limit=limit):
                return f"{limit} steps were taken back already, non_finite.limit allows no more; {CURE}"
            case Resume(limit=limit):
                return f"the epoch was begun again {limit} times, non_finite.limit allows no more; {CURE}"
            case _:
                return f"{CURE}, or set non_finite to skip or resume; the checkpoint of the epoch before is kept"


def _norm(tensors: list[Tensor]) -> Tensor:
    """One number that is finite only if all are; a few kernels for all of them."""
    return nn.utils.get_total_norm(tensors)


@final
class _Saved:
    """The tensors of a training as they were."""

    def __init__(self, state: Watched) -> None:
        self._state = state
        self._tensors = {id(tensor): tensor.detach().clone() for tensor in changed_by_a_step(state)}
        self._scaler = state.scaler.state_dict()

    @torch.no_grad()
    def restore_unless_(self, is_fine: Tensor) -> None:
        """Put them back, in place: a recorded step goes on using them. Decided on the device, nothing waits."""
        for tensor in changed_by_a_step(self._state):
            before = self._tensors.get(id(tensor))
            # An optimiser makes its buffers in its first step; zeros are as none.
            old = torch.zeros_like(tensor) if before is None else before
            tensor.copy_(torch.where(is_fine.to(tensor.device), tensor, old))
        if not is_fine.is_cuda and not bool(is_fine) and self._scaler:
            self._state.scaler.load_state_dict(self._scaler)


def changed_by_a_step(state: Watched) -> Iterator[Tensor]:
    """All tensors of a training that a step may change."""
    for part in (state.network, state.objective, state.average):
        if part is not None:
            yield from part.parameters()
            yield from part.buffers()
    for values in state.optimizer.state.values():
        yield from (value for value in values.values() if isinstance(value, Tensor))


def require_finite(state: Watched, *, epoch: int) -> None:
    """Refuse to keep a state that holds NaN, or infinity where nothing but training can have put it.

    Raises:
        NonFiniteError: it does; says where.
    """
    name = _spoiled(state)
    if name is not None:
        raise NonFiniteError(
            f"after epoch {epoch} {name} is not finite although every loss was; {CURE}; the checkpoint of the epoch "
            "before is kept"
        )


def _spoiled(state: Watched) -> str | None:
    """The first spoiled tensor by name; one look at the device for all of them."""
    checks: list[tuple[str, Tensor]] = []
    for part, title in ((state.network, "weight"), (state.objective, "weight of the loss"), (state.average, "average")):
        if part is not None:
            checks += [(f"the {title} {name}", value.isfinite().all()) for name, value in part.named_parameters()]
            # Some networks keep masks of -inf among their buffers.
            checks += [(f"the buffer {name}", ~value.isnan().any()) for name, value in part.named_buffers()]
    for values in state.optimizer.state.values():
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        checks += [(f"the optimiser's {key}", value.isfinite().all()) for key, value in tensors.items()]
    device = next(state.network.parameters()).device
    verdicts: list[bool] = torch.stack([verdict.to(device) for _, verdict in checks]).tolist()
    return next((name for (name, _), good in zip(checks, verdicts, strict=True) if not good), None)
