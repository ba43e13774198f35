"""A scan with three lesions, and a session on it."""

import pytest

from mois.session import InteractiveSession
from tests.support.session_fakes import make_model, three_lesions


@pytest.fixture
def scan():
    return three_lesions()


@pytest.fixture
def session(scan):
    return InteractiveSession(make_model(), scan)
