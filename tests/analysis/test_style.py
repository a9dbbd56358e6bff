"""How methods and figures look."""

from __future__ import annotations

from matplotlib.figure import Figure
from synthetic_runs import GAIN

from analysis.style import BASE, BASE_LINE, encoded, finish, looks, theme


def test_looks_are_constant_and_differ() -> None:
    few, many = looks(["ddpo", "zoo"]), looks([*GAIN, "zoo", "apple", "ddpo (k=1)"])
    assert few["ddpo"] == many["ddpo"]
    assert len({(look.color, look.marker) for look in many.values()}) == len(many)
    assert list(looks(["K = 10", "full", "K = 5"])) == ["K = 5", "K = 10", "full"]


def test_a_figure_has_one_legend_and_always_the_same_bytes() -> None:
    def drawn() -> Figure:
        with theme():
            figure = Figure(figsize=(2, 1), layout="constrained")
            figure.subplots().plot([1, 2])
            return finish(figure, looks(["ddpo", "alignprop"]), "a note", {BASE: BASE_LINE})

    [legend] = drawn().legends
    assert [text.get_text() for text in legend.get_texts()] == [BASE, "alignprop", "ddpo"]
    for kind, start in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
        content = encoded(drawn(), kind)
        assert content.startswith(start) and content == encoded(drawn(), kind)
