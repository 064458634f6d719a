"""Counterparts of the authors' losses on a teacher's logits, by method and state of their code."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from compress.methods.base import full_precision
from compress.methods.dist import DIST, centred
from compress.methods.dkd import DKD
from compress.methods.kd import KD
from compress.methods.logit_standardization import LogitStandardization
from compress.methods.nkd import NKD
from compress.methods.tf_kd_self import TfKDSelf
from compress.methods.ttm import TTM
from compress.methods.vectors.counterpart import Batch, Counterpart, Hyper, Term, at_weight_one, soft, total, unweighted
from compress.methods.wttm import WTTM, power_sum


def _kd(hyper: Hyper) -> Counterpart:
    temperature = hyper.number("T")
    return Counterpart(
        soft(KD(temperature=temperature, soft_weight=1.0)),
        lambda ce, weight: total(KD(temperature=temperature, hard_weight=ce, soft_weight=weight)),
    )


def _kd_with_entropy(hyper: Hyper) -> Counterpart:
    temperature, alpha = hyper.number("T"), hyper.number("alpha")

    def entropy(batch: Batch) -> Tensor:
        log_probabilities = F.log_softmax(full_precision(batch.teacher) / temperature, dim=1)
        return -(log_probabilities.exp() * log_probabilities).sum(dim=1).mean()

    def plus_entropy(term: Term, weight: float) -> Term:
        return lambda batch: term(batch) + weight * alpha * temperature**2 * entropy(batch)

    def in_loop(ce: float, weight: float) -> Term:
        method = KD(temperature=temperature, hard_weight=ce, soft_weight=weight * alpha)
        return plus_entropy(total(method), weight)

    loss = plus_entropy(soft(KD(temperature=temperature, soft_weight=alpha)), 1.0)
    return Counterpart(loss, in_loop, remark="they leave the teacher's entropy in: our value plus it")


def _kd_of_tf_kd(hyper: Hyper) -> Counterpart:
    method = TfKDSelf(temperature=hyper.number("T"), alpha=hyper.number("alpha"), multiplier=1.0)
    return Counterpart(total(method), remark="complete loss, averaged over elements: our tf_kd_self")


def _kd_of_torchdistill(hyper: Hyper) -> Counterpart:
    method = KD(temperature=hyper.number("T"), hard_weight=hyper.number("alpha"), soft_weight=hyper.number("beta"))
    return Counterpart(total(method), remark="complete loss; alpha weights the cross-entropy")


def _ttm(hyper: Hyper) -> Counterpart:
    gamma = hyper.number("gamma")
    hyper.leave("T")  # the inverse of gamma, rounded
    return Counterpart(
        soft(TTM(gamma=gamma, beta=1.0)), lambda ce, weight: unweighted(ce, total(TTM(gamma=gamma, beta=weight)))
    )


def _wttm(hyper: Hyper) -> Counterpart:
    gamma = hyper.number("gamma")
    hyper.leave("T")  # the inverse of gamma, rounded
    return Counterpart(
        soft(WTTM(gamma=gamma, beta=1.0)),
        lambda ce, weight: unweighted(ce, total(WTTM(gamma=gamma, beta=weight))),
        {"U": lambda batch: power_sum(full_precision(batch.teacher), gamma)},
    )


def _nkd(name_of_gamma: str, remark: str = "") -> Callable[[Hyper], Counterpart]:
    def counterpart(hyper: Hyper) -> Counterpart:
        method = NKD(temperature=hyper.number("T"), gamma=hyper.number(name_of_gamma))
        return Counterpart(soft(method), at_weight_one(total(method)), remark=remark)

    return counterpart


def _nkd_soft_label(hyper: Hyper) -> Counterpart:
    hyper.expect("label", "soft_target (argmax used)")
    return _nkd("gamma")(hyper)._replace(soft_labels=True)


def _tf_kd_self(hyper: Hyper) -> Counterpart:
    temperature, alpha, multiplier = hyper.number("T"), hyper.number("alpha"), hyper.number("multiplier")
    method = TfKDSelf(temperature=temperature, alpha=alpha, multiplier=multiplier)
    return Counterpart(total(method), remark="complete loss")


def _dkd(hyper: Hyper) -> Counterpart:
    method = DKD(temperature=hyper.number("T"), alpha=hyper.number("alpha"), beta=hyper.number("beta"))
    return Counterpart(soft(method), at_weight_one(total(method)))


def _dist(hyper: Hyper) -> Counterpart:
    tau, beta, gamma = hyper.number("tau"), hyper.number("beta"), hyper.number("gamma")

    def in_loop(ce: float, weight: float) -> Term:
        return unweighted(ce, total(DIST(temperature=tau, beta=weight * beta, gamma=weight * gamma)))

    return Counterpart(soft(DIST(temperature=tau, beta=beta, gamma=gamma)), in_loop)


def _dist_of_torchdistill(hyper: Hyper) -> Counterpart:
    tau, beta, gamma = hyper.number("tau"), hyper.number("beta"), hyper.number("gamma")

    def loss(batch: Batch) -> Tensor:
        prediction, target = (F.softmax(logits / tau, dim=1) for logits in (batch.student, batch.teacher))
        classes, images = (
            F.cosine_similarity(centred(prediction, dim), centred(target, dim), dim=dim).mean() for dim in (1, 0)
        )
        return tau**2 * (beta * (1 - classes) + gamma * (1 - images))

    remark = "they bound each norm by 1e-8, the method's authors and we add 1e-8 to their product"
    return Counterpart(loss, remark=remark, deviating=soft(DIST(temperature=tau, beta=beta, gamma=gamma)))


def _standardized_kd(hyper: Hyper) -> Counterpart:
    method = KD(temperature=hyper.number("T"), soft_weight=1.0)
    return Counterpart(soft(LogitStandardization(method=method)))


def _standardized_dkd(hyper: Hyper) -> Counterpart:
    method = DKD(temperature=hyper.number("T"), alpha=hyper.number("alpha"), beta=hyper.number("beta"))
    return Counterpart(soft(LogitStandardization(method=method)))


WITH_TEACHER: dict[tuple[str, str], Callable[[Hyper], Counterpart]] = {
    ("KD", "distillkl"): _kd,
    ("KD", "mdistiller"): _kd,
    ("KD", "repdistiller"): _kd,
    ("KD", "cls_kd"): _kd_with_entropy,
    ("KD", "tfkd_code"): _kd_of_tf_kd,
    ("KD", "torchdistill"): _kd_of_torchdistill,
    ("TTM", "official"): _ttm,
    ("WTTM", "official"): _wttm,
    ("NKD", "iccv23_head"): _nkd("gamma"),
    ("NKD", "iclr23_masked"): _nkd("alpha", "an older state that overflows; the same value"),
    ("NKD", "buggy_2023-07-17_to_2023-10-10"): _nkd("gamma", "they forgot to remove the label"),
    ("NKD", "iccv23_head_soft_label"): _nkd_soft_label,
    ("Tf-KD_self", "official"): _tf_kd_self,
    ("DKD", "mdistiller"): _dkd,
    ("DIST", "official"): _dist,
    ("DIST", "torchdistill"): _dist_of_torchdistill,
    ("logit_standardization", "kd"): _standardized_kd,
    ("logit_standardization", "dkd"): _standardized_dkd,
}
"""By the names in the file."""
