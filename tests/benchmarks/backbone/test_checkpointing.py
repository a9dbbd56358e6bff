"""Whatever is kept gives the same gradients, for every way of using the backbone."""

import pytest
import torch
from torch import Tensor

from benchmarks import registry
from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.conformance import contract


def gradients(name: str, keep) -> Tensor:
    """The gradient of a method's first step in float64."""
    this = contract.bench(name)
    backbone, streams = this.backbone, this.method.context.streams
    modules = backbone.modules()
    for module in modules:
        module.double()
    backbone._conditions.clear()
    backbone.use(keep)
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():  # B = 0 would leave half of the gradient at zero
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).double()
    normal = streams.normal
    streams.normal = lambda *a: normal(*a).double()  # type: ignore[method-assign]
    found: list[Tensor] = []
    holder = this.method.optimizer  # type: ignore[attr-defined]
    holder.step = lambda: found.append(_flat(backbone.parameters())) or 0.0
    this.method.step(0)
    for parameter in backbone.parameters():
        parameter.grad = None
    for module in modules:
        module.float()
    backbone._conditions.clear()
    backbone.use("all")
    return found[0]


def _flat(parameters) -> Tensor:
    return torch.cat([p.grad.clone().flatten() for p in parameters])


@pytest.mark.parametrize("name", registry.methods.names())
def test_gradients_do_not_depend_on_what_is_kept(tiny_contract: None, name: str):
    stored, *others = [gradients(name, keep) for keep in KEEPS]
    assert stored.dtype == torch.float64 and stored.norm() > 0
    for other in others:
        assert (other - stored).norm() < 1e-12 * stored.norm()  # sums in another order
