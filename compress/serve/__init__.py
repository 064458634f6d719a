"""A deployed student behind HTTP. Needs ONNX Runtime, numpy, Pillow and the server's packages; never torch.

`serve` runs the server until it is told to stop; `create_app` is the ASGI application for whoever brings a server.
"""

from compress.serve.app import create_app
from compress.serve.model import ServedModel, load_served_model
from compress.serve.server import serve
from compress.serve.settings import Limits, ServeSettings

__all__ = ["Limits", "ServeSettings", "ServedModel", "create_app", "load_served_model", "serve"]
