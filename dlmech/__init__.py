__version__ = "0.1.0"

FROM = dict(measure='network', Measurement='network', own_head='network', load='model')

def __getattr__(name):
    "`dlmech.measure` and its like, imported when first asked for, so that `import dlmech` and `dlmech --help` are instant."
    from importlib import import_module
    if name in FROM: return getattr(import_module(f'dlmech.{FROM[name]}'), name)
    raise AttributeError(f'module dlmech has no attribute {name}')
