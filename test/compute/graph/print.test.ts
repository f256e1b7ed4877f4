import { expect, it } from "vitest";
import { grad } from "../../../src/compute/grad/reverse.ts";
import {
  add,
  cachedAttention,
  concat,
  constant,
  exp,
  gatherRows,
  matmul,
  neg,
  rmsNorm,
  slice,
  sum,
} from "../../../src/compute/graph/primitives.ts";
import { printGraph } from "../../../src/compute/graph/print.ts";
import { checkGraph, trace } from "../../../src/compute/graph/trace.ts";
import { silu } from "../../../src/compute/ops/stable.ts";
import { f32, i32 } from "../../../src/compute/tensor/host.ts";

it("prints a small program with its gradient", () => {
  const graph = trace(
    {
      x: { dtype: "f32", shape: [4, 2] },
      w: { dtype: "f32", shape: [2, 3] },
      b: { dtype: "f32", shape: [3] },
    },
    ({ x, w, b }) => {
      const loss = sum(silu(add(matmul(x, w), b)));
      const [dw, db] = grad(loss, [w, b]);
      return { loss, dw: dw!, db: db! };
    },
  );
  checkGraph(graph);
  expect(printGraph(graph)).toMatchInlineSnapshot(`
    "input  %0: f32[4,2] = x
    input  %1: f32[2,3] = w
    input  %2: f32[3] = b
    %3: f32[4,3] = matmul %0 %1
    %4: f32[4,3] = add %3 %2
    %5: f32[4,3] = sigmoid %4
    %6: f32[4,3] = mul %4 %5
    %7: f32[] = reduceSum{axes=[0,1] keepDims=false} %6
    %8: f32[] = constant{1}
    %9: f32[1,1] = reshape{shape=[1,1]} %8
    %10: f32[4,3] = broadcast{shape=[4,3]} %9
    %11: f32[4,3] = mul %10 %5
    %12: f32[4,3] = mul %10 %4
    %13: f32[4,3] = sub %8 %5
    %14: f32[4,3] = mul %5 %13
    %15: f32[4,3] = mul %12 %14
    %16: f32[4,3] = add %11 %15
    %17: f32[1,3] = reduceSum{axes=[0] keepDims=true} %16
    %18: f32[3] = reshape{shape=[3]} %17
    %19: f32[2,4] = transpose{permutation=[1,0]} %0
    %20: f32[2,3] = matmul %19 %16
    output loss = %7
    output dw = %20
    output db = %18"
  `);
});

it("prints attributes, the first elements of constants and several outputs", () => {
  const graph = trace(
    {
      ids: { dtype: "i32", shape: [1] },
      q: { dtype: "f32", shape: [1, 1, 16] },
      cache: { dtype: "f32", shape: [1, 1, 4, 16] },
      cos: { dtype: "f32", shape: [4, 8] },
    },
    ({ ids, q, cache, cos }) => {
      const table = constant(ids, f32([5, 1], [1, 2.5, 3, 4, 5]));
      const rows = rmsNorm(gatherRows(table, ids), constant(ids, f32([1], [1])), { epsilon: 1e-6 });
      const { attended, values } = cachedAttention(
        {
          q,
          k: q,
          v: q,
          pastKeys: cache,
          pastValues: cache,
          lengths: ids,
          total: constant(ids, i32([1], [1])),
          cos,
          sin: cos,
        },
        { heads: 1, kvHeads: 1, scale: 0.25 },
      );
      return { rows: concat([rows, rows], 0), part: slice(attended, 2, 0, 4), values };
    },
  );
  expect(printGraph(graph)).toMatchInlineSnapshot(`
    "input  %0: i32[1] = ids
    input  %1: f32[1,1,16] = q
    input  %2: f32[1,1,4,16] = cache
    input  %3: f32[4,8] = cos
    %4: f32[5,1] = constant{1, 2.5, 3, 4, …}
    %5: f32[1,1] = gatherRows %4 %0
    %6: f32[1] = constant{1}
    %7: f32[1,1] = rmsNorm{epsilon=0.000001} %5 %6
    %8: i32[1] = constant{1}
    %9: f32[1,1,16], %10: f32[1,1,4,16], %11: f32[1,1,4,16] = cachedAttention{heads=1 kvHeads=1 scale=0.25} %1 %1 %1 %2 %2 %0 %8 %3 %3
    %12: f32[2,1] = concat{axis=0} %7 %7
    %13: f32[1,1,4] = slice{axis=2 start=0 end=4} %9
    output rows = %12
    output part = %13
    output values = %11"
  `);
});

it("numbers values without gaps, whatever tracing threw away", () => {
  const specs = { x: { dtype: "f32", shape: [2] } } as const;
  const plain = trace(specs, ({ x }) => ({ y: exp(x) }));
  const wasteful = trace(specs, ({ x }) => {
    neg(neg(x));
    return { y: exp(x) };
  });
  expect(printGraph(wasteful)).toBe(printGraph(plain));
});
