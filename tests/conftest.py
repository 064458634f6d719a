"""Shapes and types in the library's annotations are checked while its tests run."""

import torch
from jaxtyping import install_import_hook

import tests.typechecking  # noqa: F401  the hook reaches it through its package

install_import_hook("compress", "tests.typechecking.checked")

# Tests run on small tensors, often beside other work: threads would mostly wait for each other.
torch.set_num_threads(1)
