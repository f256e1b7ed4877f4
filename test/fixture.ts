/** Reading what the scripts in test/reference/ left in test/fixtures/; the layout is in test/reference/README.md. */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { f32, type HostArray, i32 } from "../src/compute/tensor/host.ts";
import type { Shape } from "../src/compute/tensor/shape.ts";

/** A tensor as the JSON fixtures hold it. */
export interface StoredArray<D extends "f32" | "i32" = "f32" | "i32"> {
  readonly dtype: D;
  readonly shape: Shape;
  readonly data: readonly number[];
}

export const fixturePath = (name: string): string =>
  fileURLToPath(new URL(`./fixtures/${name}`, import.meta.url));

/** A JSON fixture; the caller knows its layout. */
export function readFixture<T>(name: string): T {
  return JSON.parse(readFileSync(fixturePath(name), "utf8")) as T;
}

export function toHost<D extends "f32" | "i32">({ dtype, shape, data }: StoredArray<D>): HostArray<D> {
  return (dtype === "f32" ? f32(shape, data) : i32(shape, data)) as HostArray<D>;
}
