"""GGUF fixtures: blocks of every supported type with the values that gguf-py reads from them, and what gguf-py quantises.

Needs numpy and gguf alone. `test/reference/README.md` gives the versions, the command and the layout.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "gguf"
# Bytes of the scales, which are halves, in each type's block: random bits there would often be infinite or NaN.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
MADE_BY = {
    "madeBy": "test/reference/gguf_files.py",
    "versions": {"python": sys.version.split()[0], "gguf": version("gguf"), "numpy": numpy.__version__},
}


def random_blocks(random, name: str, shape: tuple[int, ...]) -> numpy.ndarray:
    """Every quant and small scale random; the halves of both signs, from subnormal to a few thousand, some zero."""
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    count = int(numpy.prod(shape)) // block
    blocks = random.integers(0, 256, (count, size), dtype=numpy.uint8)
    for at in SCALES[name]:
        halves = (random.choice([-1, 1], count) * 2.0 ** random.uniform(-26, 12, count)).astype(numpy.float16)
        halves[random.random(count) < 0.1] = 0
        blocks[:, at : at + 2] = halves.view(numpy.uint8).reshape(count, 2)
    return blocks.reshape(*shape[:-1], shape[-1] // block * size)


def blocks_file() -> None:
    """`blocks.gguf`: one tensor a type, and `blocks.json`: what gguf-py makes of each, as the hex of its float32."""
    random = numpy.random.default_rng(1)
    writer = GGUFWriter(FOLDER / "blocks.gguf", "llama")
    writer.add_uint8("value.uint8", 200)
    writer.add_int8("value.int8", -100)
    writer.add_uint16("value.uint16", 60000)
    writer.add_int16("value.int16", -30000)
    writer.add_uint32("value.uint32", 4000000000)
    writer.add_int32("value.int32", -2000000000)
    writer.add_uint64("value.uint64", 2**63 + 1)
    writer.add_int64("value.int64", -(2**62))
    writer.add_float32("value.float32", 0.1)
    writer.add_float64("value.float64", 0.1)
    writer.add_bool("value.bool", True)
    writer.add_string("value.string", "Grüße, 世界 🙂")
    writer.add_array("value.strings", ["", "a", "▁the", "\ufeff"])
    writer.add_array("value.ints", [1, -2, 3])
    writer.add_array("value.floats", [0.5, -0.25])
    writer.add_array("value.bools", [True, False])
    expected = {}
    for name in ["F32", "F16", "BF16", *SCALES]:
        kind = GGMLQuantizationType[name]
        shape = (2, 256)
        if name == "F32":
            data = random.standard_normal(shape, dtype=numpy.float32)
            values = data
        elif name == "F16":
            data = random.integers(0, 0x7C00, shape, dtype=numpy.uint16).view(numpy.float16)
            values = data.astype(numpy.float32)
        elif name == "BF16":
            data = random.integers(0, 0x7F80, shape, dtype=numpy.uint16).view(numpy.uint8).reshape(2, 512)
            values = dequantize(data, kind)
        else:
            data = random_blocks(random, name, shape)
            values = dequantize(data, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        expected[name] = values.astype("<f4").tobytes().hex()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = {tensor.name: tensor for tensor in GGUFReader(FOLDER / "blocks.gguf").tensors}
    assert len(read) == len(expected)
    save("blocks.json", {**MADE_BY, "shape": [2, 256], "values": expected})


def quantised_file() -> None:
    """`quantized.json`: floats, and the bytes that gguf-py quantises them to."""
    random = numpy.random.default_rng(2)
    rows = [random.standard_normal(64) * 10.0**power for power in (-6, -3, 0, 3)]
    # All zero; equal and opposite extremes, of which the first counts; values half a step apart; one value alone.
    # No block of negative zeros alone: gguf-py takes the scale's sign from the first of them, llama.cpp's own loop from none.
    rows += [numpy.zeros(64), numpy.tile([1.0, -1.0], 32), numpy.arange(64) / 2 - 16, -3 * numpy.eye(1, 64)[0] + 0.0]
    values = numpy.array(rows, dtype=numpy.float32)
    kinds = {name: quantize(values, GGMLQuantizationType[name]).tobytes().hex() for name in ("Q4_0", "Q8_0", "F16", "BF16")}
    save("quantized.json", {**MADE_BY, "shape": list(values.shape), "values": values.tobytes().hex(), "bytes": kinds})


def save(name: str, value: dict) -> None:
    (FOLDER / name).write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    blocks_file()
    quantised_file()
