"""The maps of the two large folders name every file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("folder", ["analysis", "benchmarks"])
def test_every_file_is_on_the_map(folder: str):
    place = ROOT / folder
    text = (place / "README.md").read_text()
    named = set(re.findall(r"`(?:\w+/)*(\w+\.py)`", text))
    kernels = place / "backbone" / "kernels"
    files = {
        path.name
        for path in place.rglob("*.py")
        if path.name != "__init__.py" and path.parent != kernels and "next" not in path.parts
    }
    elsewhere = {"run_benchmark.py", "test_architecture.py"}
    assert files - {"hpdv2.py"} == named - elsewhere
