"""A saved model comes back bit for bit, or with an error that says what is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.artifact import ModelCard, load_card, load_model, save_model
from compress.errors import ArtifactError, ModelError
from compress.models import Cifar, Cnn, Network, Source, Statistics, Timm, Torchvision, build_network

STATISTICS = Statistics(mean=(0.1, 0.2, 0.3), std=(0.4, 1 / 3, 0.6))
CLASSES = ("cat", "dog", "häher")
SOURCES = [Cifar(name="ShuffleV2"), Cnn(), Timm(name="test_vit"), Torchvision(name="squeezenet1_1")]


def build(source: Source, *, seed: int = 0) -> Network:
    """A network whose running statistics differ from those of a fresh one."""
    torch.manual_seed(seed)
    network = build_network(source, num_classes=len(CLASSES), image_size=(32, 32), statistics=STATISTICS)
    network(torch.rand(4, 3, 32, 32))
    return network


def describe(source: Source, **changes: object) -> ModelCard:
    values: dict[str, object] = {
        "architecture": source,
        "classes": CLASSES,
        "height": 32,
        "width": 32,
        "mean": STATISTICS.mean,
        "std": STATISTICS.std,
        "preprocessing": {"resize": {"interpolation": "bilinear"}},
        "training": {"epochs": 3},
        "seed": 0,
        "epoch": 3,
        "metrics": {"validation_accuracy": 0.75},
        "num_parameters": 1,
        "flops": 2,
        "fingerprint": "ab" * 32,
        "lineage": {"data": "cd" * 32},
    }
    return ModelCard.model_validate({**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", build(Cnn()), describe(Cnn()))
    return tmp_path / "model"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_loaded_model_computes_bit_identical_logits(tmp_path: Path, source: Source) -> None:
    network = build(source)
    written = save_model(tmp_path / "model", network, describe(source))
    loaded, card = load_model(tmp_path / "model")
    assert card == written
    assert card.model_copy(update={"weights_sha256": None, "card_sha256": None}) == describe(source)
    assert not any(module.training for module in loaded.modules())
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), network.eval()(images))


def test_channels_last_network_is_saved_as_any_other(tmp_path: Path) -> None:
    network = build(Cnn())
    save_model(tmp_path / "plain", network, describe(Cnn()))
    save_model(tmp_path / "last", network.to(memory_format=torch.channels_last), describe(Cnn()))
    assert (tmp_path / "plain/weights.safetensors").read_bytes() == (tmp_path / "last/weights.safetensors").read_bytes()


def test_same_model_gives_the_same_bytes_in_another_process(folder: Path, tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from compress.artifact import load_model, save_model
        network, card = load_model(Path(sys.argv[1]))
        save_model(Path(sys.argv[2]), network, card)
    """
    environment = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder), str(tmp_path / "again")]
    subprocess.run(command, check=True, env=environment)
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "weights.safetensors"]
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_card_is_readable_text_without_paths(folder: Path) -> None:
    text = (folder / "card.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert '"häher"' in text
    assert str(folder) not in text
    assert json.loads(text)["architecture"]["channels"] == [8, 16, 32]
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_saved_model_serves_as_a_checkpoint_with_its_own_statistics(folder: Path) -> None:
    data_statistics = Statistics(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    source = Cnn(checkpoint=folder)
    network = build_network(source, num_classes=3, image_size=(32, 32), statistics=data_statistics).eval()
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), load_model(folder)[0](images))
    assert network.statistics == STATISTICS
    with pytest.raises(ModelError, match=r"model has 3 classes, the data has 10"):
        build_network(source, num_classes=10, image_size=(32, 32), statistics=data_statistics)


def test_changed_weights_are_no_checkpoint_either(folder: Path) -> None:
    save_model(folder.parent / "other", build(Cnn(), seed=1), describe(Cnn()))
    (folder.parent / "other/weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"not the file its card describes"):
        build_network(Cnn(checkpoint=folder), num_classes=3, image_size=(32, 32), statistics=STATISTICS)


@pytest.mark.parametrize(
    "source",
    [
        Timm(name="test_vit", pretrained=True),
        Timm(name="test_vit", folder=Path("hub")),
        Torchvision(name="resnet18", weights="DEFAULT"),
        Cnn(checkpoint=Path("weights.pth")),
        Cnn(statistics=STATISTICS),
    ],
)
def test_card_refuses_an_architecture_that_would_fetch_weights(source: Source) -> None:
    with pytest.raises(ValueError, match=r"pass source\.architecture\(\)"):
        describe(source)


def test_card_with_other_statistics_than_the_network_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its card says"):
        save_model(tmp_path / "model", build(Cnn()), describe(Cnn(), mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_card_refuses_numbers_that_json_has_not(value: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        describe(Cnn(), metrics={"validation_accuracy": value})


def damage_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def edit_card(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "card.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "card_sha256": None, **changes}))

    return edit


def flip_a_number(folder: Path) -> None:
    path = folder / "card.json"
    path.write_text(path.read_text().replace('"num_parameters": ', '"num_parameters": 1', 1))


def set_card(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "card.json").write_text(text)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "card.json").unlink(), r"no model in .*model: card\.json is missing; run the stage"),
        (
            lambda folder: (folder / "weights.safetensors").unlink(),
            r"no weights in .*weights\.safetensors cannot be read",
        ),
        (damage_weights, r"weights\.safetensors is not the file its card describes"),
        (cut_weights, r"weights\.safetensors is not the file its card describes"),
        (set_card(""), r"card\.json is not a model card of this version \(its text"),
        (set_card("{}"), r"not a model card of this version \(architecture: Field required"),
        (flip_a_number, r"card\.json was changed after it was written: its SHA-256 does not fit"),
        (edit_card(format_version=2), r"not a model card of this version \(format_version"),
        (edit_card(weights_sha256="../evil"), r"not a model card of this version \(weights_sha256"),
        (edit_card(classes=["cat", "dog"]), r"cannot be rebuilt \(Error.* in loading state_dict"),
        (edit_card(architecture={"source": "cnn", "channels": [8, 16]}), r"cannot be rebuilt"),
        (edit_card(architecture={"source": "timm", "name": "resnet19"}), r"cannot be rebuilt \(timm has no model"),
        (edit_card(architecture={"source": "timm", "name": "resnet18", "pretrained": True}), r"without its weights"),
    ],
)
def test_damaged_folder_is_named_with_what_to_do(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_model(folder)
    assert "run" in str(caught.value)


def test_writer_killed_between_the_files_is_found_out(folder: Path) -> None:
    """The weights are already new, the card still old."""
    other = folder.parent / "other"
    save_model(other, build(Cnn(), seed=1), describe(Cnn()))
    (other / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        load_model(folder)


def test_leftovers_of_a_killed_writer_disappear(folder: Path) -> None:
    for name in ("weights.safetensors", "card.json"):
        (folder / f".{name}.partial").write_bytes(b"half")
    save_model(folder, build(Cnn()), describe(Cnn()))
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "weights.safetensors"]
    load_model(folder)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"cannot write the model to .*file"):
        save_model(tmp_path / "file", build(Cnn()), describe(Cnn()))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_card_is_read_without_the_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    assert load_card(folder).classes == CLASSES
