"""The recipe page is what its code renders to, and the code runs."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from optimizer_cases import BACKEND

# isort: split
import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_rendered_from_the_code():
    render = runpy.run_path(str(DOCS / "render.py"))["render"]
    source = (DOCS / "optimizer.py").read_text(encoding="utf-8")
    page = (DOCS / "optimizer.md").read_text(encoding="utf-8")
    assert page == render(source), "run `python docs/render.py`"


@pytest.mark.skipif(BACKEND != "jax", reason="one recipe is a JAX training loop")
def test_the_recipes_run(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
    run = subprocess.run(
        [sys.executable, DOCS / "optimizer.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rates = [line.split()[3] for line in run.stdout.splitlines() if "head" in line]
    assert float(rates[0]) == pytest.approx(2e-4, rel=1e-3)
