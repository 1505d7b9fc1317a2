"""A device that is not there, with numbers that are: what a GPU would refuse is refused, all else is done on
the CPU. torch has FakeTensorMode for that, without numbers: `test_fake.py` goes as far as it goes."""
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
# what takes tensors of the CPU beside others: copies, and indices
MIXING = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_,
          aten.set_, aten._unsafe_index}


class There(Tensor):
    "A tensor that says it is on another device; its numbers are `here`."
    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor, device: torch.device) -> 'There':
        made = Tensor._make_wrapper_subclass(cls, here.shape, strides=here.stride(), dtype=here.dtype,
                                             storage_offset=here.storage_offset(), device=device,
                                             requires_grad=here.requires_grad)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        device = next(a.device for a in tree_flatten((args, kwargs))[0] if isinstance(a, There))
        return dispatch(device, func, args, kwargs or {})

    @property
    def data(self) -> 'There': return self.detach()

    @data.setter
    def data(self, value: 'There') -> None:
        torch._C.TensorBase.data.__set__(self, value)
        self.here = value.here

    def tolist(self) -> list: return self.here.tolist()  # torch has none for subclasses

    def numpy(self, **kwargs): raise TypeError(f"can't convert a tensor on {self.device} to numpy")

    def __format__(self, spec: str) -> str: return format(self.here, spec)

    def __array__(self, *args, **kwargs): return self.numpy()

    def __deepcopy__(self, memo) -> 'There':
        copied = There(self.here.detach().clone(), self.device).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter): copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)


def refuse(func, plain: list, device: torch.device, kwargs: dict) -> None:
    "Raises what a GPU raises for tensors of the CPU beside its own, and for a generator of the CPU."
    if func.overloadpacket in MIXING: return
    wrong = [tuple(t.shape) for t in plain if t.ndim]
    if wrong: raise RuntimeError(f'{func}: tensors {wrong} are on the CPU, others on {device}')
    if isinstance(kwargs.get('generator'), torch.Generator):
        raise RuntimeError(f'{func}: a generator of the CPU for tensors on {device}')


def dispatch(device: torch.device, func, args: tuple, kwargs: dict):
    "What an operation gives, on the device on which it would be."
    given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = [t for t in given if isinstance(t, There)]
    asked = kwargs.get('device')
    on = torch.device(asked).type == device.type if asked is not None else bool(there)
    if there: refuse(func, [t for t in given if not isinstance(t, There)], device, kwargs)
    elif on and isinstance(kwargs.get('generator'), torch.Generator): refuse(func, [], device, kwargs)
    if func.overloadpacket is aten.copy_: on = isinstance(args[0], There)
    if on and asked is not None: kwargs = kwargs | dict(device=torch.device('cpu'))
    was = {id(t.here): t for t in there}  # what is changed in place stays the tensor that it is
    real = lambda v: v.here if isinstance(v, There) else v
    out = func(*tree_map(real, args), **tree_map(real, kwargs))
    if not on: return out
    wrap = lambda v: was[id(v)] if id(v) in was else There(v, device)
    return tree_map(lambda v: wrap(v) if isinstance(v, Tensor) else v, out)


class Pretended(TorchDispatchMode):
    "Inside, there is another device of that name."
    def __init__(self, name: str):
        super().__init__()
        self.device = torch.device(name, 0)

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *exc):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*exc)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(self.device, func, args, kwargs or {})
