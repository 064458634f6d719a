"""`import compress` is light, and its public names are there."""

import subprocess
import sys

import pytest

import compress


@pytest.mark.parametrize("name", compress.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(compress, name) is not None
    assert name in dir(compress)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        compress.trian  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys, compress; assert 'torch' not in sys.modules"], check=True)
