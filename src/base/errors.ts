/**
 * Errors are data first, prose second. Every error a user can cause carries `where`, the `rule` that was broken,
 * what was `got` instead and the `remedy`; the message renders as `where: rule; got what. Remedy.`
 */

export interface ErrorParts {
  /** Where it happened, in the user's terms: `attention (layer 3)`, `config.json: hidden_size`, `--depth`. */
  readonly where: string;
  /** The rule that was broken: `Hk must divide H`. */
  readonly rule: string;
  /** What was found instead, with the values that matter. */
  readonly got?: string;
  /** What to do next, as a sentence without its full stop, or as a question with its mark. */
  readonly remedy?: string;
  readonly cause?: unknown;
}

/** Longest that a place or a value is shown: both may come from a file, and be as long as it is. */
const LONGEST_SHOWN = 1000;

const shown = (text: string): string =>
  text.length > LONGEST_SHOWN ? `${text.slice(0, LONGEST_SHOWN)}…` : text;

function render(parts: ErrorParts): string {
  const got = parts.got === undefined ? "" : `; got ${shown(parts.got)}`;
  const remedy =
    parts.remedy === undefined ? "" : ` ${/[.?!]$/.test(parts.remedy) ? parts.remedy : `${parts.remedy}.`}`;
  return `${shown(parts.where)}: ${parts.rule}${got}.${remedy}`;
}

/** Base of every error that a user, a file, a model or a request can cause. */
export class PonderaError extends Error {
  readonly where: string;
  readonly rule: string;
  readonly got: string | undefined;
  readonly remedy: string | undefined;

  constructor(parts: ErrorParts) {
    super(render(parts), parts.cause === undefined ? undefined : { cause: parts.cause });
    this.name = new.target.name;
    this.where = parts.where;
    this.rule = parts.rule;
    this.got = parts.got;
    this.remedy = parts.remedy;
  }
}

/** Shapes or axes that do not fit together. */
export class ShapeError extends PonderaError {}
/** A dtype that an operation does not take. */
export class DTypeError extends PonderaError {}
/** An option, flag or configuration value outside its rule. */
export class ConfigError extends PonderaError {}
/** A file that cannot be read, written or found. */
export class FileError extends PonderaError {}
/** Content (of a file, a model's output, a request) that breaks its format. */
export class FormatError extends PonderaError {}
/** A loss, gradient or statistic that is not a finite number. */
export class NumericError extends PonderaError {}
/** A server that cannot be reached, refuses, or says what it should not. */
export class NetworkError extends PonderaError {}
/** A user's task that broke its contract: a reward that throws, a prompt that is no text. */
export class TaskError extends PonderaError {}
/** The native runtime is missing, of the wrong version or failed. */
export class RuntimeError extends PonderaError {}

/** A state our own code must never reach; not for user mistakes. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`invariant broken: ${message}`);
}

/** Edit distance, for suggesting the nearest name; small inputs only. */
function distance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const swap = previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      current.push(Math.min(previous[j]! + 1, current[j - 1]! + 1, swap));
    }
    previous = current;
  }
  return previous[b.length]!;
}

/** The known name that is nearest to one that somebody typed; undefined when none is known. */
export function nearestOf(name: string, known: readonly string[]): string | undefined {
  return [...known].sort((a, b) => distance(a, name) - distance(b, name))[0];
}

/**
 * Fails on a name that is not among `known`, suggesting the nearest.
 * @throws ConfigError naming `where`, the unknown name and the nearest known one
 */
export function expectKnown(where: string, name: string, known: readonly string[]): void {
  if (known.includes(name)) return;
  const near = nearestOf(name, known);
  throw new ConfigError({
    where,
    rule: `must be one of ${known.join(", ")}`,
    got: JSON.stringify(name),
    ...(near === undefined ? {} : { remedy: `Did you mean ${JSON.stringify(near)}?` }),
  });
}
