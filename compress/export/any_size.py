"""The form that takes pictures of any size: resizing and cropping happen inside the file.

In front of an exported file stand one Resize with antialiasing on the stored bytes and one Slice, the same steps as
`compress.data.preprocessing.preprocess`. ONNX Runtime resizes bytes as Pillow does, in integers, so most pictures come
out equal in every pixel; other runtimes resize otherwise or not at all, so this form is for ONNX Runtime. Whoever
feeds it decodes the picture, turns it upright, and bounds its size: a strip of 3,000,000 x 8 px becomes huge when its
shorter side is resized.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from pydantic import ValidationError

from compress.data.preprocessing import Preprocessing, ResizeAndCrop
from compress.errors import ArtifactError, ModelError
from compress.export.exported import CURE, ExportedModel, read_exported, write_exported

ANY_SIZE_ENTRY = (
    "image: uint8 RGB pixels, batch x height x width x 3, upright, of any size (one size in a batch); "
    "resizing, cropping and normalisation are inside"
)
CROPPED = "image.cropped"
"""Name of the pixels behind the added steps; what the file took before."""

# Pillow's bicubic filter; the weights of pixels beyond the border are left out, as Pillow leaves them out.
RESIZE = {"bilinear": {"mode": "linear"}, "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5}}


def write_any_size_entry(source: Path, destination: Path) -> None:
    """Write the form of an exported file, of whatever precision, that takes pictures of any size.

    What to do to a picture is read from the file's own metadata (`preprocessing`). `load_predictor` refuses this form:
    it has another interface.

    Raises:
        ArtifactError: the source is missing or damaged, or its metadata has no preprocessing.
        ModelError: its pictures are not resized: they must have one size.
    """
    exported = read_exported(source)
    preprocessing = _preprocessing(exported)
    if preprocessing.resize is None:
        raise ModelError(
            f"{source} takes pictures of {preprocessing.height} x {preprocessing.width} px and resizes none, so there "
            "is nothing to put inside; set data.resize and train again if pictures of other sizes should count"
        )
    model = exported.copy()
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = CROPPED
    added = [*_resize(preprocessing.resize), *_crop(preprocessing)]
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*added, *kept])
    graph.initializer.extend(_constants(preprocessing, preprocessing.resize))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3]))
    facts = {"entry": "uint8_nhwc_any_size", "input": ANY_SIZE_ENTRY}
    write_exported(destination, model, made_of=exported, metadata=facts)


def _preprocessing(exported: ExportedModel) -> Preprocessing:
    try:
        preprocessing = Preprocessing.model_validate_json(exported.metadata.get("preprocessing", "null"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ArtifactError(
            f"the metadata of {exported.path} does not say how pictures are resized (preprocessing: {first['msg']}); "
            f"{CURE}"
        ) from error
    height, width = (dim.dim_value for dim in exported.model.graph.input[0].type.tensor_type.shape.dim[1:3])
    if (preprocessing.height, preprocessing.width) != (height, width):
        raise ArtifactError(
            f"{exported.path} takes {height} x {width} px, its metadata prepares {preprocessing.height} x "
            f"{preprocessing.width}; {CURE}"
        )
    return preprocessing


def _resize(resize: ResizeAndCrop) -> list[NodeProto]:
    """The shorter side to a given length; the longer one to length * longer // shorter, as Pillow's users do."""
    return [
        _node("Shape", ["image"], "side_lengths", start=1, end=3),
        _node("Shape", ["image"], "num_pictures", start=0, end=1),
        _node("ReduceMin", [_name("side_lengths")], "shorter_side", keepdims=1),
        _node("Mul", [_name("side_lengths"), _name("resized_shorter_side")], "scaled_side_lengths"),
        _node("Div", [_name("scaled_side_lengths"), _name("shorter_side")], "resized_side_lengths"),
        _node(
            "Concat",
            [_name("num_pictures"), _name("resized_side_lengths"), _name("num_channels")],
            "resized_shape",
            axis=0,
        ),
        _node(
            "Resize",
            ["image", "", "", _name("resized_shape")],
            "resized",
            antialias=1,
            coordinate_transformation_mode="half_pixel",
            exclude_outside=1,
            **RESIZE[resize.interpolation],
        ),
    ]


def _crop(preprocessing: Preprocessing) -> list[NodeProto]:
    """The centre; halves are rounded to even, as Python does."""
    shape = helper.make_node("Reshape", [_name("centre"), _name("cropped_shape")], [CROPPED], _name("fixed_shape"))
    return [
        _node("Sub", [_name("resized_side_lengths"), _name("cropped_side_lengths")], "left_over"),
        _node("Cast", [_name("left_over")], "left_over_float", to=TensorProto.FLOAT),
        _node("Mul", [_name("left_over_float"), _name("half")], "half_left_over"),
        _node("Round", [_name("half_left_over")], "rounded_start"),
        _node("Cast", [_name("rounded_start")], "start", to=TensorProto.INT64),
        _node("Add", [_name("start"), _name("cropped_side_lengths")], "end"),
        _node("Slice", [_name("resized"), _name("start"), _name("end"), _name("sides")], "centre"),
        shape,
    ]


def _constants(preprocessing: Preprocessing, resize: ResizeAndCrop) -> list[TensorProto]:
    height, width = preprocessing.height, preprocessing.width
    values = {
        "resized_shorter_side": np.array([resize.shorter_side], dtype=np.int64),
        "num_channels": np.array([3], dtype=np.int64),
        "cropped_side_lengths": np.array([height, width], dtype=np.int64),
        "half": np.array(0.5, dtype=np.float32),
        "sides": np.array([1, 2], dtype=np.int64),
        "cropped_shape": np.array([0, height, width, 3], dtype=np.int64),  # 0: as it is
    }
    return [numpy_helper.from_array(value, _name(name)) for name, value in values.items()]


def _node(operator: str, inputs: list[str], output: str, **attributes: float | str) -> NodeProto:
    node = helper.make_node(operator, inputs, [_name(output)], _name(f"make_{output}"))
    node.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))
    return node


def _name(name: str) -> str:
    return f"image.{name}"
