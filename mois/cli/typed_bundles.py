"""The bundles of a command: one, or one for each type of lesion (`--bundle TYPE=DIR`, several times)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mois.serve.served_models import ServedModels
    from mois.sharing.lesion_model import LesionModel


def typed_bundles(given: Sequence[str] | str | Path | None) -> dict[str, Path]:
    """Return the folder of each bundle by its type of lesions.

    Args:
        given: DIR or TYPE=DIR, once or several times; DIR may be the word shipped. Only the first may have no type; its
            type is "".

    Raises:
        ValueError: If a further bundle has no type, or two have the same.
    """
    from mois.session.models.typed_workbench import TYPE_NAME

    bundles: dict[str, Path] = {}
    for word in [given] if isinstance(given, str | Path) else given or ():
        name, equals, folder = str(word).partition("=")
        if not equals or not TYPE_NAME.fullmatch(name) or Path(word).exists():
            name, folder = "", str(word)
        if not name and bundles:
            raise ValueError(f"--bundle {word}: a further bundle needs a type: --bundle TYPE={folder}.")
        if name in bundles:
            raise ValueError(f"--bundle {word}: the type {name} has a bundle already; choose another.")
        bundles[name] = Path(folder)
    return bundles


def served_models(
    given: Sequence[str] | str | Path | None, pixel_mm: float | None, device: str, trust: Sequence[str] = ()
) -> ServedModels:
    """Return the models of a server; without a bundle, the shipped model.

    Args:
        given: See `typed_bundles`.
        pixel_mm: Pixel size of the shipped model; None takes the default.
        device: Device of the models.
        trust: Modules of others whose classes the bundles may name.

    Raises:
        ValueError: If a bundle cannot be used, or a pixel size is given and no model is the shipped one.
    """
    from mois.serve.served_models import ServedModels
    from mois.serve.shipped_model import check_shipped_options, served_model

    def load(bundle: Path | None) -> LesionModel:
        return served_model(bundle, pixel_mm, device, trust)

    bundles = typed_bundles(given)
    check_shipped_options(bundles.values(), pixel_mm)
    name = next(iter(bundles), "")
    models = {kind: load(bundle) for kind, bundle in bundles.items() if kind != name}
    return ServedModels(load(bundles.get(name)), name, models, load)
