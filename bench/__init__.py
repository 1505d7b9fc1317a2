"""What measures speed. Each module has `tables(quick=False) -> dict[str, DataFrame]`; `python -m bench` asks
all of them."""
import pkgutil
from importlib import import_module


def benches() -> list[str]:
    "The names of all benches."
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != '__main__')


def measure(name: str, quick: bool) -> dict:
    "The tables of a bench, measured in this process; each says on what machine."
    from dlmech.pace import describe_machine
    tables = import_module(f'bench.{name}').tables(quick)
    return {key: t if 'machine' in t else t.assign(machine=describe_machine()) for key, t in tables.items()}
