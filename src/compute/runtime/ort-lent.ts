/**
 * Memory lent to ONNX Runtime, which says when it has no more use for it. Kernels lay out matrices anew in memory of their own, and
 * what they were made from is then read no more: as much again as the weights themselves.
 */

import koffi from "koffi";
import type { Handle } from "./ort-api.ts";

/** V8 keeps small arrays where it may move them; of this size it does not. */
const STRUCT_BYTES = 4096;

/** All that lend anything, by the address of their struct: what ONNX Runtime calls with it. */
const lenders = new Map<bigint, Lender>();

/** Made once: koffi has few callbacks. */
let callbacks: readonly [allocate: bigint, free: bigint, info: bigint] | undefined;

function makeCallbacks(): readonly [bigint, bigint, bigint] {
  const callback = (fn: (...args: never[]) => unknown, result: string, takes: string[]): bigint =>
    koffi.register(fn, koffi.pointer(koffi.proto(result, takes)));
  return [
    callback(() => null, "void *", ["void *", "size_t"]),
    callback((self: bigint, address: bigint) => lenders.get(self)?.give(address), "void", [
      "void *",
      "void *",
    ]),
    callback((self: bigint) => lenders.get(self)?.memoryInfo ?? null, "void *", ["void *"]),
  ];
}

/** Who lends memory to one session. */
export class Lender {
  readonly memoryInfo: Handle;
  /** `struct OrtAllocator`, as the deleter of values. @source onnxruntime/core/session/onnxruntime_c_api.h */
  readonly #struct = new BigUint64Array(new ArrayBuffer(STRUCT_BYTES));
  readonly #lent = new Map<bigint, () => void>();

  constructor(memoryInfo: Handle) {
    this.memoryInfo = memoryInfo;
    callbacks ??= makeCallbacks();
    // The first is its version, that of the API: number 1 has just these three functions.
    this.#struct.set([1n, ...callbacks]);
    lenders.set(this.address, this);
  }

  get address(): bigint {
    return koffi.address(this.#struct.buffer);
  }

  /**
   * @param address   of memory that a value is about to be made over, with this as its deleter; one value each
   * @param returned  called when no value is over it any more
   */
  lend(address: bigint, returned: () => void): void {
    this.#lent.set(address, returned);
  }

  give(address: bigint): void {
    const returned = this.#lent.get(address);
    this.#lent.delete(address);
    returned?.();
  }

  /** Once the session is released: nothing is lent any more. */
  dispose(): void {
    lenders.delete(this.address);
  }
}
