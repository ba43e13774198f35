"""The file that MONAI Label looks for in the folder of an app."""

from mois.serve.monailabel_app.app import LesionApp

__all__ = ["LesionApp"]
