/**
 * Cuts text into the words within which byte-pair merges happen, as the `pre_tokenizer` of a `tokenizer.json` says: a
 * sequence of splits, each applied to the pieces that the one before it left.
 * @source github.com/huggingface/tokenizers, tokenizers/src/pre_tokenizers and src/tokenizer/normalizer.rs (SplitDelimiterBehavior)
 */

import { z } from "zod";
import { fromOniguruma } from "./oniguruma.ts";
import { withinTime } from "./time-limit.ts";

const BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] as const;
type Behavior = (typeof BEHAVIORS)[number];

/** One step of pre-tokenization: one piece in, its parts out. */
type Step = (piece: string) => string[];

export interface PreTokenizer {
  /** @throws FormatError when a pattern of the file's own takes too long */
  split(text: string): string[];
}

/** Between words, and the mark of GPT-2's contractions. What `ByteLevel` splits by where it splits at all. */
export const GPT2_PATTERN =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
export const LLAMA3_PATTERN = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
export const QWEN2_PATTERN = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

/** Qwen 3.5: marks belong to words. */
export const QWEN35_PATTERN = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

/** Words that begin anew where a small letter is followed by a capital. */
function casedWords(contractions: string, digits: string): string {
  const [capital, small] = ["[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"];
  const before = "[^\\r\\n\\p{L}\\p{N}]?";
  const words = `${before}${capital}*${small}+${contractions}|${before}${capital}+${small}*${contractions}`;
  return `${words}|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
}
/** Mistral's, since NeMo. */
export const TEKKEN_PATTERN = casedWords("", "\\p{N}");
/** Llama 4's too. */
export const GPT4O_PATTERN = casedWords(`${CONTRACTIONS}?`, "\\p{N}{1,3}");

/** DeepSeek-V3 and R1. The line breaks within are themselves, as in its file. */
export const DEEPSEEK3_PATTERNS: readonly string[] = [
  "\\p{N}{1,3}",
  "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

/** The letters of DeepSeek-LLM's words: those of scripts with cases. */
const CASED =
  "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af" +
  "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5" +
  "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba" +
  "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45" +
  "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe" +
  "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc" +
  "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139" +
  "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3" +
  "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06" +
  "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}" +
  "\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}";
const CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+";
const TRAILING_SPACE = "\\s+$";
export const DEEPSEEK_LLM_PATTERNS: readonly string[] = [
  "[\r\n]",
  `\\s?[${CASED}]+`,
  "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
  TRAILING_SPACE,
  CJK,
  "\\p{N}+",
];
export const DEEPSEEK_CODER_PATTERNS: readonly string[] = [
  "[\r\n]",
  "\\s?\\p{L}+",
  "\\s?\\p{P}+",
  CJK,
  "\\p{N}",
];

/** Patterns known to take time in proportion to the text; all others run against the clock. */
const LINEAR: ReadonlySet<string> = new Set([
  GPT2_PATTERN,
  LLAMA3_PATTERN,
  QWEN2_PATTERN,
  ...DEEPSEEK3_PATTERNS,
  ...DEEPSEEK_LLM_PATTERNS,
  ...DEEPSEEK_CODER_PATTERNS,
]);

/**
 * Patterns that find the same in less time when they are written so: a search that fails in a run of white space need not
 * begin again inside it. (Runs hold no line break here, as those are split off before.)
 */
const REWRITTEN: Readonly<Record<string, string>> = { [TRAILING_SPACE]: `(?<!\\s)${TRAILING_SPACE}` };

/** Longest that a text may be cut by patterns of a file's own. */
const LONGEST_MS = 5_000;

const SplitForm = z.object({
  type: z.literal("Split"),
  pattern: z.union([z.object({ Regex: z.string() }), z.object({ String: z.string() })]),
  behavior: z.enum(BEHAVIORS),
  invert: z.boolean(),
});
const DigitsForm = z.object({ type: z.literal("Digits"), individual_digits: z.boolean() });
const ByteLevelForm = z.object({
  type: z.literal("ByteLevel"),
  add_prefix_space: z.boolean(),
  use_regex: z.boolean().default(true),
});
const SequenceForm = z.object({ type: z.literal("Sequence"), pretokenizers: z.array(z.unknown()) });

/** Alternating parts of a text: those that match, and those between. */
function partsOf(text: string, pattern: RegExp, invert: boolean): { text: string; matches: boolean }[] {
  const parts: { text: string; matches: boolean }[] = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    if (match[0] === "") continue;
    if (match.index > end) parts.push({ text: text.slice(end, match.index), matches: invert });
    parts.push({ text: match[0], matches: !invert });
    end = match.index + match[0].length;
  }
  if (end < text.length) parts.push({ text: text.slice(end), matches: invert });
  return parts;
}

function splitBy(pattern: RegExp, behavior: Behavior, invert: boolean): Step {
  return (piece) => {
    const parts = partsOf(piece, pattern, invert);
    if (behavior === "Isolated") return parts.map(({ text }) => text);
    if (behavior === "Removed") return parts.filter(({ matches }) => !matches).map(({ text }) => text);
    const pieces: string[] = [];
    let before: boolean | undefined;
    for (const { text, matches } of parts) {
      const joins =
        before !== undefined &&
        (behavior === "Contiguous"
          ? matches === before
          : behavior === "MergedWithPrevious"
            ? matches && !before
            : !matches && before);
      if (joins) pieces[pieces.length - 1] += text;
      else pieces.push(text);
      before = matches;
    }
    return pieces;
  };
}

interface Steps {
  readonly steps: readonly Step[];
  /** Whether every pattern is known to be fast. */
  readonly linear: boolean;
}

const escapeRegExp = (text: string): string =>
  text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&").replace(/\\-/g, "\\x2d");

/** @returns undefined for what is not known here */
function stepsOf(json: unknown): Steps | undefined {
  const sequence = SequenceForm.safeParse(json);
  if (sequence.success) {
    const all = sequence.data.pretokenizers.map(stepsOf);
    if (all.some((one) => one === undefined)) return undefined;
    return { steps: all.flatMap((one) => one!.steps), linear: all.every((one) => one!.linear) };
  }
  const split = SplitForm.safeParse(json);
  if (split.success) {
    const { pattern, behavior, invert } = split.data;
    const source = "Regex" in pattern ? pattern.Regex : undefined;
    const regex =
      "String" in pattern
        ? new RegExp(escapeRegExp(pattern.String), "gu")
        : fromOniguruma(REWRITTEN[pattern.Regex] ?? pattern.Regex);
    if (regex === undefined) return undefined;
    return { steps: [splitBy(regex, behavior, invert)], linear: source === undefined || LINEAR.has(source) };
  }
  const digits = DigitsForm.safeParse(json);
  if (digits.success) {
    const pattern = digits.data.individual_digits ? /\p{N}/gu : /\p{N}+/gu;
    return { steps: [splitBy(pattern, "Isolated", false)], linear: true };
  }
  const bytes = ByteLevelForm.safeParse(json);
  if (bytes.success) {
    const prefix: Step = (piece) => [piece.startsWith(" ") ? piece : ` ${piece}`];
    const words = splitBy(fromOniguruma(GPT2_PATTERN)!, "Isolated", false);
    const { add_prefix_space, use_regex } = bytes.data;
    return { steps: [...(add_prefix_space ? [prefix] : []), ...(use_regex ? [words] : [])], linear: true };
  }
  return undefined;
}

/**
 * The pre-tokenizer that ends in `ByteLevel`, by its JSON.
 * @returns undefined when the JSON has what is not known here, or another end
 */
export function byteLevelPreTokenizer(json: unknown): PreTokenizer | undefined {
  const sequence = SequenceForm.safeParse(json);
  const last = sequence.success ? sequence.data.pretokenizers.at(-1) : json;
  if (!ByteLevelForm.safeParse(last).success) return undefined;
  const parsed = stepsOf(json);
  if (parsed === undefined) return undefined;
  const split = (text: string): string[] => {
    let pieces = text === "" ? [] : [text];
    for (const step of parsed.steps) pieces = pieces.flatMap(step);
    return pieces;
  };
  if (parsed.linear) return { split };
  const where = "tokenizer.json: pre_tokenizer";
  return { split: (text) => withinTime(LONGEST_MS, where, () => split(text)) };
}
