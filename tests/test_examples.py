"""The example notebook runs from top to bottom on what `make repro` leaves."""

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT
from steadymap.data.fetch import fetch
from steadymap.engine import selection
from steadymap.models import registry
from steadymap.params.files import load
from steadymap.training.loop import TrainingSpec, train

NOTEBOOK = ROOT / "examples" / "sensitivity.ipynb"


def test_the_notebook_is_committed_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells

    assert all(not cell.get("outputs") for cell in cells)
    assert sum(cell.cell_type == "code" for cell in cells) >= 4


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    params = load(ROOT / "params.yaml")
    dataset = fetch(params.data)
    for name in params.models.names:
        recipe = params.recipe(name)
        init_folder = tmp_path / "models" / recipe.init_from if recipe.init_from else None
        train(
            TrainingSpec(name, recipe, dataset, params.robust_accuracy, init_folder),
            tmp_path / "models" / name,
            cache=ROOT / ".cache" / "training",
        )
    predicted = {
        name: selection.predictions(
            registry.load(tmp_path / "models" / name), dataset.images["val"]
        )
        for name in params.models.names
    }
    chosen = selection.choose(params.evaluation_set, dataset, predicted)
    selection.write(chosen, dataset, tmp_path / "evaluation_set")
    monkeypatch.setenv("STEADYMAP_RESULTS", str(tmp_path))

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = [{output.output_type for output in cell.outputs} for cell in code]
    assert not any("error" in found for found in kinds)
    assert any("image/png" in output.data for output in code[2].outputs)
    scores = code[3].outputs[0].data["text/plain"]
    assert "googlenet-r" in scores
