__version__ = "0.1.0"

def __getattr__(name):
    "`dlmech.measure`, imported when it is first asked for, so that `import dlmech` and `dlmech --help` are instant."
    if name in ('measure', 'Measurement'):
        from dlmech import network
        return getattr(network, name)
    raise AttributeError(f'module dlmech has no attribute {name}')
