"""The embedded world: captions, layout, determinism."""

from itertools import islice

import numpy as np
import pytest

from benchmarks.emoji.next import data


@pytest.fixture
def art():
    """Drawings that are filled squares, each of its own colour; the cat has a face as well."""
    rows = [(a, s, 0) for s in range(len(data.STYLES)) for a in range(len(data.ANIMALS))]
    rows += [(0, s, 1) for s in range(len(data.STYLES))]
    animal, style, pose = np.array(rows).T
    rasters = np.full((len(rows), data.SPRITE_SIZE, data.SPRITE_SIZE, 4), 255, np.uint8)
    rasters[..., :3] = np.random.default_rng(0).integers(256, size=(len(rows), 1, 1, 3))
    return data.Art(rasters, animal, style, pose)


def test_captions_name_what_they_are_asked_to():
    assert data.caption("cat", 1, None, bare=True) == "cat"
    assert data.caption("ant", 1, None) == "an ant"
    assert data.caption("ant", 1, None, "cartoon") == "a cartoon ant"
    assert data.caption("fox", 2, None) == "two foxes"
    assert data.caption("butterfly", 3, "blue", "paper") == (
        "three paper butterflies on a blue background"
    )


def test_a_caption_says_one_thing_only():
    meanings = {}
    for text, meaning in data.meanings():
        assert meanings.setdefault(text, meaning) == meaning
    assert len(meanings) == 56 * 5 * 11 * 4  # singles with and without an article


def test_scenes_are_what_their_labels_say(art):
    background = np.array(list(data.BACKGROUNDS.values()))
    for scene in islice(data.scenes(art, seed=3), 200):
        side = scene.side
        corners = scene.centers - side / 2
        assert len(corners) == scene.count
        assert (corners % 8 == 0).all() and side % 8 == 0
        assert corners.min() >= 0 and (corners + side).max() <= data.SIZE
        distance = np.abs(corners[:, None] - corners[None]).max(-1)
        assert (distance + side * np.eye(scene.count) >= side).all()
        (drawing,) = set(art.of(scene.animal, scene.style)) & set(
            np.flatnonzero(art.pose == scene.pose)
        )
        for x, y in scene.centers.astype(int):
            assert np.abs(scene.image[y, x] - art.rasters[drawing, 0, 0, :3].astype(int)).max() <= 1
        ink = scene.count * (side - 2) ** 2
        ground = np.abs(scene.image - background[scene.background]).max(-1) <= 8
        assert ground.sum() >= data.SIZE**2 - ink


def test_scenes_repeat_with_their_seed(art):
    first, again = (list(islice(data.scenes(art, seed=7), 5)) for _ in range(2))
    other = list(islice(data.scenes(art, seed=8), 5))
    assert all((a.image == b.image).all() for a, b in zip(first, again, strict=True))
    assert any((a.image != b.image).any() for a, b in zip(first, other, strict=True))


def test_size_does_not_give_the_count_away(art):
    sides = {count: set() for count in (1, 2, 3, 4)}
    for scene in islice(data.scenes(art, seed=4), 500):
        sides[scene.count].add(scene.side)
    assert all(sides[count] <= sides[1] for count in sides)


def test_the_background_is_read_from_the_border(art):
    some = [s for s in islice(data.scenes(art, seed=5), 300) if s.side < 40]
    found = data.nearest_background(np.stack([scene.image for scene in some]))
    assert (found == [scene.background for scene in some]).all()


def test_bodies_and_faces_are_told_apart(monkeypatch):
    monkeypatch.setattr(data, "_rasterise", lambda icons, body: body)
    icons = {"cat": {"body": "a"}, "cat-face": {"body": "b"}, "zebra": {"body": "c"}}
    icons |= {"lion": {"body": "d"}}
    aliases = {"lion-face": {"parent": "lion"}}

    def drawings(style, animal):
        return list(data._drawings({"icons": icons, "aliases": aliases}, style, animal))

    assert drawings("paper", "cat") == [(0, "a"), (1, "b")]
    assert drawings("paper", "lion") == [(1, "d")]  # an alias is no second drawing
    assert drawings("cartoon", "zebra") == [(1, "c")]
    assert drawings("painted", "zebra") == [(0, "c")]


@pytest.mark.slow
def test_every_style_draws_every_animal(tmp_path):
    """The art itself; needs npm and the network."""
    art = data.Art.load(tmp_path)
    for animal in range(len(data.ANIMALS)):
        for style in range(len(data.STYLES)):
            drawings = art.of(animal, style)
            assert 1 <= len(drawings) <= 2
            ink = (art.rasters[drawings, ..., 3] > 128).mean((1, 2))
            assert (ink > 0.1).all(), (data.ANIMALS[animal], list(data.STYLES)[style])
