"""The recipes are what their papers say: every file is valid, and the published settings stand in it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from torchvision.models import get_model_weights, list_models

from compress.data.views import NoAugmentation, PadCropFlip
from compress.models import Cifar, ModelSource, Statistics, Timm, Torchvision, build_network
from compress.settings import Settings
from pipelines.distill import DistillParams
from pipelines.evaluate import EvaluateParams
from pipelines.export import ExportParams
from pipelines.params import load_params, read_yaml
from pipelines.prepare import PrepareParams
from pipelines.published import recipe_files
from pipelines.schema import AllParams
from pipelines.select import SelectParams
from pipelines.teacher import TeacherParams
from pipelines.teacher_logits import TeacherLogitsParams

ROOT = Path(__file__).parents[2]
RECIPES = recipe_files()
OF_PAPERS = [name for name in RECIPES if "/" in name]
LATER_STAGES = (DistillParams, ExportParams, EvaluateParams, SelectParams)
STAGES: tuple[type[Settings], ...] = (PrepareParams, TeacherParams, TeacherLogitsParams, *LATER_STAGES)
STATISTICS = Statistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CIFAR_100 = {"name": "cifar100", "folder": "downloads", "download": True}

# TTM, WTTM, WTTM+CRD and WTTM+ITRD, arXiv 2402.11148, tables 8 to 10: gamma / beta of each pair. Last column: DKD's
# beta, arXiv 2203.08679; two pairs have none.
SAME_KIND = """
| wrn_40_2 → wrn_16_2 | 0.1 / 101 | 0.1 / 4 | 0.1 / 4 | 0.3 / 6 | 6 |
| wrn_40_2 → wrn_40_1 | 0.1 / 76 | 0.1 / 3 | 0.1 / 2 | 0.4 / 0.08 | 6 |
| resnet56 → resnet20 | 0.3 / 7 | 0.3 / 1.5 | 0.3 / 0.6 | 0.5 / 5 | 2 |
| resnet110 → resnet20 | 0.2 / 8 | 0.2 / 2 | 0.2 / 1.4 | 0.3 / 1.5 | - |
| resnet110 → resnet32 | 0.1 / 33 | 0.1 / 1.5 | 0.2 / 1 | 0.3 / 0.015 | 2 |
| resnet32x4 → resnet8x4 | 0.1 / 100 | 0.1 / 3 | 0.2 / 4 | 0.1 / 1.5 | 8 |
| vgg13 → vgg8 | 0.1 / 45 | 0.1 / 2.25 | 0.2 / 4 | 0.1 / 0.5 | 6 |
"""
OTHER_KIND = """
| vgg13 → MobileNetV2 | 0.2 / 16 | 0.2 / 3 | 0.3 / 4.2 | 0.3 / 0.03 | 6 |
| ResNet50 → MobileNetV2 | 0.2 / 20 | 0.2 / 5 | 0.3 / 3 | 0.2 / 0.02 | 8 |
| ResNet50 → vgg8 | 0.1 / 70 | 0.1 / 2 | 0.1 / 3 | 0.1 / 1 | - |
| resnet32x4 → ShuffleV1 | 0.2 / 12 | 0.2 / 1.4 | 0.2 / 0.4 | 0.3 / 0.6 | 8 |
| resnet32x4 → ShuffleV2 | 0.4 / 40 | 0.4 / 16 | 0.4 / 12 | 0.4 / 0.8 | 8 |
| wrn_40_2 → ShuffleV1 | 0.3 / 8 | 0.3 / 3 | 0.2 / 0.16 | 0.1 / 0.2 | 8 |
"""
# ITRD without its mutual term (appendix A.5 there).
WITHOUT_MUTUAL = {("ResNet50", "MobileNetV2"), ("ResNet50", "vgg8"), ("wrn_40_2", "ShuffleV1")}
# Students that the CRD protocol gives a learning rate of 0.01; all others, and all teachers, have 0.05.
SLOW = ("MobileNetV2", "ShuffleV1", "ShuffleV2")

# Tf-KD, arXiv 1909.11723, params.json of each model: batch, then alpha, temperature and multiplier of both forms.
TF_KD: dict[str, tuple[int, tuple[float, float, float], tuple[float, float, float] | None]] = {
    "tfkd_mobilenetv2": (128, (0.95, 20, 1), (0.95, 40, 1)),
    "tfkd_shufflenetv2": (128, (0.95, 20, 1), (0.95, 10, 1)),
    "tfkd_resnet18": (128, (0.95, 6, 50), (0.1, 20, 100)),
    "tfkd_googlenet": (64, (0.4, 20, 50), (0.1, 40, 50)),
    "tfkd_densenet121": (100, (0.9, 20, 50), None),
    "tfkd_resnext29": (64, (0.9, 20, 100), None),
}


class Weights(NamedTuple):
    logits: list[tuple[float, float]]
    dkd_beta: float | None


def pairs(table: str) -> dict[tuple[str, str], Weights]:
    found: dict[tuple[str, str], Weights] = {}
    for line in table.strip().splitlines():
        networks, *cells, dkd = [cell.strip() for cell in line.strip("|").split("|")]
        teacher, student = networks.split(" → ")
        values = [[float(value) for value in cell.split("/")] for cell in cells]
        logits = [(gamma, beta) for gamma, beta in values]
        found[teacher, student] = Weights(logits, None if dkd == "-" else float(dkd))
    return found


PAIRS = {**pairs(SAME_KIND), **pairs(OTHER_KIND)}


@cache
def parsed(name: str) -> AllParams:
    return load_params(AllParams, RECIPES[name])


def recipe(name: str) -> dict[str, Any]:
    return parsed(name).model_dump(mode="json", exclude_none=True)


def of_pair(pair: tuple[str, str]) -> dict[str, Any]:
    return recipe(f"cifar100/{pair[0].lower()}_{pair[1].lower()}")


def methods(params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: row["method"] for group in params["students"].values() for name, row in group.items()}


def includes(whole: dict[str, Any], part: dict[str, Any]) -> bool:
    return {key: whole.get(key) for key in part} == part


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_stage_reads_every_recipe(stage: type[Settings], name: str) -> None:
    load_params(stage, RECIPES[name])


def test_all_thirteen_pairs_and_six_networks_are_there() -> None:
    assert {f"cifar100/{teacher.lower()}_{student.lower()}" for teacher, student in PAIRS} <= set(RECIPES)
    assert len(PAIRS) == 13
    assert {f"cifar100/{model}" for model in TF_KD} <= set(RECIPES)


def test_the_last_part_of_a_name_is_enough() -> None:
    last_parts = [name.rpartition("/")[2] for name in RECIPES]
    assert len(set(last_parts)) == len(last_parts)


@pytest.mark.parametrize("name", OF_PAPERS)
def test_a_header_says_what_how_published_and_ours(name: str) -> None:
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    header = [line for line in lines[: lines.index("")] if line.startswith("#")]
    assert header[0].startswith("# yaml-language-server: $schema=")
    assert (RECIPES[name].parent / header[0].partition("=")[2]).resolve() == ROOT / "params.schema.json"
    assert any(line.startswith(f"#   cp pipelines/recipes/{name}.yaml params.yaml") for line in header)
    text = " ".join(line.removeprefix("#").strip() for line in header)
    assert re.search(r"Published[:,( ]", text)
    assert re.search(r"Ours: (not yet run; needs (a GPU|GPUs)\. Cost in PFLOP|docs/results\.md)", text)
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("pair", PAIRS)
def test_gamma_and_beta_are_those_of_the_paper(pair: tuple[str, str]) -> None:
    found = methods(of_pair(pair))
    logits = [found["ttm"], found["wttm"], found["wttm_crd"]["logits"], found["wttm_itrd"]["logits"]]
    assert [method["name"] for method in logits] == ["ttm", "wttm", "wttm", "wttm"]
    assert [(method["gamma"], method["beta"]) for method in logits] == PAIRS[pair].logits


@pytest.mark.parametrize("pair", PAIRS)
def test_feature_methods_have_the_weights_of_their_papers(pair: tuple[str, str]) -> None:
    found = methods(of_pair(pair))
    crd = {"name": "crd", "weight": 0.8, "num_negatives": 16384, "temperature": 0.07, "momentum": 0.5}
    itrd = {
        "name": "itrd",
        "correlation_weight": 2.0,
        "mutual_weight": 0.0 if pair in WITHOUT_MUTUAL else 1.0,
        "alpha": 1.01 if pair in pairs(SAME_KIND) else 1.5,
    }
    assert includes(found["crd"], crd)
    assert includes(found["itrd"], itrd)
    assert found["wttm_crd"]["features"] == [found["crd"]]
    assert found["wttm_itrd"]["features"] == [found["itrd"]]


@pytest.mark.parametrize("pair", PAIRS)
def test_other_methods_have_their_published_settings(pair: tuple[str, str]) -> None:
    found = methods(of_pair(pair))
    assert includes(found["kd"], {"temperature": 4.0, "hard_weight": 0.1, "soft_weight": 0.9})
    assert includes(found["dist"], {"temperature": 4.0, "beta": 2.0, "gamma": 2.0})
    assert includes(found["nkd"], {"temperature": 3.0, "gamma": 3.5})
    assert includes(found["dkd"], {"temperature": 4.0, "alpha": 1.0, "warmup_epochs": 20})
    assert PAIRS[pair].dkd_beta in (None, found["dkd"]["beta"])
    assert found["baseline"]["name"] == "cross_entropy"


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_follows_the_protocol_of_crd(pair: tuple[str, str]) -> None:
    params = of_pair(pair)
    teacher, student = pair
    assert params["data"]["source"] == CIFAR_100
    assert params["views"]["augmentation"] == PadCropFlip(pad=4, flip=True).model_dump()
    assert params["views"]["views_per_image"] == PadCropFlip().num_views == 162
    assert params["teacher"]["model"] == {"source": "cifar", "name": teacher}
    rows = {name: row for group in params["students"].values() for name, row in group.items()}
    for name, row in {**rows, "teacher": params["teacher"]}.items():
        train = row["train"]
        rate = 0.01 if student in SLOW and name != "teacher" else 0.05
        sgd = {"name": "sgd", "learning_rate": rate, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4}
        assert (train["epochs"], train["batch_size"], train["optimizer"]) == (240, 64, sgd)
        assert includes(train["schedule"], {"name": "step", "milestones": [150, 180, 210], "decay": 0.1})
    for name, row in rows.items():
        assert row["model"] == {"source": "cifar", "name": student}
        assert len(row["seeds"]) == (5 if pair in pairs(SAME_KIND) and "itrd" not in name else 3)


@pytest.mark.parametrize("model", TF_KD)
def test_teacher_free_settings_are_those_of_the_repository(model: str) -> None:
    params = recipe(f"cifar100/{model}")
    batch, own, virtual = TF_KD[model]
    found, student = methods(params), params["students"]["self_taught"]["self"]
    assert student["teacher"] == "baseline"
    assert student["train"]["batch_size"] == batch
    keys = ("alpha", "temperature", "multiplier")
    assert includes(found["self"], {"name": "tf_kd_self", **dict(zip(keys, own, strict=True))})
    assert ("reg" in found) == (virtual is not None)
    if virtual is not None:
        code = {"name": "tf_kd_reg", "form": "code", "correct_probability": 0.99}
        assert includes(found["reg"], {**code, **dict(zip(keys, virtual, strict=True))})
        assert includes(found["label_smoothing"], {"smoothing": 0.1, "convention": "others"})


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("cifar100/tfkd_")])
def test_tf_kd_recipes_follow_its_protocol(name: str) -> None:
    params = recipe(name)
    augmentation = {"name": "pad_crop_flip_rotate", "pad": 4, "flip": True, "max_degrees": 15.0}
    assert params["views"]["augmentation"] == augmentation
    assert params["views"]["views_per_image"] == 200
    for group in params["students"].values():
        for row in group.values():
            train = row["train"]
            assert train["epochs"] == 200
            assert train["optimizer"]["learning_rate"] == pytest.approx(0.1 * train["batch_size"] / 128)
            schedule = {"name": "step", "milestones": [60, 120, 160], "decay": 0.2, "warmup_epochs": 1.0}
            assert train["schedule"] == schedule


def test_a_reversed_and_two_defective_teachers_are_there() -> None:
    teachers = {name: recipe(f"cifar100/tfkd_{name}")["teacher"] for name in ("reversed", "defective_resnet18")}
    assert teachers["reversed"]["model"]["name"] == "tfkd_mobilenetv2"
    assert teachers["defective_resnet18"]["train"]["epochs"] == 1
    stopped = recipe("cifar100/tfkd_defective_resnet50")["teacher"]
    assert (stopped["model"]["name"], stopped["train"]["epochs"]) == ("ResNet50", 50)


@pytest.mark.parametrize(
    ("name", "gamma", "beta", "dkd_beta"),
    [("resnet34_resnet18", 0.8, 1.6, 0.5), ("resnet50_mobilenetv1", 0.7, 3.5, 2.0)],
)
def test_imagenet_pairs_have_the_published_settings(name: str, gamma: float, beta: float, dkd_beta: float) -> None:
    params = recipe(f"imagenet/{name}")
    found = methods(params)
    assert includes(found["wttm"], {"gamma": gamma, "beta": beta})
    assert includes(found["dkd"], {"temperature": 1.0, "alpha": 1.0, "beta": dkd_beta, "warmup_epochs": 1})
    assert includes(found["dist"], {"temperature": 1.0, "beta": 2.0, "gamma": 2.0})
    assert includes(found["nkd"], {"temperature": 1.0, "gamma": 1.5})
    assert params["teacher"]["model"]["weights"] == "IMAGENET1K_V1"
    for row in params["students"]["distilled"].values():
        train = row["train"]
        assert (train["epochs"], train["batch_size"], train["optimizer"]["learning_rate"]) == (100, 256, 0.1)
        assert includes(train["schedule"], {"milestones": [30, 60, 90], "decay": 0.1})


def models_of(name: str) -> list[ModelSource]:
    params = parsed(name)
    return [row.model for row in params.students.rows.values()] + (
        [] if params.teacher is None else [params.teacher.model]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_networks_and_weights_exist_under_their_names(name: str) -> None:
    for model in models_of(name):
        if isinstance(model, Timm):
            assert timm.is_model(model.name), model.name
            assert not model.pretrained or get_pretrained_cfg(model.name).has_weights, model.name
        if isinstance(model, Torchvision):
            assert model.name in list_models(), model.name
            assert model.weights is None or model.weights in get_model_weights(model.name).__members__


SMALL = ("resnet20", "resnet8x4", "wrn_16_2", "MobileNetV2", "ShuffleV1", "ShuffleV2", "tfkd_mobilenetv2")


def test_small_students_can_be_built() -> None:
    named = {model for name in RECIPES if name.startswith("cifar100/") for model in models_of(name)}
    small = [model for model in named if isinstance(model, Cifar) and model.name in SMALL]
    assert {model.name for model in small} == set(SMALL)
    for model in small:
        network = build_network(model, num_classes=100, image_size=(32, 32), statistics=STATISTICS).eval()
        with torch.no_grad():
            assert network(torch.rand(1, 3, 32, 32)).shape == (1, 100)


@pytest.mark.parametrize("name", RECIPES)
def test_settings_that_cannot_go_together_do_not(name: str) -> None:
    """Mixed images have no stored answers; rows that need a teacher have one; views do not run out."""
    params = parsed(name)
    rows = params.students.rows
    if any(row.train.mixing is not None for row in rows.values()):
        assert params.teacher is None or not params.teacher_logits.enabled
    if params.teacher is None:
        assert "teacher" in read_yaml(RECIPES[name])
        assert not params.students.distilled
        assert not params.students.composed
    augmentation = params.views.augmentation
    assert not isinstance(augmentation, NoAugmentation)
    limit = augmentation.num_views
    assert limit is None or params.views.views_per_image <= limit or name == "digits"
