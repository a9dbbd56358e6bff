"""How much less one method needs to reach what another ends with.

The level is the slow method's median gain at the end, of half of its runs; the costs are the
medians of all runs of the fast method and of the other half of the slow one's, each at its first
evaluation there. Halves are swapped and the two ratios averaged on the log scale: level and cost
of the slow method are never of the same runs, which would flatter it or not by chance. A run that
does not get there within its budget stays in, as one that needs more (a censored one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import placebo
from analysis.changes import Key, base_rows, change, scores
from analysis.collect import Comparison
from analysis.curves import draw_lines, with_unit
from analysis.records import BUDGETS, SPLITS
from analysis.sheets import Sheet, Value, point, printed
from analysis.statistics import (
    ENOUGH_SEEDS,
    LEVEL,
    NAN,
    RESAMPLES,
    Estimate,
    caption,
    median_cost,
    student,
    total,
    two_sided,
    weights,
)
from analysis.style import BASE, BASE_LINE, GREY, PAGE, Looks, finish, theme, used
from analysis.targets import guarded, last_kept

#: What is compared: data, compute and time. For one method they are proportional, so a claim about
#: them is one finding.
KINDS = ("queries", "flops", "seconds")


@dataclass(frozen=True, eq=False)
class Runs:
    """Of one method on one split: what its runs had ``spent`` (runs, evaluations), whether the
    guard ``kept`` them, and the reward's ``changes`` (runs, evaluations, pictures)."""

    spent: np.ndarray
    kept: np.ndarray
    changes: np.ndarray
    prompts: tuple[str, ...]
    whole: bool

    def __len__(self) -> int:
        return len(self.spent)


def runs(comparison: Comparison, label: str, column: str, split: str) -> Runs:
    """A method's runs by seed, from the base model on; as many evaluations as the shortest has."""
    evals, reward = comparison.evals, comparison.reward
    rows = evals[(evals["label"] == label) & (evals["split"] == split)]
    rows = rows.sort_values(["seed", "cell", "step", "fraction"], kind="stable")
    rows = rows[(rows["step"] > 0) | ~rows.duplicated("cell")]  # at a cost of 0 only the base model
    found = [run for _, run in rows.groupby(["seed", "cell"])]
    shortest = min(map(len, found), default=0)
    pictures = [[scores(p, reward) for p in run["per_image"][:shortest]] for run in found]
    keys: list[Key] = list(pictures[0][0]) if shortest else []
    keys = [k for k in keys if all(k in one for run in pictures for one in run)]
    if keys:
        values = np.array([[[one[k] for k in keys] for one in run] for run in pictures])
    else:
        values = np.array([run[[reward]].to_numpy(float)[:shortest] for run in found])
    shape = (len(found), shortest)
    values = values.reshape(*shape, -1)
    return Runs(
        spent=np.array([run[column].to_numpy(float)[:shortest] for run in found]).reshape(shape),
        kept=np.array([run["kept"].ne(False)[:shortest] for run in found]).reshape(shape),
        changes=values - values[:, :1],
        prompts=tuple(prompt for prompt, _ in keys),
        whole=bool(rows["whole"].all()) if len(rows) else False,
    )


def final(paths: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(..., runs, evaluations) to (..., runs): the gain at the last evaluation that is kept."""
    last = kept.shape[-1] - 1 - np.argmax(kept[:, ::-1], axis=-1)
    last = np.where(kept.any(-1), last, 0)
    return np.take_along_axis(paths, np.broadcast_to(last, paths.shape[:-1])[..., None], -1)[..., 0]


def crossing(
    paths: np.ndarray, spent: np.ndarray, kept: np.ndarray, level: np.ndarray
) -> np.ndarray:
    """What each run had spent when it was first kept at ``level`` (...); infinite if it never was.

    ``paths`` (..., runs, evaluations). Linear between evaluations, but not before the first after
    the base model: what was not looked at then is counted as reached there.
    """
    at = level[..., None, None]
    reached = (paths >= at) & kept
    reached[..., 0] = False
    k = np.argmax(reached, axis=-1)
    before = np.maximum(k - 1, 0)

    def pick(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        values = np.broadcast_to(values, paths.shape)
        return np.take_along_axis(values, where[..., None], -1)[..., 0]

    low, high = pick(paths, before), pick(paths, k)
    rose = (k > 1) & (low < level[..., None])
    step = np.where(rose, high - low, 1.0)
    share = np.where(rose, (level[..., None] - low) / step, 1.0)
    cost = pick(spent, before) + share * (pick(spent, k) - pick(spent, before))
    return np.where(reached.any(-1), cost, np.inf)


@dataclass(frozen=True, eq=False)
class Times:
    """Logarithms of the ratio (...); where a median cost is only known to be at least the budget,
    of which method; and where the slow one had not risen, so that there is no ratio."""

    log: np.ndarray
    fast_open: np.ndarray
    slow_open: np.ndarray
    flat: np.ndarray


def halves(count: int) -> tuple[range, range]:
    """Which runs of the slow method give the level and which the cost, before they are swapped."""
    if count < 2:
        return range(count), range(count)
    return range((count + 1) // 2), range((count + 1) // 2, count)


def cross_fitted(
    fast: Runs, slow: Runs, picture_weights: np.ndarray, drawn: tuple[np.ndarray, ...]
) -> Times:
    """The ratio in every resample.

    ``picture_weights`` (resamples, pictures); ``drawn``: which runs of the fast method, and of
    either half of the slow one's (resamples, runs). One row stands for all resamples.
    """
    ours, theirs = (np.einsum("skp,rp->rsk", r.changes, picture_weights) for r in (fast, slow))
    ends = final(theirs, slow.kept)
    logs, fast_open, slow_open, flat = [], [], [], []
    for half, other in ((1, 2), (2, 1)):
        level = np.median(_drawn(ends, drawn[half]), axis=-1)
        level = level if len(level) > 1 or len(ours) == 1 else np.broadcast_to(level, len(ours))
        spent = []
        for paths, own, chosen in ((ours, fast, drawn[0]), (theirs, slow, drawn[other])):
            count = max(len(paths), len(level))
            many = np.broadcast_to(paths, (count, *paths.shape[1:]))
            costs = crossing(many, own.spent, own.kept, level)
            limits = _drawn(own.spent[None, :, -1], chosen)
            spent.append(median_cost(_drawn(costs, chosen), limits))
        (paid, paid_open), (needed, needed_open) = spent
        logs.append(np.log(needed) - np.log(paid))
        fast_open.append(paid_open)
        slow_open.append(needed_open)
        flat.append(level <= 0)
    log = np.mean(np.broadcast_arrays(*logs), axis=0)
    return Times(log, np.logical_or(*fast_open), np.logical_or(*slow_open), np.logical_or(*flat))


def _drawn(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(resamples or 1, runs) and (resamples or 1, drawn) to (resamples, drawn)."""
    count = max(len(values), len(chosen))
    wide = np.broadcast_to(values, (count, values.shape[1]))
    return np.take_along_axis(wide, np.broadcast_to(chosen, (count, chosen.shape[1])), 1)


@dataclass(frozen=True)
class Speedup:
    """How many times less; ``said`` is why there is no number, and empty if there is one.

    ``times.error`` is that of the logarithm.
    """

    times: Estimate
    said: str = ""

    def p(self, above: float) -> float:
        """As ``Estimate.p``; 1 where the side that would decide is open."""
        if math.isnan(self.times.error):
            return NAN
        end = self.times.low if self.times.value > above else self.times.high
        if math.isinf(end):
            return 1.0
        log = math.log(self.times.value) - math.log(above)
        return two_sided(log, self.times.error, self.times.freedom)


def speedup(comparison: Comparison, fast: str, slow: str, kind: str, split: str) -> Speedup:
    """The cross-fitted ratio of two methods for this kind of cost.

    From 5 seeds of each on with an interval (Student's, on the log scale): runs of each method and
    half are resampled, then prompts and pictures. An end is open where more than 2.5 % of the
    resamples do not know it.
    """
    ours, theirs = (runs(comparison, n, BUDGETS[kind][0], split) for n in (fast, slow))
    if not placebo.rose(comparison, slow, split):
        return Speedup(_nothing(ours, theirs), f"{slow} is not above its placebo")
    return ratio(ours, theirs, fast, slow)


def _nothing(fast: Runs, slow: Runs) -> Estimate:
    return Estimate(value=NAN, seeds=min(len(fast), len(slow)))


def ratio(ours: Runs, theirs: Runs, fast: str = "fast", slow: str = "slow") -> Speedup:
    """As ``speedup``, of these runs."""
    nothing = _nothing(ours, theirs)
    if not ours.changes.size or not theirs.changes.size or min(ours.spent.shape[1], 2) < 2:
        return Speedup(nothing, "no runs yet")
    if np.isnan(ours.changes).any() or np.isnan(theirs.changes).any():
        return Speedup(nothing, "a run diverged")
    if ours.prompts != theirs.prompts:
        return Speedup(nothing, "the two were looked at with different pictures")
    groups = [range(len(ours)), *halves(len(theirs))]
    everything = tuple(np.array([list(group)]) for group in groups)
    equal = np.full((1, ours.changes.shape[2]), 1 / ours.changes.shape[2])
    found = cross_fitted(ours, theirs, equal, everything)
    if found.flat[0]:
        return Speedup(nothing, f"{slow} did not rise")
    if found.fast_open[0] and found.slow_open[0]:
        return Speedup(nothing, "neither got there again")
    value = math.exp(found.log[0])
    bound = "at most" if found.fast_open[0] else "at least" if found.slow_open[0] else ""
    count = nothing.seeds
    if count < ENOUGH_SEEDS:
        return Speedup(Estimate(value=value, seeds=count, bound=bound))
    random = np.random.default_rng(0)
    again = tuple(
        np.array(group)[random.integers(len(group), size=(RESAMPLES, len(group)))]
        for group in groups
    )
    resamples = [cross_fitted(ours, theirs, equal, again)]
    errors = [(float(resamples[0].log.var()) * count / (count - 1), count - 1.0)]
    if len(ours.prompts) > 1:
        several, freedom = weights(ours.prompts, ours.whole and theirs.whole)
        resamples.append(cross_fitted(ours, theirs, several, everything))
        errors.append((float(resamples[1].log.var()), freedom))
    error, freedom_ = total(errors)
    half = student(freedom_) * error
    unknown = (1 - LEVEL) / 2

    def is_open(name: str) -> bool:
        shares = [(getattr(r, name) | r.flat).mean() for r in resamples]
        return bool(max(shares) > unknown)

    times = Estimate(
        value=value,
        low=-math.inf if is_open("fast_open") else math.exp(found.log[0] - half),
        high=math.inf if is_open("slow_open") else math.exp(found.log[0] + half),
        seeds=count,
        error=error,
        freedom=freedom_,
        bound=bound,
    )
    return Speedup(times)


def sheet(comparison: Comparison, fast: str, slow: str) -> Sheet:
    """What ``slow`` ends with, and how much less ``fast`` needs for it."""
    last = last_kept(comparison.evals)
    rows: list[dict[str, Value]] = []
    for split, words in SPLITS.items():
        mine = last[(last["label"] == slow) & (last["split"] == split)]
        gain = change(mine, base_rows(comparison.evals, split), comparison.reward)
        row: dict[str, Value] = {
            "prompts": words,
            f"{slow} gains": gain,
            "mean of all runs": point(gain.mean),
            "learnt": placebo.said(comparison, slow, split, comparison.reward),
        }
        for kind in KINDS:
            found = speedup(comparison, fast, slow, kind, split)
            row[f"{BUDGETS[kind][2]}, times less"] = found.said or found.times
        rows.append(row)
    note = (
        f"Level: {slow}'s median gain at the end{_guard(comparison)}, of half of its runs. Times: "
        f"the median cost of the other half's runs to get there again, over that of {fast}'s; "
        "halves swapped and averaged. A run that does not get there counts as one that needs more "
        "than its budget: '>=' at least, '<=' at most, an open end is not known. Queries, FLOPs "
        f"and seconds are proportional within a method: one finding. {caption(comparison.seeds())}"
    )
    styles = {column: ".3g" for column in rows[0] if column.endswith("times less")}
    return Sheet(title=comparison.title, note=note, columns=list(rows[0]), rows=rows, styles=styles)


def _guard(comparison: Comparison) -> str:
    return " that the guard keeps" if guarded(comparison.evals) else ""


def in_words(found: Speedup) -> str:
    """The ratio as the title of a panel."""
    if math.isinf(found.times.low) and math.isinf(found.times.high):
        return f"undecided ({printed(point(found.times.value), '.3g')})"
    return found.said or f"{printed(found.times, '.3g')} times less"


def figure(comparison: Comparison, styles: Looks, fast: str, slow: str) -> Figure:
    """Reward on training prompts against each cost, with the level that both methods reach."""
    styles, train = used(styles, comparison.labels), comparison.evals
    train = train[train["split"] == "train"]
    base = float(base_rows(comparison.evals, "train")[comparison.reward].mean())
    with theme():
        drawn = Figure(figsize=(PAGE, 2.3), layout="constrained")
        for axes, kind in zip(drawn.subplots(1, len(KINDS), sharey=True), KINDS, strict=True):
            column, divisor, name = BUDGETS[kind]
            rows = train.assign(**{name: train[column] / divisor})
            axes.axhline(base, color=GREY, linewidth=1, linestyle="--", zorder=1)
            draw_lines(axes, rows, name, comparison.reward, styles)
            ours, theirs = (runs(comparison, n, column, "train") for n in (fast, slow))
            _bar(axes, ours, theirs, base, divisor)
            axes.set_title(in_words(speedup(comparison, fast, slow, kind, "train")))
            axes.set(xlabel=name, xlim=(0, None))
        drawn.axes[0].set_ylabel(with_unit(comparison, comparison.reward))
        note = (
            f"Training prompts. Grey bar: {slow}'s median end, from where {fast}'s median run has "
            f"it to where {slow}'s has (an arrow: not within its budget); above: how many times "
            "less, cross-fitted. "
        )
        return finish(
            drawn, styles, note + caption(comparison.seeds(), drawn=True), {BASE: BASE_LINE}
        )


def _bar(axes: Axes, ours: Runs, theirs: Runs, base: float, divisor: float) -> None:
    """From the one method's median cost to the other's, at the level of all of the slow one's."""
    paths = [r.changes.mean(-1) for r in (ours, theirs)]
    level = float(np.median(final(paths[1], theirs.kept)))
    if level <= 0:
        return
    spent, markers = np.empty(2), ["|", "|"]
    for i, own in enumerate((ours, theirs)):
        costs = crossing(paths[i][None], own.spent, own.kept, np.array([level]))
        cost, is_open = median_cost(costs, own.spent[None, :, -1])
        spent[i] = cost[0] / divisor
        markers[i] = ">" if is_open[0] else "|"
    axes.plot(spent, [base + level] * 2, color=GREY, lw=1, zorder=4)
    for x, marker in zip(spent, markers, strict=True):
        axes.plot(x, base + level, marker, color=GREY, ms=5, zorder=4)
