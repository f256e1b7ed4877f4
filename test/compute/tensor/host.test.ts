import { describe, expect, expectTypeOf, it } from "vitest";
import { ShapeError } from "../../../src/base/errors.ts";
import { BYTES, type DType, typedArray } from "../../../src/compute/tensor/dtype.ts";
import { fromHalfBits, toHalfBits } from "../../../src/compute/tensor/half.ts";
import { f32, hostArray, i32 } from "../../../src/compute/tensor/host.ts";

describe("hostArray", () => {
  it("wraps data without copying it", () => {
    const data = Float32Array.of(1, 2, 3, 4);
    const x = hostArray("f32", [2, 2], data);
    data[0] = 9;
    expect(x.data[0]).toBe(9);
  });

  it("starts from zeros without data, and a scalar holds one element", () => {
    expect(hostArray("i64", [2])).toEqual({ dtype: "i64", shape: [2], data: BigInt64Array.of(0n, 0n) });
    expect(hostArray("f32", []).data).toHaveLength(1);
  });

  it("refuses another number of elements", () => {
    expect(() => hostArray("f32", [2, 2], Float32Array.of(1, 2, 3))).toThrow(
      new ShapeError({ where: "hostArray", rule: "shape [2,2] holds 4 elements", got: "3" }),
    );
    expect(() => f32([3], [1, 2])).toThrow("hostArray: shape [3] holds 3 elements; got 2.");
  });

  it("has the dtype in its type", () => {
    expectTypeOf(f32([1], [1]).data).toEqualTypeOf<Float32Array>();
    expectTypeOf(hostArray("i64", [1]).data).toEqualTypeOf<BigInt64Array>();
    expect(i32([2], [1, -1]).data).toEqual(Int32Array.of(1, -1));
  });
});

describe("typedArray", () => {
  it("has elements of as many bytes as the dtype", () => {
    for (const [dtype, bytes] of Object.entries(BYTES)) {
      expect(typedArray(dtype as DType, 3).byteLength, dtype).toBe(3 * bytes);
    }
  });

  it("views a buffer from an offset", () => {
    const buffer = new ArrayBuffer(16);
    typedArray("i32", 2, buffer, 8)[1] = 7;
    expect([...new Int32Array(buffer)]).toEqual([0, 0, 0, 7]);
  });
});

describe("half precision", () => {
  // Sign, exponent and fraction read off IEEE 754 binary16.
  it.each([
    [0, 0x0000],
    [-0, 0x8000],
    [1, 0x3c00],
    [-2, 0xc000],
    [0.5, 0x3800],
    [65504, 0x7bff],
    [2 ** -14, 0x0400],
    [2 ** -24, 0x0001],
    [1023 * 2 ** -24, 0x03ff],
    [1 / 3, 0x3555],
    [Infinity, 0x7c00],
    [-Infinity, 0xfc00],
  ])("%d has the bits %i", (x, bits) => {
    expect(toHalfBits(x)).toBe(bits);
    if (x !== 1 / 3) expect(fromHalfBits(bits)).toBe(x);
  });

  it("every half survives the way to a number and back", () => {
    for (let bits = 0; bits < 2 ** 16; bits++) {
      const x = fromHalfBits(bits);
      if (Number.isNaN(x)) expect(Number.isNaN(fromHalfBits(toHalfBits(x)))).toBe(true);
      else if (toHalfBits(x) !== bits) expect.fail(`${bits} became ${toHalfBits(x)}`);
    }
  });

  it("between neighbours the nearer is taken, and the even one from the middle", () => {
    // Non-negative halves are ordered as their bits are.
    for (let bits = 0; bits < 0x7bff; bits++) {
      const [low, high] = [fromHalfBits(bits), fromHalfBits(bits + 1)];
      const middle = (low + high) / 2;
      const even = bits % 2 === 0 ? bits : bits + 1;
      const nearer = [
        toHalfBits(low + (high - low) * 0.49),
        toHalfBits(middle),
        toHalfBits(low + (high - low) * 0.51),
      ];
      if (nearer.join() !== [bits, even, bits + 1].join()) expect.fail(`${low} … ${high}: ${nearer}`);
    }
  });

  it("what is half a step beyond the largest is infinite", () => {
    expect(toHalfBits(65519.99)).toBe(0x7bff);
    expect(toHalfBits(65520)).toBe(0x7c00);
    expect(toHalfBits(-1e30)).toBe(0xfc00);
    expect(toHalfBits(Number.NaN)).toBe(0x7e00);
  });
});
