"""The progress bar, on a terminal that is a string and a clock that the test moves."""

import io
import itertools

import pytest
from rich.console import Console

from steadymap import attribute, progress, show, sweep


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal shows."""
    shown = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=shown, force_terminal=True, width=100)
    )
    return shown


@pytest.fixture
def slow(monkeypatch):
    """Each look at the clock is a second later."""
    monkeypatch.setattr(progress.time, "monotonic", itertools.count().__next__)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("function", [sweep, show])
def test_a_long_sweep_counts_its_passes(function, terminal, tiny, images):
    function("smoothgrad", tiny, images[:2], 0, vary={"sigma": [0.1, 0.2]}, n_samples=70)

    assert "smoothgrad" in terminal.getvalue()
    assert "passes/s" in terminal.getvalue()
    # 2 images, 2 settings, 70 samples.
    assert "280/280" in terminal.getvalue()


@pytest.mark.usefixtures("slow")
def test_a_long_attribution_counts_its_passes(terminal, tiny, images):
    attribute("lime", tiny, images[:1], 0, n_samples=300, n_superpixels=8)

    assert "300/300" in terminal.getvalue()


def test_a_short_one_shows_nothing(terminal, tiny, images):
    attribute("gradient", tiny, images, 0)

    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("slow")
def test_the_bar_is_off_on_request(terminal, tiny, images):
    call = ("smoothgrad", tiny, images[:2], 0)

    attribute(*call, n_samples=200, progress=False)
    sweep(*call, vary={"sigma": [0.1, 0.2]}, n_samples=70, progress=False)

    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("slow")
def test_nothing_is_shown_where_no_one_looks(monkeypatch, capsys, tiny, images):
    monkeypatch.setattr(Console, "is_terminal", False)

    attribute("smoothgrad", tiny, images[:2], 0, n_samples=200)

    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("slow")
def test_a_notebook_overwrites_one_line(monkeypatch, capsys, tiny, images):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)

    attribute("smoothgrad", tiny, images[:2], 0, n_samples=200)

    shown, warned = capsys.readouterr()
    assert "400/400" in shown
    assert shown.count("\n") <= 1
    assert warned == ""
