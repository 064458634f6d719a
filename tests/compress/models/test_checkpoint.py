"""Weights of other people load where they fit, and nothing they bring is ever run."""

from __future__ import annotations

import argparse
import copy
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from compress.errors import ModelError
from compress.models import Cifar, Cnn, Network, Source, Statistics, Torchvision, build_network
from compress.models.checkpoint import read_checkpoint

STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
NETWORK_BYTES = 400_000


def build(source: Source, *, num_classes: int = 100, replace_head: bool = False) -> Network:
    return build_network(
        source, num_classes=num_classes, image_size=(32, 32), statistics=STATISTICS, replace_head=replace_head
    )


def resnet8(checkpoint: Path) -> Cifar:
    return Cifar(name="resnet8", checkpoint=checkpoint)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The state dict of a resnet8 for 100 classes, with running statistics that no fresh network has."""
    torch.manual_seed(7)
    state = copy.deepcopy(build(Cifar(name="resnet8")).backbone.state_dict())
    return {name: tensor + 0.25 if "running" in name else tensor for name, tensor in state.items()}


def assert_loaded(network: Network, weights: dict[str, Tensor]) -> None:
    state = network.backbone.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


# What public code bases and their users write.


def test_public_distillation_checkpoint_loads(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"opt": argparse.Namespace(learning_rate=0.05, steps=[150, 180]), "epoch": 240, "model": weights}, path)
    assert_loaded(build(resnet8(path)), weights)


def test_file_of_old_torch_loads(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet8_best.pth"
    torch.save({"model": weights, "accuracy": torch.tensor(0.7)}, path, _use_new_zipfile_serialization=False)
    assert_loaded(build(resnet8(path)), weights)


def test_numpy_values_beside_the_weights_are_dropped(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "last.pt"
    torch.save(
        {"best_acc": np.float64(70.1), "curve": np.arange(3.0), "epoch": np.int64(3), "state_dict": weights}, path
    )
    assert_loaded(build(resnet8(path)), weights)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_ema", "state_dict_ema", "net", "model_state"])
def test_usual_keys_are_opened(tmp_path: Path, weights: dict[str, Tensor], key: str) -> None:
    path = tmp_path / "last.pth.tar"
    torch.save({"epoch": 3, key: OrderedDict(weights)}, path)
    assert_loaded(build(resnet8(path)), weights)


def test_averaged_weights_are_preferred(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "last.pth"
    raw = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"state_dict": raw, "state_dict_ema": weights}, path)
    assert_loaded(build(resnet8(path)), weights)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "model.", "module._orig_mod.model."])
def test_shared_prefixes_are_stripped(tmp_path: Path, weights: dict[str, Tensor], prefix: str) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({prefix + name: tensor for name, tensor in weights.items()}, path)
    assert_loaded(build(resnet8(path)), weights)


def test_torch_averaged_model_loads(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    fresh = build(Cifar(name="resnet8")).backbone
    fresh.load_state_dict(weights)
    path = tmp_path / "swa.pth"
    torch.save(torch.optim.swa_utils.AveragedModel(fresh).state_dict(), path)
    assert_loaded(build(resnet8(path)), weights)


def test_half_precision_weights_load_into_single_precision(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "half.bin"
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save(halves, path)
    network = build(resnet8(path))
    assert_loaded(network, {name: tensor.to(weights[name].dtype) for name, tensor in halves.items()})
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_missing_batch_counters_are_tolerated(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "old.pth"
    torch.save({name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}, path)
    assert_loaded(build(resnet8(path)), {name: tensor for name, tensor in weights.items() if "num_batches" not in name})


def test_statistics_of_the_source_win_over_those_of_the_data(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    own = Statistics(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
    assert build(Cifar(name="resnet8", checkpoint=path, statistics=own)).statistics == own
    assert build(resnet8(path)).statistics == STATISTICS


# What does not fit.


def test_teacher_with_other_class_count_names_both_sides(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet8.pth"
    torch.save({"model": weights}, path)
    with pytest.raises(ModelError, match=r"resnet8\.pth has 100 classes, the data has 10: a loaded network must"):
        build(resnet8(path), num_classes=10)


def test_training_start_gets_a_fresh_head_only(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet8.pth"
    torch.save({"model": weights}, path)
    torch.manual_seed(3)
    fresh = build(Cifar(name="resnet8"), num_classes=10).backbone.state_dict()
    torch.manual_seed(3)
    started = build(resnet8(path), num_classes=10, replace_head=True).backbone.state_dict()
    for name, tensor in started.items():
        assert torch.equal(tensor, fresh[name] if name.startswith("fc.") else weights[name]), name


def test_training_start_with_same_classes_keeps_the_head(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet8.pth"
    torch.save(weights, path)
    assert_loaded(build(resnet8(path), replace_head=True), weights)


def test_other_architecture_names_tensors_of_both_sides(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet8.pth"
    torch.save(weights, path)
    with pytest.raises(
        ModelError, match=r"not in it \(block1\.layer\.0.*not in the network \(layer1\.0\.conv1\.weight"
    ):
        build(Cifar(name="wrn_16_1", checkpoint=path))


@pytest.mark.parametrize("replace_head", [False, True])
def test_other_width_names_the_shapes(tmp_path: Path, replace_head: bool) -> None:
    path = tmp_path / "narrow.pth"
    torch.save(build(Cnn(channels=(8, 16))).state_dict(), path)
    with pytest.raises(ModelError, match=r"stages\.1\.0\.weight is \[16, 8, 3, 3\], not \[32, 8, 3, 3\]"):
        build(Cnn(channels=(8, 32), checkpoint=path), replace_head=replace_head)


def test_nothing_is_loaded_from_weights_that_do_not_fit(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet8.pth"
    torch.save({**weights, "bn1.bias": torch.full((16,), float("nan"))}, path)
    with pytest.raises(ModelError, match=r"values in bn1\.bias that are not finite"):
        build(resnet8(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "args": None}, r"holds no state dict: its keys are epoch, args"),
        ([1, 2], r"holds no state dict: it holds a list"),
        ({"model": {"state_dict": {}}}, r"holds no state dict: its keys are model"),
    ],
)
def test_file_without_weights_says_what_it_holds(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "last.pth"
    torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        build(resnet8(path))


def test_missing_file_and_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.pth does not exist"):
        build(resnet8(tmp_path / "nowhere.pth"))
    other = tmp_path / "weights.h5"
    other.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"weights\.h5 has an unknown kind.*\.safetensors"):
        build(resnet8(other))
    with pytest.raises(ModelError, match=r"holds no card\.json"):
        build(resnet8(tmp_path))


def test_weights_from_two_places_are_refused() -> None:
    with pytest.raises(ValueError, match="weights and checkpoint each name one"):
        Torchvision(name="resnet18", weights="DEFAULT", checkpoint=Path("resnet18.pth"))


def test_class_list_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="no weights are loaded"):
        Cnn(classes=("cat", "dog"))


# What must never run, nor fill the memory.


class Attack:
    """Pickles into a call of a function of the attacker's choice."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def attack_content(weights: dict[str, Tensor], marker: Path, kind: str) -> object:
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "beside": lambda: {"model": weights, "note": Attack(os.system, command)},
        "instead of a tensor": lambda: {**weights, "fc.weight": Attack(exec, code)},
        "as a key": lambda: {Attack(eval, code): weights},
        "alone": lambda: Attack(os.system, command),
        "behind an allowed name": lambda: {"model": weights, "opt": argparse.Namespace(note=Attack(exec, code))},
    }[kind]()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("kind", ["beside", "instead of a tensor", "as a key", "alone", "behind an allowed name"])
def test_malicious_pickle_is_refused_by_name_and_not_run(
    tmp_path: Path, weights: dict[str, Tensor], kind: str, suffix: str
) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / f"evil{suffix}"
    torch.save(attack_content(weights, marker, kind), path)
    with pytest.raises(
        ModelError, match=r"asks for objects other than tensors \((posix\.system|builtins\.(exec|eval))"
    ):
        build(resnet8(path))
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_malicious_plain_pickle_of_any_protocol_is_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": Attack(os.system, f"touch {marker}")}, protocol=protocol))
    with pytest.raises(ModelError, match=r"evil\.pth .*convert"):
        build(resnet8(path))
    assert not marker.exists()


def test_malicious_file_of_old_torch_is_refused_by_name_and_not_run(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    content = {"model": weights, "note": Attack(os.system, f"touch {marker}")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"posix\.system"):
        build(resnet8(path))
    assert not marker.exists()


def test_the_attack_works_where_it_is_let(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """So that the tests above can fail."""
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    torch.save(attack_content(weights, marker, "beside"), path)
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_whole_pickled_network_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    torch.save({"model": build(Cnn())}, path)
    with pytest.raises(ModelError, match=r"compress\.models\.network\.Network"):
        build(resnet8(path))


def test_pickle_suffix_does_not_open_other_readers(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "really_safetensors.pth"
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ModelError, match=r"really_safetensors\.pth cannot be read as plain weights"):
        build(resnet8(path))


def test_file_that_unpacks_to_far_more_is_refused_unread(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"model": weights, "ballast": torch.zeros(25_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 1_000_000
    for path in (plain, bomb):
        with pytest.raises(ModelError, match=r"unpacks to 100\.\d MB, more than this network"):
            build(resnet8(path))


def test_sparse_giant_is_refused_unread(tmp_path: Path) -> None:
    for name in ("giant.safetensors", "giant.pth"):
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(10**12)
        with pytest.raises(ModelError, match=r"unpacks to 1000000\.0 MB"):
            build(resnet8(path))


def test_expanded_view_is_refused_without_being_filled_in(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "view.pth"
    torch.save({**weights, "fc.bias": torch.zeros(1).expand(10**11)}, path)
    with pytest.raises(ModelError, match=r"fc\.bias is \[100000000000\], not \[100\]"):
        build(resnet8(path))


def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "sparse.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its sparse tensors are not finished
        for bias, refusal in (
            (torch.zeros(100).to_sparse(), r"other than tensors \(torch\._utils\._rebuild_sparse_tensor\)"),
            (torch.zeros(100, device="meta"), r"other than tensors \(torch\._utils\._rebuild_meta_tensor_no_storage\)"),
            (torch.zeros(100, dtype=torch.int64), r"holds fc\.bias as a .*, not as a plain tensor of torch\.float32"),
        ):
            torch.save({**weights, "fc.bias": bias}, path)
            with pytest.raises(ModelError, match=refusal):
                build(resnet8(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file_says_so(tmp_path: Path, weights: dict[str, Tensor], suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ModelError, match=rf"cut\{suffix} (is damaged|is not a whole|cannot be read)"):
        build(resnet8(path))


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "flipped.pth"
    torch.save({"fc.bias": weights["fc.bias"], "epoch": 3}, path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refusals: list[str] = []
    for _ in range(300):
        damaged = bytearray(whole)
        for position in generator.integers(len(whole), size=3):
            damaged[position] = int(generator.integers(256))
        path.write_bytes(damaged)
        try:
            read_checkpoint(path, network_bytes=NETWORK_BYTES)
        except ModelError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all("flipped.pth" in refusal for refusal in refusals)


def lying_header(name: str) -> bytes:
    def file(header: object, data: bytes = b"\0" * 64) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def tensor(shape: list[int], start: int, end: int) -> dict[str, object]:
        return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}

    return {
        "length beyond the file": struct.pack("<Q", 10**15) + b"{}",
        "negative length": struct.pack("<q", -1) + b"{}",
        "no JSON": struct.pack("<Q", 4) + b"abcd",
        "list as header": file([]),
        "offsets beyond the data": file({"fc.bias": tensor([10**6], 0, 4 * 10**6)}),
        "shape larger than its bytes": file({"fc.bias": tensor([10**9], 0, 64)}),
        "shape that overflows": file({"fc.bias": tensor([2**62, 16], 0, 64)}),
        "overlapping tensors": file({"a": tensor([16], 0, 64), "b": tensor([16], 0, 64)}),
        "unknown type": file({"a": {"dtype": "Z9", "shape": [16], "data_offsets": [0, 64]}}),
        "no shape": file({"a": {"dtype": "F32", "data_offsets": [0, 64]}}),
        "a million million elements": file({"fc.bias": tensor([10**6, 10**6], 0, 64)}),
        "a header of 11 MB": struct.pack("<Q", 11_000_000) + b"{}".ljust(11_000_000),
    }[name]


@pytest.mark.parametrize(
    "lie",
    [
        "length beyond the file",
        "negative length",
        "no JSON",
        "list as header",
        "offsets beyond the data",
        "shape larger than its bytes",
        "shape that overflows",
        "overlapping tensors",
        "unknown type",
        "no shape",
        "a million million elements",
        "a header of 11 MB",
    ],
)
def test_lying_safetensors_header_is_refused(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "lie.safetensors"
    path.write_bytes(lying_header(lie))
    with pytest.raises(ModelError, match=r"lie\.safetensors is not a whole safetensors file"):
        build(resnet8(path))
