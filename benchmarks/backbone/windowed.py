"""A sampler that is stochastic in some of its steps only, whatever its family."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.api import Sampler


@dataclass(frozen=True)
class Windowed:
    """Steps of ``window`` as in ``stochastic``, others as in ``plain``: the same sampler, eta 0.

    A ``benchmarks.api.Sampler``.
    """

    stochastic: Sampler
    plain: Sampler
    window: Collection[int]

    @property
    def eta(self) -> float:
        """Within the window."""
        return self.stochastic.eta

    @property
    def timesteps(self) -> Sequence[float]:
        """Both samplers'."""
        return self.stochastic.timesteps

    def __len__(self) -> int:
        return len(self.stochastic)

    def _at(self, i: int) -> Sampler:
        return self.stochastic if i in self.window else self.plain

    def mean(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """Of the next latents."""
        return self._at(i).mean(i, output, latents)

    def std(self, i: int) -> float:
        """0 outside of the window."""
        return self._at(i).std(i)

    @property
    def scored(self) -> Sequence[int]:
        """Those of the window that the stochastic sampler scores."""
        return [i for i in self.stochastic.scored if i in self.window]

    def log_prob(self, i: int, value: Tensor, mean: Tensor) -> Tensor:
        """Only within the window."""
        return self._at(i).log_prob(i, value, mean)

    def x0(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The clean latents that ``output`` predicts."""
        return self._at(i).x0(i, output, latents)

    def noise(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The noise that ``output`` predicts."""
        return self._at(i).noise(i, output, latents)

    def renoised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """Clean latents brought to the noise of sampling step ``i``."""
        return self._at(i).renoised(i, x0, noise)

    def denoised(self, i: int, latents: Tensor, noise: Tensor) -> Tensor:
        """The clean latents that, with this noise, ``renoised`` makes ``latents`` of."""
        return self._at(i).denoised(i, latents, noise)
