/** Short names for the models people come for: the six that DeepSeek distilled from R1 (arXiv:2501.12948, table 5). */

const OWNER = "deepseek-ai";

const DISTILLS: Readonly<Record<string, string>> = {
  "r1-1.5b": "DeepSeek-R1-Distill-Qwen-1.5B",
  "r1-7b": "DeepSeek-R1-Distill-Qwen-7B",
  "r1-8b": "DeepSeek-R1-Distill-Llama-8B",
  "r1-14b": "DeepSeek-R1-Distill-Qwen-14B",
  "r1-32b": "DeepSeek-R1-Distill-Qwen-32B",
  "r1-70b": "DeepSeek-R1-Distill-Llama-70B",
};

/** Every alias with the repository it stands for: short (`r1-1.5b`), and the repository's name without its owner. */
export const ALIASES: ReadonlyMap<string, string> = new Map(
  Object.entries(DISTILLS).flatMap(([short, model]) => [
    [short, `${OWNER}/${model}`],
    [model.toLowerCase(), `${OWNER}/${model}`],
  ]),
);

/** What an alias stands for; other names stand for themselves. */
export function unalias(name: string): string {
  return ALIASES.get(name.toLowerCase()) ?? name;
}
