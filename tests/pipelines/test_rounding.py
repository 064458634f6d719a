"""A student trains on with the rounding of its 8-bit file, and the file is judged like any other form."""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import load_card, load_model
from compress.checkpoint import CheckpointFolder
from compress.errors import ArtifactError, ModelError, ParamsError
from compress.files import read_json
from compress.quantize.qat_artifact import load_quantization_aware
from compress.ranks import Ranks
from compress.runtime import load_predictor
from pipelines import distill, evaluate, export, prepare, replay, select, side_by_side, teacher, teacher_logits, verify
from pipelines.lineage import DIFFERS, read_facts
from tests.pipelines.project import make_project, params, write_params
from tests.pipelines.test_forms import clock

FORM = "int8_qat"
ROUNDING = {"epochs": 2, "num_calibration_images": 16}


def values(root: Path, **rounding: Any) -> dict[str, Any]:
    """One student of two seeds that is worth quantising: its weights are most of its file."""
    found = params(root / "pictures")
    row = found["students"]["distilled"]["with_kd"]
    row |= {"model": {"source": "cnn", "channels": [8, 32]}, "quantization_aware": ROUNDING | rounding}
    found["students"] = {"distilled": {"with_kd": row}}
    found["export"]["forms"] = {"candidates": [{"name": "int8_static"}], "threads": 1, "max_drop": 0.5}
    return found


@pytest.fixture(scope="module", autouse=True)
def patched() -> Iterator[pytest.MonkeyPatch]:
    """Tracking has tests of its own, and the test decides what a timing says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_TRACKING", "off")
        clock(patch, {FORM: 0.4, "int8_static": 0.5})
        yield patch


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose teacher has answered."""
    root = make_project(tmp_path_factory.mktemp("taught"))
    write_params(root, values(root))
    prepare.run(root)
    teacher.run(root)
    teacher_logits.run(root)
    return root


@pytest.fixture(scope="module")
def finished(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages have run."""
    root = Path(shutil.copytree(taught, tmp_path_factory.mktemp("finished") / "project"))
    distill.run(root, "with_kd")
    for name in ("teacher", "with_kd"):
        export.run(root, name)
        evaluate.run(root, name)
    select.run(root)
    return root


@pytest.fixture
def project(taught: Path, tmp_path: Path) -> Path:
    """A copy of the project before the student trains."""
    return Path(shutil.copytree(taught, tmp_path / "project"))


def rounded(root: Path, seed: int = 0) -> Path:
    return root / "models" / "with_kd" / f"seed_{seed}" / "quantization_aware"


def sha256_of_networks(root: Path) -> dict[str, str]:
    cards = (root / "models" / "with_kd").glob("**/card.json")
    return {str(card.parent.relative_to(root)): load_card(card.parent).saved_sha256 for card in cards}


def test_every_seed_leaves_a_network_that_rounds(finished: Path) -> None:
    for summary in read_json(finished / "results" / "with_kd" / "training.json", made_by="distill")["seeds"]:
        network, card = load_quantization_aware(rounded(finished, summary["seed"]))
        assert network.settings.ranges == "learned"
        told = summary["quantization_aware"]
        assert (card.seed, card.fingerprint) == (summary["seed"], told["fingerprint"])
        assert card.fingerprint != summary["fingerprint"]
        assert told["last"]["epoch"] == ROUNDING["epochs"]
        assert card.training is not None
        assert card.training["method"] == {**card.training["method"], "name": "kd"}, "its teacher's answers, again"
        assert card.training["optimizer"]["learning_rate"] == pytest.approx(0.005)
        best = load_card(rounded(finished, summary["seed"]).with_name("best"))
        assert card.lineage == {**best.lineage, "made_of_sha256": best.saved_sha256}


def test_its_file_is_a_form_beside_the_others_and_is_shipped_where_it_is_the_fastest(finished: Path) -> None:
    table = read_json(finished / "metrics" / "students.json", made_by="select")
    assert {row["form"] for row in table["students"] if row["name"] == "with_kd"} == {"float32", "int8_static", FORM}
    assert (table["champion"], table["form"]) == ("with_kd", FORM)
    deployed = load_predictor(finished / "deploy" / "model.onnx")
    assert deployed.metadata["form"] == FORM
    exported = read_json(finished / "exports" / "with_kd" / "export.json", made_by="export")
    (entry,) = [form for form in exported["forms"] if form["form"] == FORM]
    assert entry["measured"]["num_calibration_images"] == ROUNDING["num_calibration_images"]
    assert entry["measured"]["fusion"]["num_integer"] == entry["measured"]["fusion"]["num_layers"] == 3
    assert entry["parity"]["relative_error"] < 0.05, "compared with the network that rounds, not with the other"
    assert entry["seed"] == exported["shipped"]["seed"]


def test_the_deployed_file_is_proved_and_leads_back_to_what_it_was_made_of(finished: Path) -> None:
    verify.run(finished / "deploy", manifest_sha256=None, public_key=None, signature=None)
    facts = {fact.name: fact for fact in read_facts(finished, finished / "deploy" / "model.onnx")}
    assert [fact.name for fact in facts.values() if fact.state == DIFFERS] == []
    for name in ("fingerprint", "weights_sha256", "made_of_sha256", "teacher_logits_sha256", "params"):
        assert facts[name].state == "match", name


def test_no_setting_of_forms_is_needed(finished: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished, tmp_path / "project"))
    changed = values(project)
    del changed["export"]["forms"]
    write_params(project, changed)
    export.run(project, "with_kd")
    forms = read_json(project / "exports" / "with_kd" / "forms.json", made_by="export")["forms"]
    assert [form["form"] for form in forms] == ["float32", FORM]


def test_a_file_that_is_not_worth_having_does_not_stay(finished: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished, tmp_path / "project"))
    changed = values(project)
    changed["export"]["forms"] |= {"candidates": [], "min_speedup": 100.0}
    write_params(project, changed)
    export.run(project, "with_kd")
    assert not list((project / "exports").glob(f"**/{FORM}.onnx"))
    forms = read_json(project / "exports" / "with_kd" / "forms.json", made_by="export")["forms"]
    assert "100 needed" in forms[1]["reason"]


def test_replayed_rounding_is_the_same_bytes(finished: Path) -> None:
    outcome = replay.replay(finished, rounded(finished, seed=1))
    assert outcome.differences == ()
    assert outcome.found == outcome.expected


def test_it_goes_on_after_a_kill_to_the_same_bytes(
    finished: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = CheckpointFolder.save

    def killed_after_the_first_epoch_of_rounding(folder: CheckpointFolder, epoch: int, state: dict[str, Any]) -> None:
        save(folder, epoch, state)
        saved.append(epoch)
        if len(saved) == 5:  # two epochs of each seed before
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", killed_after_the_first_epoch_of_rounding)
        with pytest.raises(KeyboardInterrupt):
            distill.run(project, "with_kd")
    assert saved == [1, 2, 1, 2, 1]
    monkeypatch.setattr(CheckpointFolder, "save", lambda *arguments: (saved.append(arguments[1]), save(*arguments)))
    distill.run(project, "with_kd")
    assert saved[5:] == [2, 1, 2], "nothing is trained twice"
    assert sha256_of_networks(project) == sha256_of_networks(finished)


def test_side_by_side_it_comes_out_as_alone(finished: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side_by_side.run_all(project)
    capsys.readouterr()
    distill.run(project, "with_kd")
    assert capsys.readouterr().out.count("continuing after epoch 2/2") == 4, "two trainings of two seeds"
    assert sha256_of_networks(project) == sha256_of_networks(finished)
    side_by_side.run_all(project)
    assert "0 of 1 students to train" in capsys.readouterr().out


def test_other_rounding_trains_only_that_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill.run(project, "with_kd")
    write_params(project, values(project, reduce_range=True))
    capsys.readouterr()
    distill.run(project, "with_kd")
    assert capsys.readouterr().out.count("continuing after epoch 2/2") == 2
    assert load_quantization_aware(rounded(project))[0].settings.reduce_range


def test_methods_on_features_are_refused_before_anything_runs(project: Path) -> None:
    changed = values(project)
    row = changed["students"].pop("distilled")["with_kd"]
    changed["students"]["composed"] = {"with_crd": row | {"method": {"name": "crd"}}}
    write_params(project, changed)
    with pytest.raises(ParamsError, match="with_crd: quantization_aware trains by a method on logits, and crd"):
        distill.run(project, "with_crd")


def test_a_network_that_cannot_round_is_refused_before_it_trains(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = values(project)
    changed["students"]["distilled"]["with_kd"]["model"] = {"source": "torchvision", "name": "mobilenet_v3_small"}
    write_params(project, changed)
    with pytest.raises(ModelError, match="quantisation-aware training knows convolutional networks"):
        distill.run(project, "with_kd")
    assert "epoch" not in capsys.readouterr().out


def test_several_ranks_are_told_how_to_train_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "ranks_of_stage", lambda: nullcontext(Ranks(rank=0, num_ranks=2)))
    with pytest.raises(ParamsError, match="run `compress distill --all` under torchrun"):
        distill.run(project, "with_kd")


def test_a_network_of_the_other_kind_is_refused_by_name(finished: Path) -> None:
    with pytest.raises(ArtifactError, match="does not round"):
        load_quantization_aware(rounded(finished).with_name("best"))
    with pytest.raises(ArtifactError, match="cannot be rebuilt"):
        load_model(rounded(finished))
