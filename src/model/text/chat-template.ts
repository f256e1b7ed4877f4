/**
 * Chat templates: the Jinja program in a model's files that writes a conversation the way the model was trained to read it.
 *
 * It comes with the model and is not trusted. @huggingface/jinja runs it without access to anything but its variables; what
 * it may use up is bounded here. Time, by a wall ({@link withinTime}). Memory, by weighing every value that comes to be: its
 * size when written out, shared parts counted each time, since a list of a list of a list, twice each, is short to make and
 * long to print. What multiplies lengths before there is a value to weigh (`range`, `replace`, `join`, …) is checked first.
 *
 * @source huggingface.co/docs/transformers/chat_templating; the functions beside Jinja's own are transformers'
 */

import { join } from "node:path";
import { z } from "zod";
import { FileError, FormatError } from "../../base/errors.ts";
import { readText } from "../../base/files.ts";
import { Environment, Interpreter, type Node, parse, tokenize, type Value } from "./jinja.ts";
import { withinTime } from "./time-limit.ts";
import { parseTokenizerJson, readTokenizerFiles, tokenizerPaths } from "./tokenizer-files.ts";

export interface ChatMessage {
  readonly role: string;
  readonly content: unknown;
  /** Whatever else the template reads: tool calls, a name. */
  readonly [field: string]: unknown;
}

export interface RenderOptions {
  /** Whether the text ends where the assistant is to go on. @default true */
  readonly addGenerationPrompt?: boolean;
  /** Further variables of the template: `tools`, `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

/** Longest source of a template, in UTF-16 units; the longest in use have 20,000. */
const LONGEST_SOURCE = 2 ** 20;
/** A character takes at most four. */
const MOST_BYTES = 4 * LONGEST_SOURCE;
const LONGEST_MS = 3_000;
/** Most entries of a list. */
const MOST_ITEMS = 2 ** 16;
/** Heaviest value, and heaviest sum of all that come to be: about a character each, and more for what is no text. */
const HEAVIEST = 2 ** 23;
const HEAVIEST_SUM = 2 ** 26;
/** What a value weighs beside its text: about what it takes in memory, in units of a character. */
const VALUE_WEIGHT = 32;
/** Widest indentation. */
const WIDEST = 256;

/** Thrown within, and turned into a FormatError by {@link renderTemplate}. */
class LimitReached extends Error {}
/** What `raise_exception` throws. */
class Refused extends Error {}

const tooMuch = (what: string): never => {
  throw new LimitReached(what);
};

/** Nodes that make no value of their own: they name one, or are written in the source. */
const FREE: ReadonlySet<string> = new Set([
  "Identifier",
  "StringLiteral",
  "IntegerLiteral",
  "FloatLiteral",
  "Comment",
]);

/** Filters whose result may be longer than their operand by a factor that an argument gives. */
const MULTIPLYING: ReadonlySet<string> = new Set(["replace", "join", "indent", "tojson"]);

/** What a bound value's name begins with. */
const BOUND = "\0";
const identifier = (value: string) => ({ type: "Identifier", value }) as Node & { readonly value: string };

/** The nodes that are looked into, as the parser makes them. */
interface Named extends Node {
  readonly value: string;
}
interface Keyword extends Node {
  readonly key: Named;
  readonly value: Node;
}
type Argument = Node | Keyword;
interface Member extends Node {
  readonly object: Node;
  readonly property: Node & { readonly value?: unknown };
  readonly computed: boolean;
}
interface Call extends Node {
  readonly callee: Node;
  readonly args: readonly Argument[];
}
interface Filtered extends Node {
  readonly operand: Node;
  /** A name, or a call of one. */
  readonly filter: Node & { readonly callee?: Named; readonly args?: readonly Argument[] };
}

/** An argument of a call, with its name if it has one. */
interface Given {
  readonly key: string | undefined;
  readonly value: Value;
}

/** Occurrences of a text in another; of the empty one, the places between characters and at the ends. */
function occurrences(text: string, part: string): number {
  if (part === "") return text.length + 1;
  let count = 0;
  for (let at = text.indexOf(part); at !== -1; at = text.indexOf(part, at + part.length)) count++;
  return count;
}

class BoundedInterpreter extends Interpreter {
  /** Weights of lists and mappings, which never change; namespaces do, and are weighed anew. */
  readonly #weights = new WeakMap<object, number>();
  #sum = 0;
  #names = 0;

  override evaluate(statement: Node | undefined, environment: Environment): Value {
    if (statement === undefined) return super.evaluate(statement, environment);
    // The first entry of an empty list comes as JavaScript's undefined.
    const value: Value =
      super.evaluate(...this.#checked(statement, environment)) ?? super.evaluate(undefined, environment);
    const { type } = statement;
    if (FREE.has(type) && value.type !== "NamespaceValue") return value;
    const weight = this.#weigh(value);
    if (type === "MemberExpression") {
      const { object, property } = statement as Member;
      if (value.type === "FunctionValue" && !this.#isBound(object)) tooMuch("a method apart from its call");
      // A member is a part of something that has been counted; a slice is new.
      if (property.type !== "SliceExpression") return value;
    }
    this.#sum += weight;
    if (this.#sum > HEAVIEST_SUM) tooMuch("more text and lists altogether than a template may make");
    return value;
  }

  /** The size of a value, written out. A namespace may stand nowhere but in a variable, or it could come to hold itself. */
  #weigh(value: Value | undefined): number {
    if (value === undefined) return VALUE_WEIGHT;
    let weight = VALUE_WEIGHT;
    switch (value.type) {
      case "StringValue":
        weight += (value.value as string).length;
        break;
      case "ArrayValue":
      case "TupleValue":
      case "ObjectValue":
      case "NamespaceValue": {
        const known = this.#weights.get(value);
        if (known !== undefined) return known;
        const parts = value.value as Value[] | Map<string, Value>;
        if ((Array.isArray(parts) ? parts.length : parts.size) > MOST_ITEMS) {
          tooMuch(`a list of more than ${MOST_ITEMS} entries`);
        }
        if (!Array.isArray(parts)) for (const key of parts.keys()) weight += key.length;
        for (const part of parts.values()) {
          if (part?.type === "NamespaceValue") tooMuch("a namespace inside another value");
          weight += this.#weigh(part);
        }
        if (value.type !== "NamespaceValue") this.#weights.set(value, weight);
        break;
      }
    }
    if (weight > HEAVIEST) tooMuch(`a value of more than ${HEAVIEST} characters`);
    return weight;
  }

  /** The same node, with operand and arguments evaluated and checked where the operation could multiply their lengths. */
  #checked(statement: Node, environment: Environment): [Node, Environment] {
    switch (statement.type) {
      case "FilterStatement": {
        // The block's text, unfiltered; then the filter as that of an expression.
        const { filter } = statement as Filtered;
        const scope = new Environment(environment);
        const block = super.evaluate({ ...statement, filter: identifier("safe") } as Node, environment);
        const operand = this.#bind(scope, block).node;
        return this.#checkedFilter({ type: "FilterExpression", operand, filter } as Filtered, scope);
      }
      case "FilterExpression":
        return this.#checkedFilter(statement as Filtered, environment);
      case "CallExpression":
        return this.#checkedCall(statement as Call, environment);
      default:
        return [statement, environment];
    }
  }

  #checkedFilter(statement: Filtered, environment: Environment): [Node, Environment] {
    const { operand, filter } = statement;
    const name = filter.callee?.value;
    if (typeof name !== "string" || !MULTIPLYING.has(name)) return [statement, environment];
    const scope = new Environment(environment);
    const subject = this.#bind(scope, this.evaluate(operand, environment));
    const args = this.#bindArguments(filter.args ?? [], environment, scope);
    this.#checkProduct(name, subject.value, args.values);
    return [{ ...statement, operand: subject.node, filter: { ...filter, args: args.nodes } } as Node, scope];
  }

  #checkedCall(statement: Call, environment: Environment): [Node, Environment] {
    const { callee, args } = statement;
    if (callee.type !== "MemberExpression") return [statement, environment];
    const member = callee as Member;
    const scope = new Environment(environment);
    const subject = this.#bind(scope, this.evaluate(member.object, environment));
    const bound = { ...member, object: subject.node };
    if (subject.value.type !== "StringValue") return [{ ...statement, callee: bound } as Node, scope];
    const name = member.computed ? this.evaluate(member.property, environment).value : member.property.value;
    if (name !== "replace" && name !== "split") return [{ ...statement, callee: bound } as Node, scope];
    const checked = this.#bindArguments(args, environment, scope);
    this.#checkProduct(name, subject.value, checked.values);
    return [{ ...statement, callee: bound, args: checked.nodes } as Node, scope];
  }

  /** Puts a value under a name that no template can write, so that it is not evaluated twice. */
  #bind(scope: Environment, value: Value): { readonly value: Value; readonly node: Node } {
    const node = identifier(`${BOUND}${this.#names++}`);
    scope.setVariable(node.value, value);
    return { value, node };
  }

  #isBound(node: Node & { readonly value?: unknown }): boolean {
    return typeof node.value === "string" && node.type === "Identifier" && node.value.startsWith(BOUND);
  }

  #bindArguments(args: readonly Argument[], environment: Environment, scope: Environment) {
    const values: Given[] = [];
    const nodes = args.map((arg) => {
      if (arg.type === "SpreadExpression" || arg.type === "KeywordSpreadExpression") {
        return tooMuch("arguments by * where lengths multiply");
      }
      const keyword = arg.type === "KeywordArgumentExpression" ? (arg as Keyword) : undefined;
      const bound = this.#bind(scope, this.evaluate(keyword?.value ?? arg, environment));
      values.push({ key: keyword?.key.value, value: bound.value });
      return keyword === undefined ? bound.node : { ...keyword, value: bound.node };
    });
    return { values, nodes };
  }

  #checkProduct(name: string, subject: Value, args: readonly Given[]): void {
    const get = (position: number, key: string): unknown =>
      (args.find((arg) => arg.key === key) ?? args.filter((arg) => arg.key === undefined)[position])?.value
        .value;
    const length = (value: unknown): number => (typeof value === "string" ? value.length : 0);
    const text = typeof subject.value === "string" ? subject.value : "";
    const weight = this.#weigh(subject);
    const check = (size: number): void => {
      if (size > HEAVIEST) tooMuch(`a value of more than ${HEAVIEST} characters`);
    };
    switch (name) {
      case "replace": {
        const old = get(0, "old");
        if (typeof old === "string") check(text.length + occurrences(text, old) * length(get(1, "new")));
        break;
      }
      case "split": {
        const separator = get(0, "sep");
        const parts = typeof separator === "string" ? occurrences(text, separator) : (text.length + 1) / 2;
        // Between blanks there are at most half as many words as characters; the exact number matters only of long texts.
        const most =
          typeof separator === "string" || parts < MOST_ITEMS ? parts : (text.match(/\s+/g)?.length ?? 0);
        if (most >= MOST_ITEMS) tooMuch(`a list of more than ${MOST_ITEMS} entries`);
        break;
      }
      case "join": {
        const count = text === "" && Array.isArray(subject.value) ? subject.value.length : text.length;
        check(weight + count * length(get(0, "separator")));
        break;
      }
      default: {
        const width = get(0, name === "indent" ? "width" : "indent");
        if (typeof width === "number" && width > WIDEST) tooMuch(`an indentation of more than ${WIDEST}`);
        const separators = args.find((arg) => arg.key === "separators")?.value;
        const separating = separators === undefined ? 0 : this.#weigh(separators);
        const lines = name === "indent" ? occurrences(text, "\n") + 1 : weight / VALUE_WEIGHT;
        check(weight + lines * (separating + (typeof width === "number" ? width : 4)));
      }
    }
  }
}

const MONTHS = Array.from({ length: 12 }, (_, month) => new Date(2000, month, 1));
const DAYS = Array.from({ length: 7 }, (_, day) => new Date(2000, 0, 2 + day));
const inEnglish = (dates: readonly Date[], options: Intl.DateTimeFormatOptions): string[] => {
  const format = new Intl.DateTimeFormat("en-US", options);
  return dates.map((date) => format.format(date));
};
/** Made when a template first asks: formats take milliseconds, and few templates name a day. */
const namesOf = () => ({
  B: inEnglish(MONTHS, { month: "long" }),
  b: inEnglish(MONTHS, { month: "short" }),
  A: inEnglish(DAYS, { weekday: "long" }),
  a: inEnglish(DAYS, { weekday: "short" }),
});
let names: ReturnType<typeof namesOf> | undefined;

/** Python's strftime, in English, as far as templates use it; codes that it does not know stay as they are. */
function strftime(date: Date, format: string): string {
  const two = (value: number): string => `${value}`.padStart(2, "0");
  names ??= namesOf();
  const codes: Readonly<Record<string, string>> = {
    Y: `${date.getFullYear()}`,
    y: two(date.getFullYear() % 100),
    m: two(date.getMonth() + 1),
    d: two(date.getDate()),
    H: two(date.getHours()),
    I: two(date.getHours() % 12 || 12),
    p: date.getHours() < 12 ? "AM" : "PM",
    M: two(date.getMinutes()),
    S: two(date.getSeconds()),
    B: names.B[date.getMonth()]!,
    b: names.b[date.getMonth()]!,
    A: names.A[date.getDay()]!,
    a: names.a[date.getDay()]!,
    "%": "%",
  };
  return format.replace(/%([A-Za-z%])/g, (whole, code: string) => codes[code] ?? whole);
}

function rangeOf(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop];
  if (![from, to, step].every(Number.isSafeInteger) || step === 0)
    throw new Error("range takes whole numbers");
  const count = Math.max(0, Math.ceil((to - from) / step));
  if (count > MOST_ITEMS) tooMuch(`a list of more than ${MOST_ITEMS} entries`);
  return Array.from({ length: count }, (_, i) => from + i * step);
}

function environmentOf(variables: Readonly<Record<string, unknown>>, now: () => Date): Environment {
  const environment = new Environment();
  const globals: Readonly<Record<string, unknown>> = {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range: rangeOf,
    strftime_now: (format: unknown) => strftime(now(), String(format)),
    raise_exception: (message: unknown) => {
      throw new Refused(String(message));
    },
  };
  // A variable of the caller's may have a global's name.
  for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value);
  return environment;
}

const LONGEST_MESSAGE = 500;

/**
 * What a template writes.
 * @param options.where what to call it in errors
 * @param options.now   the clock of `strftime_now`. @default the machine's
 * @throws FormatError when it does not parse, fails, refuses its variables by `raise_exception`, or uses up more time or memory
 *   than it may
 */
export function renderTemplate(
  source: string,
  variables: Readonly<Record<string, unknown>>,
  options: { readonly where?: string; readonly now?: () => Date } = {},
): string {
  const { where = "chat template", now = () => new Date() } = options;
  if (source.length > LONGEST_SOURCE) {
    throw new FormatError({
      where,
      rule: `must have at most ${LONGEST_SOURCE} characters`,
      got: `${source.length}`,
    });
  }
  try {
    return withinTime(LONGEST_MS, where, () => {
      const program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
      const written = new BoundedInterpreter(environmentOf(variables, now)).run(program);
      return written.value as string;
    });
  } catch (cause) {
    if (cause instanceof FormatError) throw cause;
    const message = cause instanceof Error ? cause.message : String(cause);
    const rule =
      cause instanceof Refused
        ? "must take these messages"
        : cause instanceof LimitReached
          ? "must not use up the machine"
          : "must be a Jinja template that these messages fit";
    const got = message.length > LONGEST_MESSAGE ? `${message.slice(0, LONGEST_MESSAGE)}…` : message;
    throw new FormatError({ where, rule, got, cause });
  }
}

/** The template of a model, with the tokens it names. */
export class ChatTemplate {
  readonly source: string;
  /** What the files say beside the messages. */
  readonly variables: Readonly<Record<string, unknown>>;
  readonly #where: string;

  /**
   * @param options.variables what the files say beside the messages: `bos_token`, `eos_token`
   * @param options.where     what to call the template in errors
   */
  constructor(
    source: string,
    options: { readonly variables?: Readonly<Record<string, unknown>>; readonly where?: string } = {},
  ) {
    this.source = source;
    this.variables = options.variables ?? {};
    this.#where = options.where ?? "chat template";
  }

  /**
   * A conversation as the model reads it. The begin token, where the template writes one, is part of the text.
   * @throws FormatError as {@link renderTemplate}
   */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    const { addGenerationPrompt = true, variables = {} } = options;
    return renderTemplate(
      this.source,
      { ...this.variables, ...variables, messages, add_generation_prompt: addGenerationPrompt },
      { where: this.#where },
    );
  }
}

/** The file that holds a template alone; it goes before one in the tokenizer's config. */
const CHAT_TEMPLATE = "chat_template.jinja";

const SpecialToken = z.union([
  z.string(),
  z.looseObject({ content: z.string() }).transform((token) => token.content),
]);
const ROLES = ["bos_token", "eos_token", "pad_token", "unk_token"] as const;
const Config = z.looseObject({
  chat_template: z
    .union([z.string(), z.array(z.object({ name: z.string(), template: z.string() }))])
    .nullish()
    .transform((given) =>
      Array.isArray(given) ? (given.find(({ name }) => name === "default") ?? given[0])?.template : given,
    ),
  ...(Object.fromEntries(ROLES.map((role) => [role, SpecialToken.nullish()])) as Record<
    (typeof ROLES)[number],
    z.ZodOptional<z.ZodNullable<typeof SpecialToken>>
  >),
});

async function readOwnFile(folder: string): Promise<string | undefined> {
  try {
    return await readText(join(folder, CHAT_TEMPLATE), MOST_BYTES);
  } catch (error) {
    const missing = error instanceof FileError && (error.cause as NodeJS.ErrnoException)?.code === "ENOENT";
    if (missing) return undefined;
    throw error;
  }
}

/**
 * The chat template of a model's folder: `chat_template.jinja`, or the one in `tokenizer_config.json`, the default of several.
 * @returns undefined when the model has none
 * @throws FileError when the config is missing; FormatError when it breaks its format
 */
export async function loadChatTemplate(folder: string): Promise<ChatTemplate | undefined> {
  const files = await readTokenizerFiles(folder);
  const path = tokenizerPaths(folder).config;
  const parsed = Config.safeParse(parseTokenizerJson(path, files.config));
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new FormatError({
      where: `${path}: ${issue?.path.join(".") || "content"}`,
      rule: "must be a template's text, or templates by name",
      got: issue?.message ?? "something else",
    });
  }
  const own = await readOwnFile(folder);
  const source = own ?? parsed.data.chat_template;
  if (source === undefined || source === null) return undefined;
  const variables = Object.fromEntries(
    ROLES.flatMap((role) => (typeof parsed.data[role] === "string" ? [[role, parsed.data[role]]] : [])),
  );
  return new ChatTemplate(source, {
    variables,
    where: own === undefined ? `${path}: chat_template` : join(folder, CHAT_TEMPLATE),
  });
}
