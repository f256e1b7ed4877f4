import { chmod } from "node:fs/promises";

/** An account without rights: nobody's, by the number it has on Linux. */
const NOBODY = 65534;

/**
 * Does something in a folder that may be read and not written to. Root may write anywhere, so where the tests run as root they
 * give up its rights meanwhile.
 * @param folder  and those above it that the test made, outermost first: others may then pass through
 */
export async function unprivileged<T>(folders: readonly string[], act: () => Promise<T>): Promise<T> {
  for (const folder of folders) await chmod(folder, 0o555);
  const isRoot = process.geteuid?.() === 0;
  if (isRoot) process.seteuid!(NOBODY);
  try {
    return await act();
  } finally {
    if (isRoot) process.seteuid!(0);
    for (const folder of folders) await chmod(folder, 0o755);
  }
}
