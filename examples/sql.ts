/**
 * Questions about a table, answered in SQL that is run to see whether it is right: `oldest of cats under 7` wants
 * `SELECT max(age) FROM pets WHERE kind='cat' AND age<7`, or any other query with the same result.
 *
 * The database is PostgreSQL, embedded (PGlite) and in memory; what the model writes may only read it. The base has seen
 * SQL that mostly runs, but for another question or with part of the condition left out.
 *
 *     pondera train ./examples/sql.ts --preset quick
 */
import { PGlite } from "@electric-sql/pglite";
import { defineTask, type Random } from "pondera";

const KINDS = ["cat", "dog", "bird", "hare"] as const;
const MOST_AGE = 14;

/** Words of a question, and the SQL they stand for. */
const MEASURES = [
  { words: "how many", sql: "count(*)" },
  { words: "oldest of", sql: "max(age)" },
  { words: "youngest of", sql: "min(age)" },
  { words: "total age of", sql: "sum(age)" },
] as const;
const COMPARISONS = [
  { words: "over", sql: ">" },
  { words: "under", sql: "<" },
] as const;

interface Question {
  readonly measure: (typeof MEASURES)[number];
  readonly kind?: string;
  readonly bound?: { readonly comparison: (typeof COMPARISONS)[number]; readonly age: number };
}

interface Row {
  readonly prompt: string;
  /** The right result, as JSON. */
  readonly expected: string;
}

const wordsOf = ({ measure, kind, bound }: Question): string =>
  [
    measure.words,
    `${kind ?? "pet"}s`,
    ...(bound === undefined ? [] : [bound.comparison.words, bound.age]),
  ].join(" ");

function sqlOf({ measure, kind, bound }: Question): string {
  const conditions = [
    ...(kind === undefined ? [] : [`kind='${kind}'`]),
    ...(bound === undefined ? [] : [`age${bound.comparison.sql}${bound.age}`]),
  ];
  const where = conditions.length === 0 ? "" : ` WHERE ${conditions.join(" AND ")}`;
  return `SELECT ${measure.sql} FROM pets${where}`;
}

const KINDS_OR_ANY = [...KINDS, undefined];
const BOUNDS = [
  undefined,
  ...COMPARISONS.flatMap((comparison) =>
    Array.from({ length: MOST_AGE }, (_, i) => ({ comparison, age: i + 1 })),
  ),
];
const QUESTIONS: readonly Question[] = MEASURES.flatMap((measure) =>
  KINDS_OR_ANY.flatMap((kind) =>
    BOUNDS.map((bound) => ({ measure, ...(kind && { kind }), ...(bound && { bound }) })),
  ),
);

async function openDatabase(): Promise<PGlite> {
  const database = await PGlite.create();
  await database.exec("CREATE TABLE pets (kind text, age int)");
  // Ages in uneven steps, so that different questions seldom have the same answer.
  for (const [i, kind] of KINDS.entries()) {
    for (let j = 0; j < 6 + i; j++) {
      await database.query("INSERT INTO pets VALUES ($1, $2)", [
        kind,
        1 + ((3 + 5 * i + 4 * j + j * j) % MOST_AGE),
      ]);
    }
  }
  // From here on every statement is a transaction of its own that may only read.
  await database.exec("SET default_transaction_read_only = on");
  return database;
}

/** Opened with the first query, so that loading this file stays quick. */
let opened: Promise<PGlite> | undefined;

/** What a query returns, as JSON; undefined when it is no SELECT or fails. */
async function run(sql: string): Promise<string | undefined> {
  if (!sql.startsWith("SELECT ")) return undefined;
  opened ??= openDatabase();
  const database = await opened;
  try {
    // `query` takes one statement and no second one after a semicolon.
    return JSON.stringify((await database.query(sql, [], { rowMode: "array" })).rows);
  } catch {
    return undefined;
  }
}

/** Questions whose answer says something: not "none", which many a wrong query returns too. */
async function* questions(): AsyncGenerator<Row> {
  for (const question of QUESTIONS) {
    const expected = await run(sqlOf(question));
    if (expected !== undefined && expected !== "[[null]]" && expected !== "[[0]]") {
      yield { prompt: `${wordsOf(question)}\n`, expected };
    }
  }
}

/** The ways in which the base goes wrong. */
const MISTAKES: readonly ((question: Question, random: Random) => string)[] = [
  (question, random) => sqlOf({ ...question, measure: random.pick(MEASURES) }),
  ({ measure, bound }) => sqlOf({ measure, ...(bound && { bound }) }),
  ({ measure, kind }) => sqlOf({ measure, ...(kind && { kind }) }),
  (_, random) => sqlOf(random.pick(QUESTIONS)),
  (question) => sqlOf(question).replace("FROM pets", "FROM pet"),
  (question, random) => sqlOf(question).slice(0, 10 + random.integer(20)),
];

function explore(random: Random): { prompt: string; completion: string } {
  const question = random.pick(QUESTIONS);
  const right = random.uniform() < 0.2;
  const completion = right ? sqlOf(question) : random.pick(MISTAKES)(question, random);
  return { prompt: `${wordsOf(question)}\n`, completion };
}

const WORDS = QUESTIONS.flatMap((question) => [wordsOf(question), sqlOf(question)]);

export default defineTask<Row>({
  name: "sql",
  description: "Questions about a table, answered in SQL",
  alphabet: [...new Set([...WORDS.join(""), "\n"])].sort().join(""),
  prompts: questions,
  explore,
  reward: {
    accuracy: {
      weight: 1,
      reward: async ({ text }, { row }) => ((await run(text)) === row.expected ? 1 : 0),
    },
    runs: { weight: 0.2, reward: async ({ text }) => ((await run(text)) === undefined ? 0 : 1) },
  },
  maxPromptTokens: 32,
  maxNewTokens: 64,
});
