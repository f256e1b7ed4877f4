/**
 * From a sentence to JSON that a zod schema accepts: `Ana is 34 and lives in Oslo.` wants
 * `{"name":"Ana","age":34,"city":"Oslo"}`. There is no thought here: the completion is the answer.
 *
 * The base has seen such JSON with the usual mistakes: fields exchanged or missing, the age in quotes, a bracket
 * forgotten, a value that is not in the sentence.
 *
 *     pondera train ./examples/json-extraction.ts --preset quick
 */
import { defineTask, type Random } from "pondera";
import { z } from "zod";

const NAMES = "Ana,Ben,Cleo,Dora,Emil,Finn,Gita,Hugo,Ines,Jonas,Kira,Liam,Mona,Nils,Olga,Pia".split(",");
const CITIES =
  "Bonn,Cairo,Delhi,Graz,Kyoto,Lima,Lyon,Minsk,Oslo,Paris,Quito,Riga,Rome,Seoul,Turin,Wien".split(",");
const PERSON = z.strictObject({ name: z.string(), age: z.int().min(0), city: z.string() });

type Person = z.infer<typeof PERSON>;

interface Sentence {
  readonly prompt: string;
  readonly person: Person;
}

const SENTENCES: readonly ((person: Person) => string)[] = [
  ({ name, age, city }) => `${name} is ${age} and lives in ${city}.`,
  ({ name, age, city }) => `In ${city} lives ${name}, aged ${age}.`,
  ({ name, age, city }) => `At ${age}, ${name} moved to ${city}.`,
  ({ name, age, city }) => `${city}: ${name}, ${age} years old.`,
];

const drawPerson = (random: Random): Person => ({
  name: random.pick(NAMES),
  age: 18 + random.integer(72),
  city: random.pick(CITIES),
});

function drawSentence(random: Random): Sentence {
  const person = drawPerson(random);
  return { prompt: `${random.pick(SENTENCES)(person)}\n`, person };
}

/** The ways in which the base goes wrong. */
const MISTAKES: readonly ((person: Person, random: Random) => string)[] = [
  ({ name, age, city }) => JSON.stringify({ name: city, age, city: name }),
  ({ name, age, city }) => JSON.stringify({ name, age: `${age}`, city }),
  ({ name, age, city }, random) => JSON.stringify(random.integer(2) === 0 ? { name, age } : { name, city }),
  (person) => JSON.stringify(person).slice(0, -1),
  (person, random) => JSON.stringify({ ...person, age: 18 + random.integer(72) }),
  (person, random) => JSON.stringify({ ...person, [random.pick(["name", "city"])]: random.pick(NAMES) }),
];

function explore(random: Random): { prompt: string; completion: string } {
  const { prompt, person } = drawSentence(random);
  const right = random.uniform() < 0.25;
  return { prompt, completion: right ? JSON.stringify(person) : random.pick(MISTAKES)(person, random) };
}

/** The person that a completion describes, or undefined when it is no JSON or not of the schema. */
function readPerson(text: string): Person | undefined {
  try {
    return PERSON.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

const EXAMPLE: Person = { name: "", age: 1234567890, city: "" };
const WORDS = [
  JSON.stringify(EXAMPLE),
  ...NAMES,
  ...CITIES,
  ...SENTENCES.map((write) => write(EXAMPLE)),
  "\n",
];

export default defineTask<Sentence>({
  name: "json-extraction",
  description: "Name, age and city from a sentence, as JSON",
  alphabet: [...new Set(WORDS.join(""))].sort().join(""),
  prompts: drawSentence,
  explore,
  reward: {
    accuracy: {
      weight: 1,
      reward: ({ text }, { row: { person } }) => {
        const read = readPerson(text);
        return read?.name === person.name && read.age === person.age && read.city === person.city ? 1 : 0;
      },
    },
    schema: { weight: 0.2, reward: ({ text }) => (readPerson(text) === undefined ? 0 : 1) },
  },
  maxPromptTokens: 48,
  maxNewTokens: 48,
});
