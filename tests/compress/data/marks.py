"""Reasons to skip a test on a machine that can not run it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_scikit_learn = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")
