"""Grids of pictures: which are shown, and where they stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from synthetic_runs import comparison, write_cell, write_evaluation

from analysis.collect import collect
from analysis.gallery import Row, along_soup, along_training, before_after, block, shown, steps


def test_the_first_picture_of_each_prompt_that_is_in_every_row(tmp_path: Path) -> None:
    rows = []
    for name, there in (("one", [0, 1, 2, 3]), ("two", [1, 3])):
        (tmp_path / name).mkdir()
        for index in there:
            (tmp_path / name / f"{index:03d}.png").touch()
        records = [{"prompt": prompt} for prompt in ("cat", "cat", "dog", "fox")]
        rows.append(Row(name, tmp_path / name, records))
    found = block("", "train", rows)
    assert found and found.chosen == {"cat": 1, "fox": 3}
    assert block("", "train", rows[:1]) is None


def test_the_lowest_seed_with_pictures_stands_for_the_method(tmp_path: Path) -> None:
    for seed in range(3):
        write_cell(tmp_path, "ddpo", seed, images=seed > 0)
    write_cell(tmp_path, "rwr", 0)
    found = comparison(tmp_path)
    cell = shown(found, "ddpo")
    assert cell and cell.info["seed"] == 1
    assert list(steps(found, cell, "unseen")) == [0, 40, 100]
    assert shown(found, "rwr") is None
    assert before_after(found, "rwr") is None and along_training(found, "rwr") is None


def test_candidates_go_down_and_prompts_to_the_right(tmp_path: Path) -> None:
    """Every picture of the synthetic evaluation is of one colour that says which it is."""
    write_evaluation(tmp_path, "sweep")
    [evaluated] = collect(tmp_path).evaluated
    grid = along_soup(evaluated)
    assert grid is not None
    small = np.asarray(grid)[::4, ::4].astype(int)  # every fourth pixel is enough
    colours = small @ (256**2, 256, 1)

    def there(candidate: int, picture: int) -> np.ndarray:
        return colours == 60 * candidate * 256**2 + 20 * picture * 256 + 99

    def corner(candidate: int, picture: int) -> tuple[int, int]:
        found = there(candidate, picture)
        return int(found.any(1).argmax()), int(found.any(0).argmax())

    tops = [[corner(k, i)[0] for i in range(8)] for k in range(4)]
    lefts = [[corner(k, i)[1] for i in range(8)] for k in range(4)]
    assert all(len(set(row)) == 1 for row in tops) and all(row == lefts[0] for row in lefts)
    assert np.diff([row[0] for row in tops]).min() > 40 and np.diff(lefts[0]).min() > 40
    assert there(0, 7).any() and not there(0, 8).any()  # the first eight prompts alone
