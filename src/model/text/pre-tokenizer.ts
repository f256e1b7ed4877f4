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

/** DeepSeek-V3 and R1. The line breaks within are themselves, as in its file. */
export const DEEPSEEK3_PATTERNS: readonly string[] = [
  "\\p{N}{1,3}",
  "[一-龥\u3040-ゟ゠-ヿ]+",
  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

/** The letters of DeepSeek-LLM's words: those of scripts with cases. */
const CASED =
  "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃";
const CJK = "[一-龥ࠀ-一가-\ud7ff]+";
export const DEEPSEEK_LLM_PATTERNS: readonly string[] = [
  "[\r\n]",
  `\\s?[${CASED}]+`,
  "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
  "\\s+$",
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
      "String" in pattern ? new RegExp(escapeRegExp(pattern.String), "gu") : fromOniguruma(pattern.Regex);
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
