/**
 * Sums of two numbers for a chat model that was trained already: `What is 7 + 12?`, to be answered by the number and nothing else.
 *
 * A small instruct model can add, now and then, but talks: it repeats the question, explains, or writes a sentence around the
 * number. Reinforcement learning on these rewards makes it say what it knows, within minutes on a laptop's processor:
 *
 *     pondera train ./examples/sums.ts --model ./SmolLM2-135M-Instruct --lora-rank 16
 */
import { defineTask, type Random } from "pondera";

interface Sum {
  readonly prompt: string;
  readonly messages: readonly { readonly role: string; readonly content: string }[];
  readonly total: number;
}

const MOST = 20;

function drawSum(random: Random): Sum {
  const [a, b] = [1 + random.integer(MOST), 1 + random.integer(MOST)];
  const prompt = `What is ${a} + ${b}?`;
  // A short word from the system keeps the template from putting its own, longer one there.
  const messages = [
    { role: "system", content: "Answer with the number alone." },
    { role: "user", content: prompt },
  ];
  return { prompt, messages, total: a + b };
}

/** The last whole number of a text. */
const lastNumber = (text: string): number | undefined => {
  const all = text.match(/\d{1,9}/g);
  return all === null ? undefined : Number(all.at(-1));
};

export default defineTask<Sum>({
  name: "sums",
  description: "Sums of two numbers, answered by the number alone",
  prompts: drawSum,
  reward: {
    accuracy: { weight: 1, reward: ({ text }, { row }) => (text.trim() === `${row.total}` ? 1 : 0) },
    // Being right in many words earns half of it, so that there is something to begin with.
    right: { weight: 0.5, reward: ({ text }, { row }) => (lastNumber(text) === row.total ? 1 : 0) },
    brief: { weight: 0.2, reward: ({ text }) => (/^\d+$/.test(text.trim()) ? 1 : 0) },
  },
  maxPromptTokens: 24,
  maxNewTokens: 24,
});
