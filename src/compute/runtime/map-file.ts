/**
 * A file as memory: its pages are read when they are touched, are the system's own copy of them, which all processes share, and
 * may be dropped and read again. What is written there stays in this process.
 *
 * A file that becomes shorter while it is mapped ends the process when what is missing is touched. So only what must stay in
 * memory as it is stored is mapped; everything else is read by position, and is an error that can be named.
 */

/** Where `mmap` is and what its flags are; Windows has another call for it and does without. */
const POSIX = process.platform === "linux" || process.platform === "darwin";
const PROT_READ_WRITE = 1 | 2;
const MAP_PRIVATE = 2;
const FAILED = 2n ** 64n - 1n;

interface Mapper {
  map(fd: number, bytes: number): ArrayBuffer | undefined;
}

async function openMapper(): Promise<Mapper | undefined> {
  if (!POSIX) return undefined;
  try {
    // Not at once: koffi's native part is optional.
    const { foreign } = await import("./ffi.ts");
    const koffi = foreign();
    const libc = koffi.load(null);
    const mmap = libc.func("mmap", "uintptr_t", ["void *", "size_t", "int", "int", "int", "int64_t"]);
    const munmap = libc.func("munmap", "int", ["uintptr_t", "size_t"]);
    const unused = new FinalizationRegistry<readonly [address: bigint, bytes: number]>(([address, bytes]) => {
      munmap(address, bytes);
    });
    return {
      map(fd, bytes) {
        const address = BigInt(mmap(null, bytes, PROT_READ_WRITE, MAP_PRIVATE, fd, 0) as bigint | number);
        if (address === FAILED) return undefined;
        const buffer = koffi.view(address, bytes);
        unused.register(buffer, [address, bytes]);
        return buffer;
      },
    };
  } catch {
    return undefined;
  }
}

let mapper: Promise<Mapper | undefined> | undefined;

/**
 * Maps the first `bytes` bytes of an open file, which must be there, until nobody holds the buffer any more.
 * @returns undefined where files cannot be mapped: on Windows, without koffi's native part, on some file systems
 */
export async function mapFile(fd: number, bytes: number): Promise<ArrayBuffer | undefined> {
  mapper ??= openMapper();
  return bytes === 0 ? undefined : (await mapper)?.map(fd, bytes);
}
