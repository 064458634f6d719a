"""What was measured of a form, and whether it is worth having, in words."""

from __future__ import annotations

from compress.quantize import AnyQuantizer
from compress.quantize.fusion import Fusion
from compress.quantize.saturation import Saturation
from compress.quantize.settings import Budget, Target
from compress.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings

FLOAT32 = "float32"
"""The form that every other is compared with."""


class Measured(Settings):
    """What was found out about one form's file."""

    size_bytes: PositiveInt
    size_ratio: PositiveFloat
    """Size as a share of float32's."""
    sha256: str
    accuracy_validation: Fraction
    """Top-1."""
    drop: float
    """Top-1 in float32 minus that; negative for a gain."""
    drop_standard_error: NonNegativeFloat
    """Of the drop, over validation images: the two files answer the same ones."""
    agreement: Fraction
    """Share of validation images answered as in float32."""
    batch_error: NonNegativeFloat
    """Largest difference of a logit between an image alone and in a batch, as a fraction of the largest logit: far
    from 0 for dynamic forms."""
    latency_ms_p50: NonNegativeFloat
    """Median time of a call of the target's batch size."""
    latency_ms_p95: NonNegativeFloat
    speedup: PositiveFloat
    """Median latency of float32, measured in turns with it, over this one's."""
    num_calibration_images: NonNegativeInt
    excluded_nodes: tuple[str, ...] = ()
    """Layers that were left in float32."""
    fusion: Fusion
    """Which layers run as integers."""
    saturation: Saturation | None = None
    """What it answers on x86 without VNNI; None for forms that were out already or have nothing that can overflow."""


class FormResult(Settings):
    """One form and what became of it."""

    form: str
    quantizer: AnyQuantizer | None
    """What made it; None for float32 and for files made elsewhere."""
    file: str | None
    """Its name in the output folder; None for forms that are not kept."""
    is_kept: bool
    reason: str
    """Why, with numbers."""
    measured: Measured | None
    """None where the form could not be made."""


def violations(measured: Measured, reference: Measured, budget: Budget) -> list[str]:
    """Everything that speaks against a form, in words; empty for one that is worth having.

    Without `saturation`, only what needs no knowledge of it.
    """
    broken: list[str] = []
    if measured.size_bytes >= reference.size_bytes:
        broken.append(f"not smaller: {measured.size_bytes} bytes, float32 has {reference.size_bytes}")
    if measured.speedup < budget.min_speedup:
        broken.append(
            f"{measured.speedup:.4g} times as fast, {budget.min_speedup:.4g} needed{_float_layers(measured.fusion)}"
        )
    if budget.target.has_vnni is not False and measured.drop > budget.max_drop:
        broken.append(_drop(measured.drop, measured, budget))
    return [*broken, *_without_vnni(measured, budget)]


def why_kept(measured: Measured, reference: Measured, target: Target, *, machine_has_vnni: bool | None) -> str:
    """For a form without violations."""
    told = (
        f"{measured.speedup:.3g} times as fast ({measured.latency_ms_p50:.3g} ms, float32 "
        f"{reference.latency_ms_p50:.3g} ms), {measured.size_ratio:.0%} of the size, loses {measured.drop:.4f} +- "
        f"{measured.drop_standard_error:.4f} of accuracy"
    )
    if measured.saturation is not None and measured.saturation.num_layers_at_risk:
        told += f"; without VNNI it loses {measured.saturation.drop:.4f}"
    if measured.fusion.num_integer and target.has_vnni is False and machine_has_vnni:
        told += "; timed on a processor with VNNI, which the target lacks: time it there too"
    if measured.fusion.num_integer and target.has_vnni is True and machine_has_vnni is False:
        told += "; measured on a processor without VNNI, which the target has"
    return told


def fastest(results: list[FormResult]) -> FormResult:
    """The kept form with the lowest median latency; float32 where no other is kept."""
    kept = [(result.measured.latency_ms_p50, result) for result in results if result.is_kept and result.measured]
    others = [each for each in kept if each[1].form != FLOAT32]
    return min(others or kept, key=lambda each: each[0])[1]


def _float_layers(fused: Fusion) -> str:
    """A likely reason for a slow form."""
    num_float = fused.num_layers - fused.num_integer
    return f" ({num_float} of {fused.num_layers} quantised layers run in float)" if num_float else ""


def _without_vnni(measured: Measured, budget: Budget) -> list[str]:
    saturation = measured.saturation
    if saturation is None or budget.target.has_vnni is True or saturation.drop <= budget.max_drop:
        return []
    remedy = (
        "use reduce_range or u8u8, or declare target.has_vnni: true if every processor that runs it has VNNI"
        if budget.target.has_vnni == "auto"
        else "use reduce_range or u8u8"
    )
    return [
        f"on x86 without VNNI sums overflow in {saturation.num_layers_at_risk} of {saturation.num_layers} layers: "
        f"{_drop(saturation.drop, measured, budget)}; {remedy}"
    ]


def _drop(drop: float, measured: Measured, budget: Budget) -> str:
    return (
        f"loses {drop:.4f} +- {measured.drop_standard_error:.4f} of validation accuracy, {budget.max_drop:.4g} allowed"
    )
