"""What every reference script shares: a deterministic torch, and fixture files that hold float32 values exactly.

Not run by itself. `test/reference/README.md` gives the versions, the commands and the layout of each fixture.
"""

import json
import sys
from pathlib import Path

import numpy
import torch

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def deterministic(seed: int) -> torch.Generator:
    """One thread, float32, deterministic kernels; returns the generator that a script draws its inputs from."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def versions(*modules) -> dict[str, str]:
    """Versions that made a fixture: Python, torch and the given modules."""
    return {"python": sys.version.split()[0]} | {m.__name__: m.__version__ for m in (torch, *modules)}


def shortest(values: torch.Tensor) -> list[float]:
    """Of each float32 value the double with the fewest digits that rounds to it."""
    singles = values.detach().to(torch.float32).reshape(-1).numpy()
    short = [float(str(single)) for single in singles]
    assert numpy.array_equal(numpy.array(short).astype(numpy.float32), singles, equal_nan=True)
    return short


def record(value) -> object:
    """A tensor as `{dtype, shape, data}`, data flat in row-major order, floats in the fewest digits."""
    if not isinstance(value, torch.Tensor):
        return value
    dtype = "f32" if value.is_floating_point() else "i32"
    data = shortest(value) if dtype == "f32" else value.detach().to(torch.int32).reshape(-1).tolist()
    return {"dtype": dtype, "shape": list(value.shape), "data": data}


def _render(value, indent: str) -> str:
    value = record(value)
    if isinstance(value, numpy.generic):
        value = value.item()
    deeper = indent + "  "
    if isinstance(value, dict):
        if value.keys() == {"dtype", "shape", "data"}:
            return json.dumps(value, allow_nan=False)
        rows = [f"{deeper}{json.dumps(key)}: {_render(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}" if rows else "{}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, torch.Tensor)) for item in value):
        return "[\n" + ",\n".join(deeper + _render(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def write_json(name: str, value: dict) -> None:
    """Writes `test/fixtures/<name>`: an entry a line, a tensor a line; NaN and infinity are refused."""
    path = FIXTURES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(value, "") + "\n")
    print(f"{path.relative_to(FIXTURES.parent.parent)}: {path.stat().st_size} bytes")
