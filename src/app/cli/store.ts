/** What the commands on stored models share. */

import { storePlace } from "../../model/store/place.ts";
import { ModelStore } from "../../model/store/store.ts";
import type { Io } from "./io.ts";
import { printable } from "./text.ts";

/** Where models are kept, an option of every command that takes or changes one. */
export const STORE_OPTION = [
  "--store <folder>",
  "folder that holds pulled models; PONDERA_HOME or the platform's data folder if left out",
] as const;

export interface StoreOptions {
  readonly store?: string;
}

export function openStore(options: StoreOptions, io: Pick<Io, "env">): ModelStore {
  return new ModelStore(storePlace(options.store, io.env));
}

/** Says on standard error which models are broken and therefore left out. */
export function unreadableTo(io: Pick<Io, "stderr">): (error: Error) => void {
  return (error) => io.stderr.write(`left out: ${printable(error.message)}\n`);
}
