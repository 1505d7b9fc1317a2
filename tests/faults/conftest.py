"""What is long is marked slow, and left out unless it is asked for: `pytest tests/faults -m slow`, or
DLMECH_SLOW=1 for everything. What came of it is kept in dlmech/results/faults.csv, which 00_run tells of."""
import os

import pytest

from noted import FUZZ, replace_rows


def is_slow(config) -> bool:
    return 'slow' in (config.getoption('-m') or '') or bool(os.environ.get('DLMECH_SLOW'))


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes; by `pytest tests/faults -m slow`, or DLMECH_SLOW=1')
    if is_slow(config): os.environ.setdefault('DLMECH_FUZZ', FUZZ)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        if is_slow(config) and item.path.name == 'test_fuzz.py': item.add_marker('slow')
        if item.get_closest_marker('slow') and not is_slow(config):
            item.add_marker(pytest.mark.skip(reason='slow: pytest tests/faults -m slow'))


@pytest.fixture
def note(request):
    """Gives a function that keeps what came of a slow test: of what, how many, how many were refused, and how
    many were wrong. Where the test fails, what an earlier one found is no longer true, and is gone."""
    name = getattr(request.node, 'originalname', None) or request.node.name
    case = request.node.name.removeprefix(name).strip('[]')
    replace_rows(name, case, [])
    return lambda rows: replace_rows(name, case, rows)
