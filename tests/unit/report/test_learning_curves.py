from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mois.report.learning_curves import plot_learning


def test_every_propagation_has_its_panel(tmp_path: Path) -> None:
    columns = [f"train/{name}{word}" for name in ("", "attention/") for word in ("right", "wrong", "no_exemplars")]
    rows = [["step", *columns, "val/right"], [9, *[0.5] * 6, ""], [9, *[""] * 6, 0.4], [19, *[0.7] * 6, ""]]
    (tmp_path / "metrics.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    assert plot_learning(tmp_path, tmp_path / "curves.png") == ["", "attention/"]
    width, height = Image.open(tmp_path / "curves.png").size
    assert width > 2 * height


def test_a_folder_without_a_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no metrics"):
        plot_learning(tmp_path, tmp_path / "curves.png")
    (tmp_path / "metrics.csv").write_text("step,val/right\n1,0.5\n")
    with pytest.raises(ValueError, match="give the folder of a training"):
        plot_learning(tmp_path, tmp_path / "curves.png")


def test_a_training_that_logged_no_step_is_told_which_setting_to_lower(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "metrics.csv").write_text("step,val/right\n0,0.5\n")
    with pytest.raises(ValueError, match=r"shorter than trainer.log_every_n_steps; lower that, or train longer"):
        plot_learning(tmp_path, tmp_path / "curves.png")
