from ..formulas import plain as _p

forward = _p.forward


def backward(dy, x, bias, dim, approximate, needs):
    return _p.backward(dy, x, bias, dim, approximate, *needs)
