"""Counterparts of the authors' losses that need no teacher, by method and state of their code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.methods.base import shares
from compress.methods.cross_entropy import CrossEntropy
from compress.methods.label_smoothing import LabelSmoothing
from compress.methods.tf_kd_reg import TfKDReg
from compress.methods.tf_nkd import TfNKD, label_terms, main_labels
from compress.methods.uskd import EPSILON, USKD, non_target_term, uskd_terms
from compress.methods.vectors.counterpart import (
    Batch,
    Counterpart,
    Hyper,
    NotCoveredError,
    Term,
    at_weight_one,
    hard,
    soft,
    total,
)
from compress.methods.vectors.file import as_tensor


def _cross_entropy(hyper: Hyper) -> Counterpart:
    return Counterpart(hard(CrossEntropy()))


def _smoothing_others(hyper: Hyper) -> Counterpart:
    hyper.expect("off_target", "eps/(K-1)")
    return Counterpart(hard(LabelSmoothing(smoothing=hyper.number("epsilon"), convention="others")))


def _smoothing_uniform(hyper: Hyper) -> Counterpart:
    hyper.expect("off_target", "eps/K")
    return Counterpart(hard(LabelSmoothing(smoothing=hyper.number("epsilon"), convention="uniform")))


def _tf_nkd(hyper: Hyper) -> Counterpart:
    method = TfNKD()
    return Counterpart(soft(method), at_weight_one(total(method)), {"ori_loss": hard(method)})


def _tf_nkd_soft_label(hyper: Hyper) -> Counterpart:
    hyper.expect("label", "soft_target")
    listed = hyper.pairs("top2")
    method = TfNKD()

    def of_listed(batch: Batch) -> Tensor:
        return label_terms(batch.student, listed, _shares_of(listed, batch))

    def loss(batch: Batch) -> Tensor:
        classes, class_shares = main_labels(batch.labels)
        if not torch.equal(class_shares, _shares_of(listed, batch)):
            raise NotCoveredError("top2 does not list the largest shares")
        tied = not torch.equal(classes, listed)  # both orders are right; the file has the authors'
        return of_listed(batch).sum() if tied else soft(method)(batch)

    parts: dict[str, Term] = {
        "ori_loss": hard(method),
        "loss_tf_nkd0": lambda batch: of_listed(batch)[0],
        "loss_tf_nkd1": lambda batch: of_listed(batch)[1],
    }
    return Counterpart(loss, components=parts, soft_labels=True, remark="second labels as the file lists them")


def _shares_of(classes: Tensor, batch: Batch) -> Tensor:
    if len(classes) != len(batch.labels) or classes.max() >= batch.labels.shape[1]:
        raise NotCoveredError("top2 does not fit the input")
    return batch.labels.gather(1, classes)


def _tf_kd_reg(hyper: Hyper) -> Counterpart:
    method = TfKDReg(
        form="code",
        temperature=hyper.number("T"),
        alpha=hyper.number("alpha"),
        multiplier=hyper.number("multiplier"),
        correct_probability=hyper.number("a", default=0.99),  # a constant in the authors' code
    )
    return Counterpart(total(method), remark="complete loss")


def _uskd_target_only(hyper: Hyper) -> Counterpart:
    alpha = hyper.number("alpha")
    if (hyper.number("beta"), hyper.number("mu")) != (0, 0):
        raise NotCoveredError("beta and mu must be 0 where there is no weak branch")

    def loss(batch: Batch) -> Tensor:
        return alpha * uskd_terms(batch.student, torch.zeros_like(batch.student), batch.labels).target

    return Counterpart(loss, at_weight_one(_with_cross_entropy(loss)), remark="our uskd")


def _uskd(hyper: Hyper) -> Counterpart:
    loss = _uskd_loss(_uskd_method(hyper), hyper.text("extra"))
    return Counterpart(loss, at_weight_one(_with_cross_entropy(loss)), remark="our uskd")


def _uskd_of_head(hyper: Hyper) -> Counterpart:
    method, layer = _uskd_method(hyper), hyper.text("extra")

    def loss(batch: Batch) -> Tensor:
        weak = _weak_logits(batch, layer)
        ours = uskd_terms(batch.student, weak, batch.labels)
        is_label = shares(batch.labels, batch.student) > 0
        ranking = _beside(F.softmax(weak, dim=1), is_label) + _beside(F.log_softmax(batch.student, dim=1), is_label)
        non_target = non_target_term(batch.student, ranking.detach(), is_label)
        return (
            method.target_weight * ours.target + method.non_target_weight * non_target + method.weak_weight * ours.weak
        )

    return Counterpart(
        loss,
        at_weight_one(_with_cross_entropy(loss)),
        remark="our uskd, but classes ranked by log q as there, which is a known deviation of ours",
        deviating=_uskd_loss(method, layer),
    )


def _uskd_of_head_soft_label(hyper: Hyper) -> Counterpart:
    hyper.expect("label", "soft_target")
    listed = hyper.pairs("top2")
    counterpart = _uskd_of_head(hyper)

    def loss(batch: Batch) -> Tensor:
        if not (_shares_of(listed, batch) > 0).all():
            raise NotCoveredError("our uskd takes no class of share zero for a label")
        return counterpart.loss(batch)

    return counterpart._replace(loss=loss, soft_labels=True)


def _uskd_method(hyper: Hyper) -> USKD:
    alpha, beta, mu = (hyper.number(name) for name in ("alpha", "beta", "mu"))
    return USKD(target_weight=alpha, non_target_weight=beta, weak_weight=mu)


def _uskd_loss(method: USKD, layer: str) -> Term:
    def loss(batch: Batch) -> Tensor:
        ours = uskd_terms(batch.student, _weak_logits(batch, layer), batch.labels)
        soft = method.target_weight * ours.target + method.non_target_weight * ours.non_target
        return soft + method.weak_weight * ours.weak

    return loss


def _with_cross_entropy(loss: Term) -> Term:
    return lambda batch: hard(CrossEntropy())(batch) + loss(batch)


def _weak_logits(batch: Batch, layer: str) -> Tensor:
    if layer not in batch.layers:
        raise NotCoveredError(f"extra has no {layer!r}")
    numbers = batch.layers[layer]
    feature, weight, bias = (
        as_tensor(values, batch.student.dtype) for values in (numbers.feat, numbers.fc_weight, numbers.fc_bias)
    )
    if (len(feature), len(bias)) != batch.student.shape:
        raise NotCoveredError(f"extra {layer!r} does not fit the input")
    return F.linear(feature, weight, bias)


def _beside(scores: Tensor, is_label: Tensor) -> Tensor:
    """Scores of the classes relative to what the labels leave, as the ranking takes them."""
    return scores / (1 - (scores * is_label).sum(dim=1, keepdim=True) + EPSILON)


TEACHER_FREE: dict[tuple[str, str], Callable[[Hyper], Counterpart]] = {
    ("CE", "pytorch"): _cross_entropy,
    ("label_smoothing", "tfkd_code"): _smoothing_others,
    ("label_smoothing", "uniform_pytorch"): _smoothing_uniform,
    ("tf-NKD", "iclr23"): _tf_nkd,
    ("tf-NKD", "iclr23_soft_label"): _tf_nkd_soft_label,
    ("tf-NKD", "uskd_iccv23_target_only"): _uskd_target_only,
    ("tf-NKD", "uskd_2023-03-24"): _uskd,
    ("tf-NKD", "uskd_iccv23_head"): _uskd_of_head,
    ("tf-NKD", "uskd_iccv23_head_soft_label"): _uskd_of_head_soft_label,
    ("Tf-KD_reg", "official"): _tf_kd_reg,
}
"""By the names in the file."""
