"""What is long is marked slow, and left out unless it is asked for: `pytest tests/faults -m slow`, or
DLMECH_SLOW=1 for everything."""
import os

import pytest


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes; by `pytest tests/faults -m slow`, or DLMECH_SLOW=1')


def pytest_collection_modifyitems(config, items):
    if 'slow' in (config.getoption('-m') or '') or os.environ.get('DLMECH_SLOW'): return
    for item in items:
        if item.get_closest_marker('slow'):
            item.add_marker(pytest.mark.skip(reason='slow: pytest tests/faults -m slow'))
