"""What each process of ``test_distributed.py`` does; alone or one of several.

``worker.py FOLDER OUT``: three steps of every registered method on the tiny model in FOLDER; writes
gradients, results, weights and the ledger's counts to OUT/RANK.safetensors.
"""

import sys
from pathlib import Path

import torch

from benchmarks import distributed, optim, registry
from benchmarks.backbone import load
from benchmarks.compute.ledger import Ledger
from benchmarks.conformance import contract
from benchmarks.records import checkpoint


def measure(folder: Path) -> dict[str, dict]:
    """Method -> what its steps left, in this process."""
    torch.set_num_threads(1)
    backbone = load(str(folder), Ledger())
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    start = backbone.weights()
    gradients: list[torch.Tensor] = []

    def reduce(parameters) -> None:
        distributed.reduce_gradients(parameters)
        found = [p.grad.flatten() for p in parameters if p.grad is not None]
        gradients.append(torch.cat([torch.zeros(1), *found]))

    before = contract.model, optim.reduce_gradients
    contract.model, optim.reduce_gradients = lambda: (backbone, start), reduce
    try:
        return {name: run(name, gradients) for name in registry.methods.names()}
    finally:
        contract.model, optim.reduce_gradients = before


def run(name: str, gradients: list[torch.Tensor]) -> dict:
    this = contract.bench(name, batch_size=5)
    ledger, results = this.backbone.ledger, []
    gradients.clear()
    for step in range(3):
        with ledger.across_processes():
            result = this.method.step(step)
        results.append({"reward": result.reward, "loss": result.loss, **result.extra})
    return {
        "gradients": list(gradients),
        "results": results,
        "weights": this.backbone.weights(),
        "counts": {k: v for k, v in ledger.counts.items() if v},
        "state": this.method.state_dict(),
    }


if __name__ == "__main__":
    distributed.start()
    found = measure(Path(sys.argv[1]))
    checkpoint.save(Path(sys.argv[2]) / f"{distributed.process()}.safetensors", found)
