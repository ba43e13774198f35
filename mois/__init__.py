"""Exemplar-based segmentation of many lesions with a frozen SAM2 backbone."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.1.0"

_EARLIER_NAMES = {
    "mois.bundle": ["mois.sharing.bundle"],
    "mois.exemplars": ["mois.sharing.bank", "mois.sharing.identity"],
    "mois.io": ["mois.scans.volumes", "mois.scans.datasets", "mois.scans.image_files", "mois.errors"],
}


class _EarlierName(MetaPathFinder, Loader):
    """Finds modules under their names of version 0.1. They work for one more version, with one warning."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module under its earlier name."""
        return ModuleSpec(name, self) if name in _EARLIER_NAMES else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the content of the modules that replace it."""
        places = _EARLIER_NAMES[module.__name__]
        warnings.warn(f"{module.__name__} is now {places[0]}; the old name goes with the next version.", stacklevel=2)
        for place in reversed(places):
            module.__dict__.update({k: v for k, v in vars(import_module(place)).items() if not k.startswith("__")})


sys.meta_path.append(_EarlierName())
