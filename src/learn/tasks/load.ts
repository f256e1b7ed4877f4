/** Loading a user's task file: TypeScript or JavaScript whose default export is `defineTask({ … })`. */
import { stat } from "node:fs/promises";
import { resolve } from "node:path";
import { createJiti } from "jiti";
import { FileError, PonderaError, TaskError } from "../../base/errors.ts";
import { describe, isTaskDefinition, type PromptRow, type TaskDefinition } from "./task.ts";

async function expectFile(path: string): Promise<void> {
  const found = await stat(path).catch((cause: unknown) => {
    throw new FileError({
      where: path,
      rule: "must be a task file",
      got: (cause as Error).message,
      remedy: "Give the path of a .ts or .js file that exports defineTask({ … }) as default",
      cause,
    });
  });
  if (!found.isFile()) throw new FileError({ where: path, rule: "must be a task file", got: "a folder" });
}

/**
 * The task that a file defines. The file runs with the rights of this process, like any other code of the user's.
 * @param path    from the working directory
 * @param modules what its `import … from "pondera"` gives: modules by name that need not be installed beside the file
 * @throws FileError when there is no such file; TaskError when it fails on import, has no default export, or one that
 *   `defineTask` did not make; whatever `defineTask` itself throws
 */
export async function loadTask(
  path: string,
  modules: Readonly<Record<string, unknown>>,
): Promise<TaskDefinition<PromptRow>> {
  const file = resolve(path);
  await expectFile(file);
  // Nothing is cached on disk: a task file is small, and a cache would be written beside somebody's project.
  const jiti = createJiti(file, { virtualModules: { ...modules }, fsCache: false, interopDefault: false });
  let exports: Record<string, unknown>;
  try {
    exports = await jiti.import<Record<string, unknown>>(file);
  } catch (cause) {
    if (cause instanceof PonderaError) throw cause;
    throw new TaskError({
      where: path,
      rule: "must import without an error",
      got: cause instanceof Error ? `${cause.name}: ${cause.message}` : describe(cause),
      cause,
    });
  }
  const remedy = 'Write: import { defineTask } from "pondera"; export default defineTask({ … })';
  if (!("default" in exports)) {
    const names = Object.keys(exports).join(", ");
    throw new TaskError({
      where: path,
      rule: "must have a default export",
      got: names || "no exports",
      remedy,
    });
  }
  const task = exports["default"];
  if (isTaskDefinition(task)) return task;
  throw new TaskError({
    where: path,
    rule: "must export what defineTask returns",
    got: describe(task),
    remedy,
  });
}
