"""Deployable forms of a network, one file each."""

from compress.export.onnx_file import export_onnx
from compress.export.settings import ExportSettings

__all__ = ["ExportSettings", "export_onnx"]
