/** koffi as everybody here needs it. */

import koffi from "koffi";

/** Kernels recurse, and the calling thread works as one of the pool's: koffi's 128 KiB for async calls overflows. */
const STACK_BYTES = 8 << 20;

/** koffi, its stacks raised: which it allows only before it loads its first library, whoever is the first to ask for one. */
export function foreign(): typeof koffi {
  const { sync_stack_size = 0, async_stack_size = 0 } = koffi.config();
  if (sync_stack_size < STACK_BYTES || async_stack_size < STACK_BYTES) {
    koffi.config({ sync_stack_size: STACK_BYTES, async_stack_size: STACK_BYTES });
  }
  return koffi;
}
