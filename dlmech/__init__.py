"""dlmech measures what every filter of a trained network does. `dir(dlmech)` is what a user types; the rest lives in
its module. Nothing is imported before it is asked for, so `import dlmech` needs no torch."""
__version__ = "0.1.0"

FROM = {'DlmechError': 'run.DlmechError', 'Measurement': 'measurement.Measurement', 'data': 'datasets.get_data',
        'dilute': 'pruning.afcc.dilute', 'explore': 'look.explore.explore', 'load': 'model.load',
        'measure': 'measurement.measure', 'measure_run': 'measurement.measure_run', 'network': 'arch.get_model',
        'open': 'measurement.open_measurement', 'own_head': 'measurement.own_head', 'prune': 'pruning.prune.prune',
        'repair': 'pruning.repair.repair', 'report': 'look.report.report', 'start': 'model.start',
        'zoo': 'model.zoo'}
__all__ = list(FROM)


def __dir__(): return __all__


def __getattr__(name):
    "What is imported when it is first asked for."
    from importlib import import_module
    if name not in FROM: raise AttributeError(f'module dlmech has no attribute {name}')
    module, _, attribute = FROM[name].rpartition('.')
    return getattr(import_module(f'dlmech.{module}'), attribute)
