"""``--compile``: the same gradients, counts and few graphs; without a compiler it is refused."""

import pytest
import torch
from conftest import tiny_pipeline

from benchmarks.api import Keep, UserError
from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.experiments import cells
from benchmarks.speed.ours import Ours


@pytest.mark.slow
@pytest.mark.skipif(not cells.has_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep", KEEPS)
def test_compiled_steps_equal_eager_ones(keep: Keep, compared, gradients, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counts = []
    for compile in (False, True):
        backbone = StableDiffusion(tiny_pipeline(), Ledger(), compile=compile)
        backbone.price()
        ours = Ours(backbone, batch=2, steps=4, guidance=2.5)
        ours.alignprop(2, keep)()
        counts.append(backbone.ledger.totals() | {"seconds": 0})
    assert counts[0] == counts[1]
    compared("gradient", gradients[1], gradients[0], 1e-4)
    found = torch._dynamo.utils.counters
    assert not found["graph_break"] and 0 < found["stats"]["unique_graphs"] <= 3


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cells, "COMPILERS", ["no-such-compiler"])
    methods = {"alignprop": []}
    with pytest.raises(UserError, match="no-such-compiler, and there is none"):
        cells.resolve(methods, compile=True)
    assert not cells.resolve(methods)[0].compile
