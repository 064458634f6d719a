"""OpenVINO on the CPU. It computes in bfloat16 where the processor can, unless told to keep float32."""

from pathlib import Path

import numpy as np
import openvino
from exchange import Ask, main


def load(path: Path) -> Ask:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def ask(values: np.ndarray) -> np.ndarray:
        return compiled({"image": values})["logits"]

    return ask


main(openvino.__version__.split("-")[0], load)
