"""OpenCV's dnn module. Damaged or unknown graphs can end the process, so forms are asked one by one."""

from pathlib import Path

import cv2
import numpy as np
from exchange import Ask, main


def load(path: Path) -> Ask:
    cv2.setNumThreads(1)
    network = cv2.dnn.readNetFromONNX(str(path))

    def ask(values: np.ndarray) -> np.ndarray:
        network.setInput(values, "image")
        return network.forward("logits")

    return ask


main(cv2.__version__, load)
